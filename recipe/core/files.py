"""The one writer of files: a reader, or a run after a killed one, never sees half a file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Callable, Iterator, Optional, Union

from recipe.core import processes

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTIAL_PREFIX = '.partial.'  # no name of a checkpoint, picture or label begins like this
_PARTIAL_NAME = re.compile(re.escape(PARTIAL_PREFIX) + r'(?P<host>[^.]*)\.(?P<pid>\d+)\.')


def _host() -> str:
    return socket.gethostname().split('.')[0]


@contextlib.contextmanager
def whole(path: Path, check: Optional[Callable[[str], None]] = None, to_disk: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` to write to, and rename it to ``path`` once it is written.

    ``path`` holds either the old content or the new one at any time.

    Args:
        path: Final name; an existing file is replaced at the end, in one step.
        check: Called with the temporary name before the renaming; raises if the file is not right.
        to_disk: Flush the file to the disk first, so that it survives a loss of power.
    """
    partial = path.with_name(f'{PARTIAL_PREFIX}{_host()}.{os.getpid()}.{path.name}')
    try:
        yield partial
        if to_disk:
            _sync(partial)
        if check is not None:
            check(str(partial))
        partial.replace(path)
    except OSError as error:
        if error.filename is None and error.errno in _FULL:  # Python names no file if writing to an open one fails
            error.filename = str(path)
        raise
    finally:
        # It still exists after a failure, or if both names are links to one file: renaming then does nothing.
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    if to_disk:
        # Some network file systems do not sync folders; the file itself is safe.
        with contextlib.suppress(OSError):
            _sync(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path`` to fill, and rename it to ``path`` once it is filled.

    Args:
        path: Final name; an existing folder is removed at the end.
    """
    partial = path.with_name(f'{PARTIAL_PREFIX}{_host()}.{os.getpid()}.{path.name}')
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            shutil.rmtree(str(path))
        partial.rename(path)
    finally:
        shutil.rmtree(str(partial), ignore_errors=True)


def write_text(path: Path, text: str) -> Path:
    """Write a whole text file in UTF-8; makes its folder.

    Returns:
        Its path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(text, encoding='utf-8')
    return path


def link(place: Path, target: Path) -> bool:
    """Make a symbolic link in one step. An older link is replaced; what it led to stays as it is.

    Args:
        place: The link.
        target: What it leads to. The link to something below its own folder is relative, so that both can be moved.

    Returns:
        Whether the storage has links.
    """
    with contextlib.suppress(ValueError):
        target = target.relative_to(place.parent)
    try:
        with whole(place) as partial:
            partial.symlink_to(target)
    except OSError:
        return False
    return True


def move_aside(path: Path) -> Path:
    """Rename a file by the time of its last change, so that its name is free: ``a.log`` to ``a.20260101_120000.log``.

    Returns:
        The new path.
    """
    stamp = time.strftime('%Y%m%d_%H%M%S', time.localtime(path.lstat().st_mtime))
    names = [f'{path.stem}.{stamp}{path.suffix}', *(f'{path.stem}.{stamp}_{n}{path.suffix}' for n in range(2, 1000))]
    free = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    path.rename(free)
    return free


def sweep(folder: Path, is_mine: bool = False) -> None:
    """Remove the unfinished files that killed runs left below a folder.

    Args:
        folder: May be missing.
        is_mine: Nobody else writes there, so files left by processes of other machines are removed too.
    """
    if not folder.is_dir():
        return
    for place, _, names in os.walk(str(folder)):
        for name in names:
            match = _PARTIAL_NAME.match(name)
            if match and (is_mine or (match['host'] == _host() and not _writes(int(match['pid'])))):
                with contextlib.suppress(FileNotFoundError):
                    Path(place, name).unlink()


def _writes(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A zombie still accepts signals, but writes no more.
    return processes.state(pid) not in ('Z', 'X')


def _sync(path: Path) -> None:
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Union[str, Path]) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()
