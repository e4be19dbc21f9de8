"""Starts the ranks of one machine through torchrun, passes signals on, and says which rank failed first."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Set

import processes

TOOLS = Path(__file__).resolve().parent
PATIENCE_S = 300  # to write a checkpoint after SIGTERM; a shared storage may be slow
LAST_LINES = 20
_LOOK_S = 0.5


@dataclass(frozen=True)
class Failure:
    """What ended the job.

    Attributes:
        what: In words, names the rank: ``rank 1 was killed by signal 9 (SIGKILL)``.
        log: File to look into.
        status: For the shell: the rank's exit status, or 128 + the signal that ended it.
        last_lines: End of that file.
    """

    what: str
    log: Path
    status: int
    last_lines: List[str]


class Ranks:
    """The ranks of one machine.

    Args:
        arguments: Of torchrun, up to the script and its own arguments, without ``--log_dir``.
        log_dir: A new folder for torchrun's log and each rank's stdout.log and stderr.log.
        env: Additional environment variables.
    """

    def __init__(self, arguments: Sequence[str], log_dir: Path, env: Dict[str, str]) -> None:
        self.log_dir = log_dir
        self._outcome = log_dir / 'outcome.json'
        self._log = log_dir / 'torchrun.log'
        log_dir.mkdir(parents=True)
        command = [sys.executable, str(TOOLS / 'rank_agent.py'), str(self._outcome), f'--log_dir={log_dir}']
        with self._log.open('wb') as log:
            self._agent = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **env, 'RECIPE_LAUNCHER_PID': str(os.getpid())},
            )
        self._leaders: Set[int] = set()  # ranks that were seen, also those that have ended since
        self._asked: Optional[signal.Signals] = None
        self._deadline = float('inf')

    def wait(self, look: Callable[[], None]) -> int:
        """Wait until all ranks have ended; SIGINT, SIGTERM, SIGUSR1 and SIGHUP are passed on meanwhile.

        The first signal asks the ranks to end (they write a checkpoint), a second one ends them at once.

        Args:
            look: Called about twice a second.

        Returns:
            0, or the exit status that the launcher should have: see ``Failure.status``; 128 + signal after a signal.
        """
        try:
            with self._signals():
                while self._agent.poll() is None:
                    self._leaders.update(processes.session_leaders(self._agent.pid))
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._agent.wait(_LOOK_S)
                    look()
                    if time.monotonic() > self._deadline:
                        self._kill()
        finally:
            self._kill()
        if self._asked is not None:
            return 128 + self._asked
        failure = self.failure()
        return failure.status if failure else 0

    @property
    def asked_to_end(self) -> Optional[signal.Signals]:
        """The signal that was passed on, if any."""
        return self._asked

    def failure(self) -> Optional[Failure]:
        """What went wrong first, None if nothing did."""
        status = self._agent.poll()
        if status == 0:
            return None
        if not self._outcome.is_file():
            return Failure(f'torchrun ended with status {status}', self._log, 1, tail(self._log))
        first = json.loads(self._outcome.read_text(encoding='utf-8'))[0]
        code = int(first['exitcode'])
        log = _last_written(Path(first['folder']))
        what = f'rank {first["rank"]} ' + (f'ended with exit status {code}' if code > 0 else _killed_by(-code))
        return Failure(what, log, code if code > 0 else 128 - code, tail(log))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
        before = {signum: signal.signal(signum, self._on_signal) for signum in handled}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _on_signal(self, number: int, _: object) -> None:
        if self._asked is not None:
            self._deadline = 0.0
            return
        self._asked = signal.Signals(number)
        self._deadline = time.monotonic() + PATIENCE_S
        # Not through torchrun: it would signal the loader processes too, and have the ranks' patience at 30 s. SIGTERM,
        # whichever it was: that also ends a rank that has not come to its training yet.
        processes.send(processes.session_leaders(self._agent.pid) or [self._agent.pid], signal.SIGTERM)

    def _kill(self) -> None:
        """End what is left at once: torchrun, the ranks, their loader processes."""
        self._leaders.update(processes.session_leaders(self._agent.pid))
        if self._agent.poll() is None:
            self._agent.kill()
            self._agent.wait()
        processes.kill_sessions({*self._leaders, self._agent.pid})


def _killed_by(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = 'unknown'
    hint = ', often for want of memory' if number == signal.SIGKILL else ''
    return f'was killed by signal {number} ({name}{hint})'


def _last_written(folder: Path) -> Path:
    """Of a rank's two logs the one that it wrote to last; a folder without logs stands for itself."""
    logs = [log for log in folder.glob('std*.log') if log.stat().st_size]
    return max(logs, key=lambda log: log.stat().st_mtime_ns, default=folder)


def tail(path: Path, lines: int = LAST_LINES) -> List[str]:
    """The last lines of a text file, without reading more than its end.

    Args:
        path: Empty result where it is no file.
        lines: At most that many, none empty.
    """
    if not path.is_file():
        return []
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - 64 * 1024))
        text = file.read().decode('utf-8', 'replace')
    return [line for line in text.splitlines() if line.strip()][-lines:]
