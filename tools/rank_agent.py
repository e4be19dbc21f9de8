"""Runs torchrun for ranks.py: ``rank_agent.py OUTCOME.json TORCHRUN_ARGUMENTS``.

Exit status 0: all ranks ended well. Otherwise OUTCOME.json holds the ranks that failed, the first one first, each with
``rank``, ``exitcode`` (negative: minus the signal) and ``folder`` (of its stdout.log and stderr.log). No such file:
torchrun itself failed, and its words are in its log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import processes

GRACE_S = 5  # after one rank has failed, the others, which may hang in a collective, have this long to end


def _shorten_grace() -> None:
    """Give the other ranks GRACE_S after a failure; torchrun's own 30 s cannot be set in all versions."""
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    close = SubprocessContext._close

    def close_soon(self: Any, death_sig: signal.Signals, timeout: int = GRACE_S) -> None:
        close(self, death_sig, GRACE_S)

    SubprocessContext._close = close_soon


def causes_first(failures: Dict[int, Any], log_dir: Path) -> List[Dict[str, Any]]:
    """Failures of torchrun as plain data, the likeliest cause first.

    torchrun knows to the second when it saw a rank end. Ranks of the same second are told apart by how they ended:
    SIGTERM comes from torchrun, which ends the other ranks, and SIGABRT is how a collective gives up on a peer that is
    gone; any other signal is a cause rather than an exit status, and of these 1 is how Python reports a lost peer.

    Args:
        failures: ``torch.distributed.elastic.multiprocessing.errors.ProcessFailure`` by rank.
        log_dir: torchrun's ``--log_dir``, used for this start alone.
    """
    consequences = (-signal.SIGTERM, -signal.SIGABRT)

    def key(item: Tuple[int, Any]) -> Tuple[int, bool, bool, bool]:
        code = item[1].exitcode
        return item[1].timestamp, code in consequences, code > 0, code == 1

    return [
        {
            'rank': rank,
            'exitcode': failure.exitcode,
            'folder': str(next(log_dir.glob(f'*/attempt_0/{failure.local_rank}'), log_dir)),
        }
        for rank, failure in sorted(failures.items(), key=key)
    ]


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
    outcome, arguments = Path(sys.argv[1]), run.parse_args(sys.argv[2:])
    config, command, command_arguments = run.config_from_args(arguments)
    try:
        elastic_launch(config, command)(*command_arguments)
    except ChildFailedError as error:
        outcome.write_text(json.dumps(causes_first(error.failures, Path(arguments.log_dir))), encoding='utf-8')
        return 1
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == '__main__':
    sys.exit(main())
