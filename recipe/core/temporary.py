"""Temporary folders that no kill leaves behind for long, and short names for sockets. Standard library, Python 3.8 on.

The owner of a folder holds its lock (flock), which the kernel releases when the process ends, however it ends. The next
process that makes such a folder removes those that nobody holds.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Iterator

from recipe.core import console

PREFIX = 'mask2former-recipe-'
_YOUNG_S = 60  # a folder that was just made may not be locked yet
_LONGEST_NAME = 107  # bytes of a socket's path: sun_path of unix(7) without its final zero
_SOCKET = 'x' * len('/listener-xxxxxxxx')  # what multiprocessing adds
_SHORT_PLACES = ('/tmp', '/var/tmp', '/dev/shm')
_FIX = 'set TMPDIR to a folder that can be written to and has room'


@contextlib.contextmanager
def folder(place: str = '') -> Iterator[Path]:
    """Yield a new folder, and remove it at the end.

    Args:
        place: Its parent; by default TMPDIR or what the system has.

    Raises:
        console.UserError: No folder for temporary files can be written to.
    """
    place = place or _place()
    try:
        _sweep(Path(place))
        made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    except OSError as error:
        raise console.UserError(f'no temporary folder can be made in {place}: {error.strerror}', _FIX) from None
    descriptor = os.open(str(made), os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks; nothing is swept there
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield made
    finally:
        shutil.rmtree(str(made), ignore_errors=True)
        os.close(descriptor)


def _place() -> str:
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise console.UserError(str(error.strerror), _FIX) from None


def _sweep(place: Path) -> None:
    """Remove the folders of processes that have ended."""
    for left in place.glob(f'{PREFIX}*'):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime < _YOUNG_S:
                continue
            descriptor = os.open(str(left), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(str(left), ignore_errors=True)
            finally:
                os.close(descriptor)


@functools.lru_cache(maxsize=None)
def sockets() -> Path:
    """The folder in which multiprocessing makes its sockets from now on; it is removed when this process ends.

    Otherwise each process makes a folder ``pymp-*`` in TMPDIR, which stays after a kill. A socket's path has at most
    107 bytes, so this folder is elsewhere if TMPDIR is long. The forkserver keeps its socket to the end.
    """
    longest = _LONGEST_NAME - len(_SOCKET) - len(f'/{PREFIX}xxxxxxxx')
    places = (_place(), *_SHORT_PLACES)
    fits = (place for place in places if len(os.fsencode(place)) <= longest and os.access(place, os.W_OK | os.X_OK))
    kept = contextlib.ExitStack()
    made = kept.enter_context(folder(next(fits, '')))
    atexit.register(kept.close)
    use_for_sockets(str(made))
    return made


def use_for_sockets(path: str) -> None:
    """Have multiprocessing make its sockets in a folder, here and in the processes forked from now on."""
    # There is no public name for this setting.
    multiprocessing.current_process()._config['tempdir'] = path  # type: ignore[attr-defined]
