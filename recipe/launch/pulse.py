"""How the ranks of a machine show progress: each has a slot in memory that it shares with the agent.

This needs no disk, which may be full or gone, and a mark costs microseconds. Linux; standard library only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from dataclasses import dataclass
from typing import List, Optional

VARIABLE = 'RECIPE_PULSE'  # path of the shared memory
_SLOT = struct.Struct('<qdqq')  # pid, time.monotonic() of the mark, steps, slow


@dataclass(frozen=True)
class Pulse:
    """The last mark of one rank.

    Attributes:
        rank: Local rank.
        pid: Its process.
        at: ``time.monotonic()`` of the mark in seconds; all processes of a machine share this clock.
        steps: Stages of iterations entered so far. If the ranks hang, the one with the least is farthest back.
        slow: Whether the rank does something that may take much longer than an iteration.
    """

    rank: int
    pid: int
    at: float
    steps: int
    slow: bool


class Pulses:
    """The shared memory, on the agent's side.

    Args:
        ranks: Number of ranks on this machine.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._file = os.memfd_create('pulses')
        os.ftruncate(self._file, ranks * _SLOT.size)
        self._memory = mmap.mmap(self._file, ranks * _SLOT.size)
        os.environ[VARIABLE] = f'/proc/{os.getpid()}/fd/{self._file}'

    def read(self) -> List[Pulse]:
        """The last mark of each rank that has made one."""
        slots = [(rank, *_SLOT.unpack_from(self._memory, rank * _SLOT.size)) for rank in range(self._ranks)]
        return [Pulse(rank, pid, at, steps, bool(slow)) for rank, pid, at, steps, slow in slots if pid]

    def clear(self) -> None:
        """Forget all marks, before the ranks start again."""
        self._memory[:] = bytes(self._ranks * _SLOT.size)


class Heartbeat:
    """The slot of one rank, on that rank's side.

    Args:
        path: The shared memory; None if there is no watchdog.
        rank: Local rank.
    """

    def __init__(self, path: Optional[str], rank: int) -> None:
        self._memory: Optional[mmap.mmap] = None
        self._offset = rank * _SLOT.size
        self._steps = 0
        # The memory of another user's process cannot be opened: then there is no watchdog.
        with contextlib.suppress(OSError):
            if path:
                with open(path, 'r+b') as file:
                    self._memory = mmap.mmap(file.fileno(), 0)

    @classmethod
    def of_this_rank(cls) -> Heartbeat:
        """The slot that the environment variables name."""
        return cls(os.environ.get(VARIABLE), int(os.environ.get('LOCAL_RANK', '0')))

    def mark(self, step: bool = False, slow: bool = False) -> None:
        """Show that the rank makes progress.

        Args:
            step: Whether a stage of an iteration is entered; all ranks enter the stages in the same order.
            slow: Whether the next stage may take much longer than an iteration.
        """
        self._steps += step
        if self._memory is not None:
            _SLOT.pack_into(self._memory, self._offset, os.getpid(), time.monotonic(), self._steps, slow)
