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


def test_losses_and_averaged_gradients_are_those_of_gloo(tmp_path):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ['PYTHONPATH']])
    env = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    command += [str(HERE / 'two_ranks_job.py'), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found, broken = (torch.load(tmp_path / f'{name}.pt') for name in ('gloo', 'hccl', 'no_all_reduce'))
    demo_step.check_same(*found, *expected)
    with pytest.raises(AssertionError, match=r'expected|differs'):
        demo_step.check_same(*broken, *expected)
