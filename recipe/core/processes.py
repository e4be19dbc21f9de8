"""Processes of this machine, and how they end together. Linux; standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Collection, List, NamedTuple, Optional

START_NOTHING_AGAIN = signal.SIGRTMIN  # tells the agent not to start failed ranks again
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Process(NamedTuple):
    """One row of the process table; zombies are left out."""

    pid: int
    parent: int
    session: int


def die_with_parent(signum: signal.Signals, parent: int) -> None:
    """Have the kernel send this process a signal when its parent ends, however it ends. This survives exec.

    Args:
        signum: Signal to send.
        parent: Process id of the parent; if it has ended already, this process ends at once.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), 'prctl(PR_SET_PDEATHSIG)')
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def table() -> List[Process]:
    """All running processes that this process can see."""
    rows = []
    for folder in Path('/proc').glob('[0-9]*'):
        # A process may end while it is read.
        with contextlib.suppress(OSError):
            # The name, in parentheses, may itself hold spaces and parentheses.
            state, parent, _, session = (folder / 'stat').read_text(errors='replace').rpartition(')')[2].split()[:4]
            if state not in 'ZX':
                rows.append(Process(int(folder.name), int(parent), int(session)))
    return rows


def state(pid: int) -> Optional[str]:
    """The kernel's letter for a process's state, such as ``T`` for stopped; None if there is no such process."""
    try:
        return Path(f'/proc/{pid}/stat').read_text(errors='replace').rpartition(')')[2].split()[0]
    except OSError:
        return None


def born(pid: int) -> Optional[str]:
    """When a process started, in clock ticks since boot; None if there is none, or only a zombie."""
    with contextlib.suppress(OSError):
        values = Path(f'/proc/{pid}/stat').read_text(errors='replace').rpartition(')')[2].split()
        if values[0] not in 'ZX':
            return values[19]
    return None


def is_running(pid: int, since: str) -> Optional[bool]:
    """Whether a process runs.

    Args:
        pid: Its id, which may belong to another process by now.
        since: Result of ``born`` for the process.

    Returns:
        None if it cannot be seen: /proc may hide the processes of other users.
    """
    now = born(pid)
    if now is None and state(pid) is None:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return None
    return now == since


def session_leaders(parent: int) -> List[int]:
    """Children of a process that lead a session of their own."""
    return [row.pid for row in table() if row.parent == parent and row.session == row.pid]


def send(pids: List[int], signum: signal.Signals) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def kill_sessions(leaders: Collection[int], seconds: float = 10) -> None:
    """End at once everything that runs in some sessions, such as a rank with its loader processes.

    Args:
        leaders: Process ids of the session leaders, which may have ended.
        seconds: How long to wait until all have gone; a process may be stuck in its device's driver.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = [row.pid for row in table() if row.session in leaders]
        if not left:
            return
        send(left, signal.SIGKILL)
        time.sleep(0.05)
