"""Exit statuses of a training: their meaning, what to do, and whether another start can help.

This is the only table of them. Standard library only, Python 3.8 on.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Dict, FrozenSet, Optional


@dataclass(frozen=True)
class ExitStatus:
    """One exit status.

    Attributes:
        number: Exit status of the process.
        name: Short name.
        meaning: What has happened, in words.
        advice: What the user can do; empty if the process's own message says it.
        restart: Whether a new start from the newest checkpoint can help, so that ``--max_restarts`` applies.
    """

    number: int
    name: str
    meaning: str
    advice: str
    restart: bool


_CONTINUE = 'it wrote a checkpoint first, if it had begun to train; go on with --resume=1'

TABLE = (
    ExitStatus(
        65,  # BSD's EX_DATAERR
        'NONFINITE',
        'the loss or the gradient is not finite',
        'look at it with python tools/replay_step.py DUMP; go on with --resume=1 and a lower learning rate or '
        'without --amp, or pass over N such steps with --on_nan=skip:N',
        restart=False,
    ),
    ExitStatus(
        66,  # BSD's EX_NOINPUT
        'UNREADABLE',
        'an image or its labels cannot be read',
        'bring the file again and go on with --resume=1, or have N such images of the training on a card replaced with '
        '--on_bad_image=skip:N; all damaged files: python tools/cityscapes.py verify --data_path ROOT, or '
        'python tools/dataset.py verify FILE',
        restart=False,
    ),
    ExitStatus(
        69,  # BSD's EX_UNAVAILABLE
        'NO_RESTART',
        'the ranks cannot start again: no good checkpoint, or another machine does not come back',
        '',
        restart=False,
    ),
    ExitStatus(71, 'LOADER_DIED', 'a data loader process died', 'then go on with --resume=1', restart=True),  # EX_OSERR
    ExitStatus(124, 'HUNG', 'the ranks made no progress for --hang_timeout seconds', '', restart=True),  # as timeout(1)
    *(
        ExitStatus(128 + number, number.name, f'asked to stop by {number.name}', advice, restart=False)
        for number, advice in (
            (signal.SIGHUP, ''),
            (signal.SIGINT, ''),
            (signal.SIGTERM, _CONTINUE),
            (signal.SIGUSR1, _CONTINUE),
        )
    ),
)

BY_NUMBER: Dict[int, ExitStatus] = {status.number: status for status in TABLE}
_NUMBERS = {status.name: status.number for status in TABLE}
NONFINITE, UNREADABLE, NO_RESTART = _NUMBERS['NONFINITE'], _NUMBERS['UNREADABLE'], _NUMBERS['NO_RESTART']
LOADER_DIED, HUNG = _NUMBERS['LOADER_DIED'], _NUMBERS['HUNG']

# In subprocess's form; minus the signal is included, for a rank that a signal ended before it could handle it.
WITHOUT_RESTART: FrozenSet[int] = frozenset(
    code
    for status in TABLE
    if not status.restart
    for code in ((status.number, 128 - status.number) if status.number > 128 else (status.number,))
)


def advice(number: int) -> str:
    """What the user can do about an exit status, empty if nothing is known."""
    status: Optional[ExitStatus] = BY_NUMBER.get(number)
    return status.advice if status else ''
