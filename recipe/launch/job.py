"""Starts the ranks of this machine for a plan, waits for their end and says why they failed."""

from __future__ import annotations

import datetime
import signal
from pathlib import Path
from typing import Callable, Optional, Sequence

from recipe.core import console, exit_status, network, run_folder, run_lock, temporary
from recipe.engine import devices
from recipe.launch import interrupts, ranks, restarts, run_log, variables
from recipe.launch.plan import Plan


def run(
    plan: Plan,
    program: Sequence[str],
    lock: run_lock.RunLock,
    look: Callable[[], None],
    goes_on: str = restarts.GOES_ON,
    advice: Callable[[int], str] = exit_status.advice,
    logs: Sequence[Path] = (),
) -> Optional[signal.Signals]:
    """Run the ranks of this machine to their end.

    Args:
        plan: What to run.
        program: Name and arguments of the program of each rank, see ``recipe/__main__.py``.
        lock: Lock of ``plan.own_folder``.
        look: Called about twice a second.
        goes_on: What the next attempt goes on from, for the message about a failed one.
        advice: What to do about an exit status of a rank.
        logs: Files to which all that the ranks print is added.

    Returns:
        The signal that ended the ranks, None if they ended by themselves.

    Raises:
        console.UserError: A rank failed; carries the exit status.
    """
    asked, folder = plan.options, plan.own_folder
    addr = network.resolve(asked.master_addr) if asked.master_addr else network.LOCAL
    port = asked.master_port or network.free_port()
    arguments = ranks.Ranks.arguments(plan.nproc, asked.nnodes, asked.node_rank or 0, addr, port, asked.max_restarts)
    log_dir = folder / run_folder.LOGS / datetime.datetime.now().strftime('%Y%m%d_%H%M%S_%f')
    env = {
        **devices.rank_environment(plan.device, plan.nproc, addr, asked.nnodes > 1),
        **restarts.environment(plan.device, asked.hang_timeout),
        variables.SOCKETS: str(temporary.sockets()),
    }
    with interrupts.caught(interrupts.BEFORE):
        started = ranks.Ranks([*arguments, *program], log_dir, env, keep=(lock.descriptor,))

    attempts = restarts.Restarts(folder, log_dir, asked.max_restarts, goes_on, advice)
    with run_log.RunLog(logs, log_dir, (asked.node_rank or 0) * plan.nproc) as collected:

        def look_at_all() -> None:
            lock.require_held()
            look()
            collected.look()

        started.wait(look_at_all, attempts.note)
    if started.asked_to_end is not None:
        return started.asked_to_end
    failure = started.failure()
    if failure is not None:
        for line in failure.last_lines:
            console.show(line)
        raise console.UserError(attempts.describe(failure), status=failure.status)
    return None
