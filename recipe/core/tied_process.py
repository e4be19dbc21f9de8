"""Runs a program that ends with the process that started it, even if that process is killed by SIGKILL.

A keeper (``python recipe keep``) stands between the two. It waits for the program, and for the end of a pipe whose
other end only the starter holds. When the starter ends, the kernel closes the pipe, and the keeper ends the program and
everything that the program started. Meanwhile the keeper holds the starter's locks. Linux; standard library only,
Python 3.8 on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Sequence

from recipe.core import processes
from recipe.core.paths import PACKAGE

TERM_SECONDS = 3.0  # between SIGTERM and SIGKILL
KILL_SECONDS = 10.0  # for the kernel to remove killed processes

# Descriptors of the locks that this process holds. A program that works under a lock keeps it open, so that nobody can
# take the lock while the program is still ending.
held: List[int] = []


@contextlib.contextmanager
def lock(descriptor: int, waits: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of an open file or folder. Programs started meanwhile hold it too.

    Args:
        descriptor: Of the file; closed at the end.
        waits: Called once with a description of the holder, if another process holds the lock.
    """
    try:
        # A file system without locks (some network ones) must not prevent the set-up.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits(_holder(os.fstat(descriptor)))
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        held.append(descriptor)
        try:
            yield
        finally:
            held.remove(descriptor)
    finally:
        os.close(descriptor)


def _holder(status: os.stat_result) -> str:
    """Describe the process that holds a file's lock."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/locks').read_text().splitlines():
            # 1: FLOCK  ADVISORY  WRITE 4711 fd:01:132 0 EOF; a line with -> is of a process that waits
            fields = line.split()
            # The device number here can differ from that of the file's status (overlays, btrfs).
            if fields[1] == 'FLOCK' and fields[5].rpartition(':')[2] == str(status.st_ino):
                pid = int(fields[4])
                if processes.state(pid) in (None, 'Z'):
                    return f'process {pid}, which has ended, but a program that it started has not'
                return f'process {pid}'
    return 'another process'


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a program. When the block is left, the program and all that it started are ended if they still run.

    Args:
        command: The program and its arguments; it reads nothing from stdin.
        **options: Options of ``subprocess.Popen``.

    Yields:
        The keeper's process. Its exit status is the program's, or 128 + the signal that ended it, as in a shell.
    """
    alive, mine = os.pipe()
    try:
        # -E, -s and -S: nothing but the standard library is imported, which also starts faster.
        keeper = [sys.executable, '-E', '-s', '-S', str(PACKAGE), 'keep', str(alive), *command]
        # In a session of its own, the keeper gets neither Ctrl-C nor the terminal's hang-up; the starter gets them.
        process = subprocess.Popen(
            keeper, stdin=subprocess.DEVNULL, pass_fds=(alive, *held), start_new_session=True, **options
        )
    except BaseException:
        os.close(mine)
        raise
    finally:
        os.close(alive)
    try:
        yield process
    finally:
        os.close(mine)
        process.wait()


def _keep(alive: int, command: List[str]) -> int:
    """Run a program to its end, or until the other end of a pipe is closed."""
    keeper = os.getpid()
    # If the keeper itself is killed, the kernel ends at least the program. Only the keeper inherits the locks: a helper
    # that outlives the program (git's cache of passwords) would keep holding them.
    process = subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=lambda: processes.die_with_parent(signal.SIGKILL, keeper),
    )
    threading.Thread(target=_end_with_starter, args=(alive, process.pid), daemon=True).start()
    status = process.wait()
    if status:
        # Processes left by a failed or killed program would keep working beside the next try.
        _end_session(process.pid)
    return 128 - status if status < 0 else status


def _end_with_starter(alive: int, session: int) -> None:
    while os.read(alive, 1):
        pass
    _end_session(session)


def _end_session(leader: int) -> None:
    """End every process of a session; returns when they have gone."""
    with contextlib.suppress(OSError):
        os.killpg(leader, signal.SIGTERM)
    deadline = time.monotonic() + TERM_SECONDS
    while time.monotonic() < deadline and any(row.session == leader for row in processes.table()):
        time.sleep(0.05)
    processes.kill_sessions([leader], KILL_SECONDS)


def main() -> int:
    """Run the keeper: ``keep DESCRIPTOR COMMAND``."""
    try:
        return _keep(int(sys.argv[1]), sys.argv[2:])
    except OSError as error:
        print(f'{error.strerror}: {error.filename}', file=sys.stderr)
        return 127
