"""What the launcher says of ranks that fail or hang, and of their starting again."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional

from recipe.core import console, exit_status
from recipe.launch import failure_archive
from recipe.launch.ranks import Failure, tail

# Before NCCL gives up on a collective (600 s), whose ranks would then be the ones that fail, not the one that hangs.
# An iteration on cards takes seconds, one on a CPU may take minutes, and gloo waits for 1800 s.
HANG_TIMEOUT_S = {'npu': 480, 'cuda': 480, 'cpu': 1500}
_TO_START_S = 600  # another machine's ranks, once they have ended


def environment(device: str, hang_timeout_s: Optional[int]) -> Dict[str, str]:
    """What the agent and the ranks need to know.

    Args:
        device: ``npu``, ``cuda`` or ``cpu``.
        hang_timeout_s: What ``--hang_timeout`` says.
    """
    seconds = HANG_TIMEOUT_S[device] if hang_timeout_s is None else hang_timeout_s
    return {'RECIPE_HANG_TIMEOUT_S': str(seconds), 'RECIPE_RESTART_PATIENCE_S': str(seconds + _TO_START_S)}


class Restarts:
    """Tells of attempts that have failed while the next one starts.

    Args:
        folder: Of this machine's run files.
        log_dir: torchrun's folder.
        most: ``--max_restarts``.
    """

    def __init__(self, folder: Path, log_dir: Path, most: int) -> None:
        self._folder = folder
        self._log_dir = log_dir
        self._most = most
        self._count = 0

    def note(self, failure: Failure) -> None:
        """Say that an attempt has failed, unless the job ends with it."""
        if failure.again:
            self._count += 1
            console.warn(
                f'{describe(self._folder, self._log_dir, failure)}; restart {self._count} of {self._most} goes on from '
                'the newest good checkpoint'
            )


def describe(folder: Path, log_dir: Path, failure: Failure) -> str:
    """A failure in one line, with its log and an archive of all that explains it.

    Args:
        folder: Of this machine's run files; the archive goes there.
        log_dir: torchrun's folder.
        failure: What happened.
    """
    try:
        kept = f'for a report: {failure_archive.write(folder, log_dir, failure)}'
    except OSError as error:
        kept = f'its archive could not be written ({error.strerror})'
    return f'{explain(failure)}; {kept}; log: {failure.log}'


def explain(failure: Failure) -> str:
    """Say in one line what ended a training and what to do.

    Args:
        failure: The rank's last line on stderr that begins with ``error:`` says what was wrong. Of its two logs,
            written in one moment, ``failure.log`` may be the other one.
    """
    lines = failure.last_lines + tail(failure.log.with_name('stderr.log'))
    said = [line[len('error: ') :] for line in lines if line.startswith('error: ')]
    parts = [failure.what, *said[-1:], exit_status.advice(failure.status)]
    return ': '.join(parts[:2]) + (f'; {parts[-1]}' if parts[-1] else '') if said else '; '.join(filter(None, parts))
