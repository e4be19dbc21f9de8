"""Writing files so that a reader, or a run that follows a killed one, never meets half of one."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path
from typing import Iterator

from recipe.data import layout

_PARTIAL_NAME = re.compile(re.escape(layout.PARTIAL_PREFIX) + r'(?P<host>[^.]*)\.(?P<pid>\d+)\.')


def _host() -> str:
    return socket.gethostname().split('.')[0]


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to, and rename it to ``path`` once it is written.

    Args:
        path: Where the file is to be; an existing one is replaced at the end, in one step.
    """
    partial = path.with_name(f'{layout.PARTIAL_PREFIX}{_host()}.{os.getpid()}.{path.name}')
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        raise


def sweep(folder: Path) -> None:
    """Remove what killed runs on this machine left half-written below a folder."""
    if not folder.is_dir():
        return
    for place, _, names in os.walk(str(folder)):
        for name in names:
            match = _PARTIAL_NAME.match(name)
            if match and match['host'] == _host() and not _alive(int(match['pid'])):
                with contextlib.suppress(FileNotFoundError):
                    Path(place, name).unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A process that was killed and not yet reaped by its parent still takes signals, but writes no more.
    with contextlib.suppress(OSError, IndexError):
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in ('Z', 'X')
    return True
