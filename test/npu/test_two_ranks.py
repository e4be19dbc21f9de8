"""A training step of two ranks: HCCL's part of it against gloo's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import demo_step

HERE = Path(__file__).resolve().parent


def job(out, *argv):
    """Losses and gradients of rank 0."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ['PYTHONPATH']])
    hidden = {'ASCEND_RT_VISIBLE_DEVICES': ''} if argv[0] == 'cpu' else {}
    env = {**os.environ, **hidden, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    command += [str(HERE / 'two_ranks_job.py'), str(out), *argv]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.fixture(scope='module')
def on_cpu(tmp_path_factory):
    return job(tmp_path_factory.mktemp('cpu') / 'out.pt', 'cpu')


def test_losses_and_averaged_gradients_are_those_of_gloo(on_cpu, tmp_path):
    demo_step.check_same(*job(tmp_path / 'out.pt', 'npu'), *on_cpu)


def test_a_missing_all_reduce_is_found(on_cpu, tmp_path):
    with pytest.raises(AssertionError, match=r'expected|differs'):
        demo_step.check_same(*job(tmp_path / 'out.pt', 'npu', 'no_all_reduce'), *on_cpu)
