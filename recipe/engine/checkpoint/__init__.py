"""Checkpoint files: written whole, read as data, and found again. Importing it has mmengine read them so."""

from recipe.engine.checkpoint.files import link_or_copy, remove_temporary_files, write_atomically
from recipe.engine.checkpoint.load import CheckpointError, UntrustedCheckpointError, check_file, load_from_local
from recipe.engine.checkpoint.remote import load_url
from recipe.engine.checkpoint.resumable import find_resumable

__all__ = [
    'CheckpointError',
    'UntrustedCheckpointError',
    'check_file',
    'find_resumable',
    'link_or_copy',
    'load_from_local',
    'load_url',
    'remove_temporary_files',
    'write_atomically',
]
