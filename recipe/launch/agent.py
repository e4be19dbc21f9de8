"""Runs torchrun for ``ranks``: ``agent FD TORCHRUN_ARGUMENTS``.

Exit status 0: all ranks ended well. Each time that ranks have failed, a line of JSON goes to the file descriptor FD:
``failures``, the first one first, each with ``rank``, ``exitcode`` (negative: minus the signal) and ``folder`` (of its
stdout.log and stderr.log), ``hang`` (what the watchdog found, or null), ``pids`` of all ranks, and ``again``, whether
they are started again. Not 0 and no such line: torchrun itself failed, and its words are in its log.
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
from recipe.launch.pulse import Pulses
from recipe.launch.watchdog import Hang, Watchdog

GRACE_S = 5  # after one rank has failed, the others, which may hang in a collective, have this long to end
HANG_VARIABLE = 'RECIPE_HANG_TIMEOUT_S'  # 0 or not set: no watchdog


def _shorten_grace() -> None:
    """Give the other ranks GRACE_S after a failure; torchrun's own 30 s cannot be set in all versions."""
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    close = SubprocessContext._close

    def close_soon(self: Any, death_sig: signal.Signals, timeout: int = GRACE_S) -> None:
        close(self, death_sig, GRACE_S)

    SubprocessContext._close = close_soon  # type: ignore[method-assign]  # torchrun has no option for the grace


def causes_first(failures: Dict[int, Any], log_dir: Path, hung: Tuple[int, ...] = ()) -> List[Dict[str, Any]]:
    """Failures of torchrun as plain data, the likeliest cause first.

    torchrun knows to the second when it saw a rank end. Ranks of the same second are told apart by how they ended:
    SIGTERM comes from torchrun, which ends the other ranks, and SIGABRT is how a collective gives up on a peer that is
    gone; any other signal is a cause rather than an exit status, and of these 1 is how Python reports a lost peer.

    Args:
        failures: ``torch.distributed.elastic.multiprocessing.errors.ProcessFailure`` by rank.
        log_dir: torchrun's ``--log_dir``, used for this start alone.
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
    """Folder of a rank's logs in the last attempt; torchrun makes one for each."""
    attempts = log_dir.glob(f'*/attempt_*/{local_rank}')
    return max(attempts, key=lambda folder: int(folder.parent.name.rpartition('_')[2]), default=log_dir)


class _Reporter:
    """Reports failed attempts, and has torchrun start no further one where that is of no use.

    Args:
        fd: Where the lines go.
        log_dir: torchrun's ``--log_dir``.
        pulses: Marks of the ranks.
        watchdog: None where nobody watches.

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
        """The launcher was asked to end."""
        self.enough = True

    def hook_into_torchrun(self) -> None:
        """Be told when ranks have failed, before torchrun decides what to do."""
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
        """Report an attempt, of which no rank runs any more; returns how many more there may be."""
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
            processes.kill_sessions(pids)  # loader processes; memory and cards have to be free
            self._pulses.clear()
            if self._watchdog:
                self._watchdog.found = None
        return restarts_left


def main() -> int:
    """Entry point; see the module's docstring."""
    processes.die_with_parent(signal.SIGTERM, int(os.environ['RECIPE_LAUNCHER_PID']))
    # A scheduler may send it to all processes of a job; ranks inherit this until they have a handler.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.environ['RECIPE_AGENT_PID'] = str(os.getpid())
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _shorten_grace()
    arguments = run.parse_args(sys.argv[2:])
    config, command, command_arguments = run.config_from_args(arguments)
    pulses = Pulses(config.nproc_per_node)
    hang_timeout_s = float(os.environ.get(HANG_VARIABLE, 0))
    watchdog = Watchdog(pulses, hang_timeout_s, config.max_nodes > 1) if hang_timeout_s else None
    reporter = _Reporter(int(sys.argv[1]), Path(arguments.log_dir), pulses, watchdog)
    reporter.hook_into_torchrun()
    signal.signal(processes.ENOUGH, reporter.on_signal)
    if watchdog:
        watchdog.start()
    try:
        elastic_launch(config, command)(*command_arguments)
    except ChildFailedError:
        return 1
    except SignalException as error:
        return 128 + error.sigval
    return 0
