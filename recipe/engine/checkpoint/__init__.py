"""Writes, checks, finds and reads checkpoint files.

No code in the files runs. The import of this package makes mmengine read checkpoints with it.
"""

from recipe.engine.checkpoint.errors import CheckpointError, UntrustedCheckpointError
from recipe.engine.checkpoint.files import link_or_copy
from recipe.engine.checkpoint.fit import misfit, shapes_differ, state_of
from recipe.engine.checkpoint.load import (
    TRUST_VARIABLE,
    check_file,
    is_plain_pickle,
    is_trusted,
    load_from_local,
    load_outline,
    load_pickle,
)
from recipe.engine.checkpoint.own_process import read_in_own_process
from recipe.engine.checkpoint.remote import load_url
from recipe.engine.checkpoint.resumable import find_resumable

__all__ = [
    'TRUST_VARIABLE',
    'CheckpointError',
    'UntrustedCheckpointError',
    'check_file',
    'find_resumable',
    'is_plain_pickle',
    'is_trusted',
    'link_or_copy',
    'load_from_local',
    'load_outline',
    'load_pickle',
    'load_url',
    'misfit',
    'read_in_own_process',
    'shapes_differ',
    'state_of',
]
