"""What an exit status of a training means and what to do, in words."""

from __future__ import annotations

import signal
from typing import Dict

from recipe.launch.ranks import Failure, tail

# Of the patched trainer: mmseg/engine/exit_status.py.
NONFINITE, UNREADABLE, LOADER_DIED = 65, 66, 71
ADVICE: Dict[int, str] = {
    NONFINITE: 'look at it with python tools/replay_step.py DUMP; go on with --resume=1 and a lower learning rate or '
    'without --amp, or pass over N such steps with --on_nan=skip:N',
    UNREADABLE: 'bring the file again (python tools/cityscapes.py verify names all that are damaged) and go on with '
    '--resume=1, or have N such images of the training on a card replaced with --on_bad_image=skip:N',
    LOADER_DIED: 'then go on with --resume=1',
    128 + signal.SIGTERM: 'it wrote a checkpoint first, if it had begun to train; go on with --resume=1',
    128 + signal.SIGUSR1: 'it wrote a checkpoint first, if it had begun to train; go on with --resume=1',
}


def explain(failure: Failure) -> str:
    """Say in one line what ended a training and what to do.

    Args:
        failure: The rank's last line on stderr that begins with ``error:`` says what was wrong. Of its two logs,
            written in one moment, ``failure.log`` may be the other one.
    """
    lines = failure.last_lines + tail(failure.log.with_name('stderr.log'))
    said = [line[len('error: ') :] for line in lines if line.startswith('error: ')]
    parts = [failure.what, *said[-1:], ADVICE.get(failure.status, '')]
    return ': '.join(parts[:2]) + (f'; {parts[-1]}' if parts[-1] else '') if said else '; '.join(filter(None, parts))
