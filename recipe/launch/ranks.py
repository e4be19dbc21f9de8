"""Starts the ranks of one machine through torchrun, passes signals on, and names the rank that failed first."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from recipe.core import clean_environment, paths, processes
from recipe.core.exit_status import HUNG
from recipe.launch import variables

PATIENCE_S = 300  # to write a checkpoint after SIGTERM; shared storage may be slow
LAST_LINES = 20
# How an error begins on stderr: of Python, of its crash handler, of the trainer and of C++.
_ERRORS = ('Traceback (most recent call last)', 'Fatal Python error', 'error: ', 'terminate called')
_ERROR_LINES = 200  # a traceback may be followed by others and by warnings
_LOOK_S = 0.5


@dataclass(frozen=True)
class Failure:
    """What ended the job, or one attempt of it.

    Attributes:
        what: One phrase that names the rank: ``rank 1 was killed by signal 9 (SIGKILL)``.
        log: File to look into.
        status: Exit status for the shell: the rank's own, or 128 + the signal that ended it.
        last_lines: End of the log; for a rank that hung, its stack.
        again: Whether the ranks were started again.
        pids: Processes of the ranks of this machine, as far as known.
    """

    what: str
    log: Path
    status: int
    last_lines: List[str]
    again: bool = False
    pids: Sequence[int] = ()


class Ranks:
    """The ranks of one machine.

    Args:
        arguments: Arguments of torchrun, up to the script and its own arguments, without ``--log_dir``.
        log_dir: A new folder for torchrun's log and each rank's stdout.log and stderr.log.
        env: Additional environment variables.
        keep: File descriptors that stay open until torchrun has ended, even if this process ends first.
    """

    def __init__(self, arguments: Sequence[str], log_dir: Path, env: Dict[str, str], keep: Sequence[int] = ()) -> None:
        self.log_dir = log_dir
        self._log = log_dir / 'torchrun.log'
        log_dir.mkdir(parents=True)
        self._reports, writing = os.pipe()  # a pipe, not a file: the failure may be a full disk
        os.set_blocking(self._reports, False)
        command = [sys.executable, str(paths.PACKAGE), 'agent', str(writing), f'--log_dir={log_dir}']
        with self._log.open('wb') as log:
            self._agent = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(writing, *keep),
                env={**clean_environment.for_ranks(), **env, variables.LAUNCHER_PID: str(os.getpid())},
            )
        os.close(writing)
        self._unread = b''
        self._failures: List[Failure] = []
        self._leaders: Set[int] = set()  # ranks seen so far, including those that have ended
        self._told: Set[int] = set()  # ranks that were asked to end
        self._asked: Optional[signal.Signals] = None
        self._deadline = float('inf')

    @staticmethod
    def arguments(nproc: int, nnodes: int, node_rank: int, address: str, port: int, restarts: int = 0) -> List[str]:
        """Torchrun's options for ranks that ``start`` starts; the name and the arguments of their program follow.

        Args:
            nproc: Ranks on this machine.
            nnodes: Machines.
            node_rank: Number of this machine.
            address: IPv4 address of machine 0.
            port: Of its store.
            restarts: How often failed ranks are started again.
        """
        return [
            f'--nproc_per_node={nproc}',
            f'--nnodes={nnodes}',
            f'--node_rank={node_rank}',
            f'--master_addr={address}',
            f'--master_port={port}',
            '--redirects=3',
            '--monitor_interval=0.1',
            f'--max_restarts={restarts}',
            str(paths.PACKAGE),
            'start',
            str(paths.PACKAGE),
        ]

    def wait(self, look: Callable[[], None], on_failure: Callable[[Failure], None] = lambda failure: None) -> int:
        """Wait until all ranks have ended. SIGINT, SIGTERM, SIGUSR1 and SIGHUP are passed on meanwhile.

        The first signal asks the ranks to end (they write a checkpoint); a second one ends them at once.

        Args:
            look: Called about twice a second.
            on_failure: Called soon after each failed attempt, with its failure.

        Returns:
            0, or the exit status for the launcher: ``Failure.status``, or 128 + signal after a signal.
        """
        try:
            with self._signals():
                while self._agent.poll() is None:
                    self._leaders.update(processes.session_leaders(self._agent.pid))
                    if self._asked is not None:
                        self._ask_to_end()  # ranks that were started again meanwhile
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._agent.wait(_LOOK_S)
                    look()
                    for failure in self._new_failures():
                        on_failure(failure)
                    if time.monotonic() > self._deadline:
                        self._kill()
        finally:
            self._kill()
        if self._asked is not None:
            return 128 + self._asked
        cause = self.failure()
        return cause.status if cause else 0

    @property
    def asked_to_end(self) -> Optional[signal.Signals]:
        """The signal that was passed on, if any."""
        return self._asked

    def failure(self) -> Optional[Failure]:
        """The first failure of the attempt that ended the job; None if nothing failed."""
        status = self._agent.poll()
        if status == 0:
            return None
        self._new_failures()
        if self._failures:
            return self._failures[-1]
        lines = tail(self._log)
        why = f': {lines[-1].strip()[:300]}' if lines else ''
        return Failure(f'torchrun ended with status {status}{why}', self._log, 1, lines)

    def _new_failures(self) -> List[Failure]:
        """Attempts that have failed since the last call."""
        with contextlib.suppress(BlockingIOError):
            for block in iter(lambda: os.read(self._reports, 1 << 16), b''):
                self._unread += block
        *lines, self._unread = self._unread.split(b'\n')
        new = [_failure(json.loads(line)) for line in lines]
        self._failures += new
        return new

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        handled = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup the training outlives its terminal
            handled.append(signal.SIGHUP)
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
        processes.send([self._agent.pid], processes.START_NOTHING_AGAIN)
        self._ask_to_end()

    def _ask_to_end(self) -> None:
        """Ask the ranks to end that were not asked yet."""
        # Not through torchrun: it would signal the loader processes too, and allow the ranks 30 s only. Always SIGTERM:
        # it also ends a rank that has not begun to train.
        new = set(processes.session_leaders(self._agent.pid) or [self._agent.pid]) - self._told
        self._told |= new
        processes.send(list(new), signal.SIGTERM)

    def _kill(self) -> None:
        """End all that is left at once: torchrun, the ranks, their loader processes."""
        self._leaders.update(processes.session_leaders(self._agent.pid))
        if self._agent.poll() is None:
            self._agent.kill()
            self._agent.wait()
        processes.kill_sessions({*self._leaders, self._agent.pid})


def _failure(report: Dict[str, Any]) -> Failure:
    """Convert one report of the agent."""
    first, hang = report['failures'][0], report['hang']
    code = int(first['exitcode'])
    log = log_with_cause(Path(first['folder']))
    rank, lines = f'rank {first["rank"]}', tail(log)
    if hang is None:
        what = f'{rank} ' + (f'ended with exit status {code}' if code > 0 else _killed_by(-code))
    else:
        what, lines = _hung(rank, hang, stack(tail(log, 400)) or lines)
        code = HUNG
    return Failure(what, log, code if code > 0 else 128 - code, lines, report['again'], report['pids'])


def _hung(rank: str, hang: Dict[str, Any], lines: List[str]) -> Tuple[str, List[str]]:
    """Describe what the watchdog found, with the stack to show."""
    since = f'nothing went on for {hang["seconds"]:.0f} s (--hang_timeout)'
    if hang['stopped']:
        return f'{rank} was stopped by a signal (SIGSTOP or a debugger): {since}', lines
    if hang['all_ranks'] and len(hang['ranks']) > 1:
        return f'all ranks hang, {rank} among them: {since}; the stacks are in their logs', lines
    return f'{rank} hangs: {since}', lines


def stack(lines: List[str]) -> List[str]:
    """The main thread's stack in faulthandler's last output, innermost call first; empty if there is none.

    Args:
        lines: End of a rank's log.
    """
    starts = [number for number, line in enumerate(lines) if line.startswith(('Current thread ', 'Thread '))]
    if not starts:
        return []
    # The main thread is the oldest, which comes last. "Current thread" is the one that took the signal; in a stopped
    # process that may be any thread.
    calls = itertools.takewhile(lambda line: line.startswith('  File '), lines[starts[-1] + 1 :])
    return list(calls)[:LAST_LINES]


def _killed_by(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = 'unknown'
    hint = ', often for want of memory' if number == signal.SIGKILL else ''
    return f'was killed by signal {number} ({name}{hint})'


def log_with_cause(folder: Path) -> Path:
    """The log of a rank that says why it ended, or its folder if it has none.

    That is stderr.log if it holds an error, else the one that was written last. The two are often written in the same
    moment, and some file systems keep times in whole seconds; then stderr.log is taken.
    """
    logs = [log for log in folder.glob('std*.log') if log.stat().st_size]

    def key(log: Path) -> Tuple[bool, int, bool]:
        is_stderr = log.name == 'stderr.log'
        return is_stderr and _holds_error(log), log.stat().st_mtime_ns, is_stderr

    return max(logs, key=key, default=folder)


def _holds_error(log: Path) -> bool:
    return any(line.startswith(_ERRORS) for line in tail(log, _ERROR_LINES))


def tail(path: Path, lines: int = LAST_LINES) -> List[str]:
    """The last lines of a text file, without reading more than its end.

    Args:
        path: The result is empty if it is not a file.
        lines: At most this many, none empty.
    """
    if not path.is_file():
        return []
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - 64 * 1024))
        text = file.read().decode('utf-8', 'replace')
    return [line for line in text.splitlines() if line.strip()][-lines:]
