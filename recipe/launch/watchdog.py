"""Ends a job whose ranks hang, and names the ranks that the others wait for."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence

from recipe.core import processes
from recipe.launch.pulse import Pulse, Pulses

DUMP = signal.SIGUSR2  # on this signal a rank writes the Python stacks of its threads to stderr; see ``trainer``
SLOW = 4  # factor on the timeout while a rank starts, compiles or writes checkpoints
DUMP_S = 2  # to write the stacks


@dataclass(frozen=True)
class Hang:
    """A job whose ranks hang.

    Attributes:
        ranks: Local ranks that are farthest back.
        all_ranks: Whether no rank is farther back than another.
        seconds: Since the last mark of any rank.
        stopped: Whether these ranks were stopped by a signal.
    """

    ranks: List[int]
    all_ranks: bool
    seconds: float
    stopped: bool


def find_hang(
    pulses: Sequence[Pulse], now: float, timeout_s: float, state: Callable[[int], Optional[str]] = processes.state
) -> Optional[Hang]:
    """Judge whether the ranks of this machine hang.

    As long as one rank is within its timeout, the others may be waiting for it.

    Args:
        pulses: Last mark of each rank.
        now: ``time.monotonic()``.
        timeout_s: Seconds without a mark; ``SLOW`` times as long if the mark is slow.
        state: Gives the kernel's letter for a process, or None if it has ended.

    Returns:
        None as long as all may be well.
    """
    states = {pulse.rank: state(pulse.pid) for pulse in pulses}
    pulses = [pulse for pulse in pulses if states[pulse.rank] not in (None, 'Z', 'X')]
    if not pulses or any(now - pulse.at <= timeout_s * (SLOW if pulse.slow else 1) for pulse in pulses):
        return None
    # A rank that is stopped while it computes may have entered as many stages as the ranks that wait for it.
    stopped = [pulse.rank for pulse in pulses if states[pulse.rank] in ('T', 't')]
    least = min(pulse.steps for pulse in pulses)
    behind = stopped or [pulse.rank for pulse in pulses if pulse.steps == least]
    return Hang(behind, len(behind) == len(pulses), now - max(pulse.at for pulse in pulses), bool(stopped))


class Watchdog(threading.Thread):
    """Checks the ranks at intervals; ends those that hang, after all ranks have written their stacks.

    Args:
        pulses: Holds the marks of the ranks.
        timeout_s: As for ``find_hang``.
        several_machines: Whether the ranks of this machine may wait for ranks of other machines.
    """

    def __init__(self, pulses: Pulses, timeout_s: float, several_machines: bool) -> None:
        super().__init__(daemon=True)
        self.found: Optional[Hang] = None
        self._pulses = pulses
        self._timeout_s = timeout_s
        self._several_machines = several_machines

    def run(self) -> None:
        """Watch until the process ends."""
        while True:
            time.sleep(min(1, self._timeout_s / 5))
            if self.found is None:
                pulses = self._pulses.read()
                hang = find_hang(pulses, time.monotonic(), self._timeout_s)
                # If another machine's rank is the cause, that machine's watchdog gets the time to name it first.
                patience = 1.25 if hang and hang.all_ranks and self._several_machines and not hang.stopped else 1
                if hang and find_hang(pulses, time.monotonic(), patience * self._timeout_s):
                    self._end(pulses, hang)

    def _end(self, pulses: Sequence[Pulse], hang: Hang) -> None:
        pids = [pulse.pid for pulse in pulses]
        processes.send(pids, DUMP)
        processes.send(pids, signal.SIGCONT)  # a stopped one writes its stacks as well
        time.sleep(DUMP_S)
        self.found = hang
        # The others fail because of it, or torchrun ends them.
        processes.send([pulse.pid for pulse in pulses if pulse.rank in hang.ranks], signal.SIGKILL)
