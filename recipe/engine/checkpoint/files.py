"""Files that are either there and whole or not there."""

import os
import os.path as osp
import re
import shutil
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, Optional

from recipe.engine.checkpoint.load import check_file


def _sync(path: str) -> None:
    """Bring a file or folder from the system's cache to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def write_atomically(path: str, check: Optional[Callable[[str], None]] = None) -> Iterator[str]:
    """Write a file under another name and rename it once it is on the disk.

    Whatever happens inside of the block, ``path`` holds the old content or
    the new one, and no remains.

    Args:
        path (str): The file to create or to replace.
        check (Callable, optional): Called with the name of the written file
            before the renaming, to raise if it is not right. Defaults to
            None.

    Yields:
        str: The name to write to, in the same folder. It begins with a dot
        and ends with ``.tmp``, which no pattern for checkpoints matches.
    """
    folder, name = osp.split(path)
    temporary = osp.join(folder, f'.{name}.tmp')
    try:
        yield temporary
        _sync(temporary)
        if check is not None:
            check(temporary)
        os.replace(temporary, path)
    finally:
        # still there after a failure, or if both names were the same file,
        # which rename leaves alone
        with suppress(FileNotFoundError):
            os.remove(temporary)
    # Some network file systems do not sync folders; the file itself is safe.
    with suppress(OSError):
        _sync(folder or '.')


def link_or_copy(source: str, path: str) -> None:
    """Give a checkpoint a second name, as a hard link where possible.

    Args:
        source (str): The checkpoint.
        path (str): The name to create or to replace.
    """
    try:
        with write_atomically(path) as temporary:
            os.link(source, temporary)
    except OSError:
        # another file system, or one without hard links
        with write_atomically(path, check=check_file) as temporary:
            shutil.copyfile(source, temporary)


def remove_temporary_files(folder: str) -> None:
    """Remove what a killed process left half-written.

    Args:
        folder (str): Folder of checkpoints.
    """
    for name in os.listdir(folder):
        if re.fullmatch(r'\.(.+\.pth|last_checkpoint)\.tmp', name):
            os.remove(osp.join(folder, name))
