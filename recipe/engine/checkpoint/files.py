"""Gives a checkpoint a second name."""

import os
import shutil
from pathlib import Path

from recipe.core.files import whole
from recipe.engine.checkpoint.load import check_file


def link_or_copy(source: str, path: str) -> None:
    """Give a checkpoint a second name, as a hard link if possible.

    Args:
        source (str): Path of the checkpoint.
        path (str): The path to create or to replace.
    """
    try:
        with whole(Path(path), to_disk=True) as partial:
            os.link(source, partial)
    except OSError:
        # another file system, or one without hard links
        with whole(Path(path), check_file, to_disk=True) as partial:
            shutil.copyfile(source, partial)
