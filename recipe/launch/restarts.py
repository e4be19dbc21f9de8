"""Messages of the launcher about ranks that fail or hang, and about their restart."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Optional

from recipe.core import console, exit_status
from recipe.launch import failure_archive, variables
from recipe.launch.ranks import Failure, tail

# Less than NCCL's timeout of a collective (600 s): after that, the ranks that wait would fail instead of the one that
# hangs. An iteration takes seconds on cards and may take minutes on a CPU; gloo waits for 1800 s.
HANG_TIMEOUT_S = {'npu': 480, 'cuda': 480, 'cpu': 1500}
GOES_ON = 'goes on from the newest good checkpoint'
_TO_START_S = 600  # for another machine's ranks to start, once they have ended


def environment(device: str, hang_timeout_s: Optional[int]) -> Dict[str, str]:
    """Environment variables for the agent and the ranks.

    Args:
        device: ``npu``, ``cuda`` or ``cpu``.
        hang_timeout_s: Value of ``--hang_timeout`` in seconds.
    """
    seconds = HANG_TIMEOUT_S[device] if hang_timeout_s is None else hang_timeout_s
    return {variables.HANG_TIMEOUT_S: str(seconds), variables.RESTART_PATIENCE_S: str(seconds + _TO_START_S)}


class Restarts:
    """Describes failed attempts, and reports those that another one follows.

    Args:
        folder: Folder of this machine's run files.
        log_dir: torchrun's folder.
        most: ``--max_restarts``.
        goes_on: What the next attempt does.
        advice: What to do about an exit status.
    """

    def __init__(
        self,
        folder: Path,
        log_dir: Path,
        most: int,
        goes_on: str = GOES_ON,
        advice: Callable[[int], str] = exit_status.advice,
    ) -> None:
        self._folder = folder
        self._log_dir = log_dir
        self._most = most
        self._goes_on = goes_on
        self._advice = advice
        self._count = 0

    def note(self, failure: Failure) -> None:
        """Print that an attempt has failed, unless the job ends with it."""
        if failure.again:
            self._count += 1
            console.warn(f'{self.describe(failure)}; restart {self._count} of {self._most} {self._goes_on}')

    def describe(self, failure: Failure) -> str:
        """Describe a failure in one line, with its log and an archive of the files that explain it."""
        try:
            kept = f'for a report: {failure_archive.write(self._folder, self._log_dir, failure)}'
        except OSError as error:
            kept = f'its archive could not be written ({console.reason(error)})'
        return f'{explain(failure, self._advice)}; {kept}; log: {failure.log}'


def explain(failure: Failure, advice: Callable[[int], str] = exit_status.advice) -> str:
    """Say in one line what ended the ranks and what to do.

    Args:
        failure: The rank's last ``error:`` line on stderr says what was wrong.
        advice: What to do about an exit status.
    """
    lines = failure.last_lines + tail(failure.log.with_name('stderr.log'))
    said = [line[len('error: ') :] for line in lines if line.startswith('error: ')]
    parts = [failure.what, *said[-1:], advice(failure.status)]
    return ': '.join(parts[:2]) + (f'; {parts[-1]}' if parts[-1] else '') if said else '; '.join(filter(None, parts))
