"""torch.distributed over HCCL, by torch_npu's own process group, against gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).with_name('collectives_job.py')


def run(ranks: int, *names: str, queue: str = '2') -> subprocess.CompletedProcess:
    """Run jobs on ranks that torchrun starts.

    Args:
        ranks: How many.
        names: Functions of collectives_job.py, one after the other.
        queue: How torch_npu hands calls to the device: 2 as test/env_npu.sh has it, 0 at once.
    """
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={ranks}']
    # Newer versions end the other ranks too soon for them to say why they cannot go on.
    command += ['--monitor_interval=5', str(JOB)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'HCCL_EXEC_TIMEOUT': '300', 'TASK_QUEUE_ENABLE': queue}
    return subprocess.run(
        [*command, *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize('ranks', [2, 8])
def test_ranks_get_what_they_get_over_gloo(ranks):
    done = run(ranks, 'collectives', 'objects', 'gradients')
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(' done') == ranks


def test_gradients_are_averaged_without_the_queue_too():
    done = run(2, 'gradients', queue='0')
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(' done') == 2


def test_a_rank_that_was_killed_is_named_by_the_others():
    done = run(2, 'killed')
    assert done.returncode != 0
    assert ' done' not in done.stdout
    assert 'HCCL: rank 1 (process ' in done.stdout
    assert 'has ended; rank 0 waits for it in all_reduce of 3 float32 (sum)' in done.stdout


def test_a_missing_all_reduce_is_noticed():
    done = run(2, 'missing')
    assert done.returncode != 0
    assert ' done' not in done.stdout
    assert (
        'the ranks do not call the same: rank 0 all_reduce of 3 float32 (sum), '
        'rank 1 all_reduce of 4 float32 (sum)' in done.stdout
    )
