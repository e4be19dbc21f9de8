"""Can the cards communicate? A small all-reduce, started through torchrun as the training will be."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List

from recipe.core import console, network, temporary
from recipe.doctor.finding import FAILURE, OK, WARNING, Finding
from recipe.doctor.subject import Subject
from recipe.engine import devices
from recipe.launch import interrupts, ranks

SIZE_BYTES = 4 << 20
REPETITIONS = 5
PATIENCE_S = 180  # from the start of torchrun; loading an NPU's libraries takes a while
CLOCKS_APART_S = 5  # all clocks are read at one barrier, so starting the machines by hand adds no difference
_SEE = {
    'npu': 'HCCL: EI0006 is a time-out, EI0015 the wrong network interface; plog files: ~/ascend/log',
    'cuda': 'start again with NCCL_DEBUG=INFO to see where it ends',
    'cpu': 'see whether GLOO_SOCKET_IFNAME names the right network interface',
}


def examine(subject: Subject, all_machines: bool = False) -> List[Finding]:
    """Add up a tensor over the cards.

    Args:
        subject: The training.
        all_machines: Use the cards of all machines, each of which must call this; otherwise of this machine only.
    """
    asked = subject.asked
    together = all_machines and asked.nnodes > 1
    if subject.nproc * (asked.nnodes if together else 1) == 1:
        return [Finding('all-reduce', OK, 'one rank has nobody to speak to')]
    with temporary.folder() as folder:
        result = folder / 'result.json'
        try:
            _run(subject, together, folder / 'logs', result)
        except interrupts.Interrupted:
            raise
        except console.UserError as error:
            return [Finding('all-reduce', FAILURE, str(error), _SEE[subject.device])]
        if together and not asked.is_first_node:
            return [Finding('all-reduce', OK, 'done; machine 0 has its time')]
        return judge(json.loads(result.read_text(encoding='utf-8')))


def _run(subject: Subject, together: bool, log_dir: Path, result: Path) -> None:
    asked = subject.asked
    addr = subject.master if together else network.LOCAL
    port = asked.master_port if together and asked.master_port else network.free_port()
    nnodes, node_rank = (asked.nnodes, asked.node_rank or 0) if together else (1, 0)
    arguments = [
        *ranks.Ranks.arguments(subject.nproc, nnodes, node_rank, addr, port),
        *('allreduce', subject.device, str(SIZE_BYTES), str(REPETITIONS), str(result)),
    ]
    deadline = time.monotonic() + PATIENCE_S

    def look() -> None:
        if time.monotonic() > deadline:
            raise console.UserError(f'the cards did not finish within {PATIENCE_S} s')

    env = devices.rank_environment(subject.device, subject.nproc, addr, together)
    started = ranks.Ranks(arguments, log_dir, env)
    status = started.wait(look)
    if started.asked_to_end is not None:
        raise interrupts.Interrupted(started.asked_to_end, 'the all-reduce of the doctor')
    failure = started.failure()
    if status and failure:
        raise console.UserError(
            f'{failure.what}: {failure.last_lines[-1] if failure.last_lines else "it said nothing"}'
        )


def judge(figures: Dict[str, Any]) -> List[Finding]:
    """Findings of a finished all-reduce.

    Args:
        figures: What ``allreduce`` wrote.
    """
    middle = statistics.median(figures['seconds'])
    found = f'{SIZE_BYTES >> 20} MiB over {figures["world_size"]} ranks ({figures["backend"]}) in {middle * 1e3:.1f} ms'
    findings = [Finding('all-reduce', OK, found)]
    if figures['clocks_apart_s'] > CLOCKS_APART_S:
        apart = f'the clocks of the machines differ by {figures["clocks_apart_s"]} s'
        findings.append(Finding('clocks', WARNING, apart, 'have all machines take their time from one server'))
    return findings
