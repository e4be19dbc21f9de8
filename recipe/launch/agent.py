"""Runs torchrun for ``ranks``: ``agent FD TORCHRUN_ARGUMENTS``.

Exit status 0: all ranks ended well. After each failed attempt the agent writes one line of JSON to file descriptor FD:

- ``failures``, the likeliest cause first, each with ``rank``, ``exitcode`` (negative: minus the signal) and ``folder``
  (which holds stdout.log and stderr.log);
- ``hang``: what the watchdog found, or null;
- ``pids`` of all ranks;
- ``again``: whether the ranks are started again.

If the status is not 0 and no line was written, torchrun itself failed; its log says why.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from recipe.core import processes
from recipe.core.exit_status import WITHOUT_RESTART
from recipe.launch import variables
from recipe.launch.pulse import Pulses
from recipe.launch.watchdog import Hang, Watchdog

GRACE_S = 5  # after a rank fails, the others get this long to end; they may hang in a collective


def _shorten_grace() -> None:
    """Give the other ranks GRACE_S after a failure. Not all versions of torchrun have an option for their 30 s."""
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    close = SubprocessContext._close

    def close_soon(self: Any, death_sig: signal.Signals, timeout: int = GRACE_S) -> None:
        close(self, death_sig, GRACE_S)

    SubprocessContext._close = close_soon  # type: ignore[method-assign]  # torchrun has no option for the grace


def causes_first(failures: Dict[int, Any], log_dir: Path, hung: Tuple[int, ...] = ()) -> List[Dict[str, Any]]:
    """Convert torchrun's failures to plain data, the likeliest cause first.

    torchrun records the second in which it saw a rank end. Within one second, failures are sorted by how the rank
    ended:

    - SIGTERM and SIGABRT are consequences: torchrun ends the other ranks with SIGTERM, and a collective aborts when a
      peer is gone.
    - Any other signal is a likelier cause than an exit status.
    - Exit status 1 is the least likely status: Python ends with it when a peer is lost.

    Args:
        failures: ``torch.distributed.elastic.multiprocessing.errors.ProcessFailure`` by rank.
        log_dir: torchrun's ``--log_dir``, used for this start only.
        hung: Local ranks that the watchdog has ended.
    """
    consequences = (-signal.SIGTERM, -signal.SIGABRT)

    def key(item: Tuple[int, Any]) -> Tuple[bool, int, bool, bool, bool]:
        failure = item[1]
        return (
            failure.local_rank not in hung,
            failure.timestamp,
            failure.exitcode in consequences,
            failure.exitcode > 0,
            failure.exitcode == 1,
        )

    return [
        {'rank': rank, 'exitcode': failure.exitcode, 'folder': str(_newest_log(log_dir, failure.local_rank))}
        for rank, failure in sorted(failures.items(), key=key)
    ]


def _newest_log(log_dir: Path, local_rank: int) -> Path:
    """Log folder of a rank in the last attempt; torchrun makes one for each attempt."""
    attempts = log_dir.glob(f'*/attempt_*/{local_rank}')
    return max(attempts, key=lambda folder: int(folder.parent.name.rpartition('_')[2]), default=log_dir)


class _Reporter:
    """Reports failed attempts, and stops torchrun from another attempt that cannot help.

    Args:
        fd: File descriptor that receives the lines.
        log_dir: torchrun's ``--log_dir``.
        pulses: Marks of the ranks.
        watchdog: None if there is no watchdog.

    Attributes:
        enough: Whether the launcher wants no further attempt.
    """

    def __init__(self, fd: int, log_dir: Path, pulses: Pulses, watchdog: Optional[Watchdog]) -> None:
        self.enough = False
        self._fd = fd
        self._log_dir = log_dir
        self._pulses = pulses
        self._watchdog = watchdog

    def on_signal(self, *_: object) -> None:
        """Note that the launcher was asked to end."""
        self.enough = True

    def hook_into_torchrun(self) -> None:
        """Have torchrun call this reporter after a failure, before it decides whether to restart."""
        from torch.distributed.elastic.agent.server import local_elastic_agent as module

        monitor = module.LocalElasticAgent._monitor_workers
        reporter = self

        def monitor_and_report(agent: Any, worker_group: Any) -> Any:
            result = monitor(agent, worker_group)
            if result.is_failed() and result.failures:
                agent._remaining_restarts = reporter._report(result.failures, agent._remaining_restarts)
            return result

        module.LocalElasticAgent._monitor_workers = monitor_and_report  # type: ignore[method-assign]  # no hook

    def _report(self, failures: Dict[int, Any], restarts_left: int) -> int:
        """Report a failed attempt after all its ranks have ended; returns how many attempts may follow."""
        hang: Optional[Hang] = self._watchdog.found if self._watchdog else None
        causes = causes_first(failures, self._log_dir, tuple(hang.ranks) if hang else ())
        if self.enough or causes[0]['exitcode'] in WITHOUT_RESTART:
            restarts_left = 0
        pids = [pulse.pid for pulse in self._pulses.read()]
        line = {
            'failures': causes,
            'hang': dataclasses.asdict(hang) if hang else None,
            'pids': pids,
            'again': restarts_left > 0,
        }
        os.write(self._fd, json.dumps(line).encode() + b'\n')
        if restarts_left:
            processes.kill_sessions(pids)  # ends loader processes, which frees memory and cards
            self._pulses.clear()
            if self._watchdog:
                self._watchdog.found = None
        return restarts_left


def main() -> int:
    """Entry point; see the module's docstring."""
    processes.die_with_parent(signal.SIGTERM, int(os.environ[variables.LAUNCHER_PID]))
    # A scheduler may send SIGUSR1 to all processes of a job. The ranks ignore it until they install a handler.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.environ[variables.AGENT_PID] = str(os.getpid())
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _shorten_grace()
    arguments = run.parse_args(sys.argv[2:])
    config, command, command_arguments = run.config_from_args(arguments)
    pulses = Pulses(config.nproc_per_node)
    hang_timeout_s = float(os.environ.get(variables.HANG_TIMEOUT_S, 0))
    watchdog = Watchdog(pulses, hang_timeout_s, config.max_nodes > 1) if hang_timeout_s else None
    reporter = _Reporter(int(sys.argv[1]), Path(arguments.log_dir), pulses, watchdog)
    reporter.hook_into_torchrun()
    signal.signal(processes.START_NOTHING_AGAIN, reporter.on_signal)
    if watchdog:
        watchdog.start()
    try:
        elastic_launch(config, command)(*command_arguments)
    except ChildFailedError:
        return 1
    except SignalException as error:
        return 128 + error.sigval
    return 0
