"""Settings of OpenMP with which torch would wait forever: obeyed, and taken away."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from recipe.core import openmp, paths

# A gradient in which oneDNN waits for all threads that OpenMP announced.
STEP = """
import sys
sys.path.insert(0, {root!r})
from recipe.core import console

def main():
    import torch
    layer = torch.nn.Conv2d(64, 128, 4, 4)
    layer(torch.rand(2, 64, 32, 64)).sum().backward()
    print('threads', torch.get_num_threads())

console.run(main)
"""
LIMITS = [
    ({'OMP_THREAD_LIMIT': '1'}, 1),
    ({'OMP_MAX_ACTIVE_LEVELS': '0'}, 1),
    ({'OMP_THREAD_LIMIT': '1', 'OMP_NUM_THREADS': '2'}, 1),
    ({'OMP_THREAD_LIMIT': '64', 'OMP_NUM_THREADS': '2,1'}, 2),
    ({'OMP_DYNAMIC': 'true', 'OMP_NUM_THREADS': '2'}, 2),
    ({'OMP_THREAD_LIMIT': 'x', 'OMP_NUM_THREADS': '2'}, 2),
    ({'GOMP_CPU_AFFINITY': 'x', 'OMP_NUM_THREADS': '2'}, 2),
    ({'GOMP_CPU_AFFINITY': '', 'OMP_NUM_THREADS': '2'}, 2),
    ({'GOMP_CPU_AFFINITY': '0 0-1,0-1:1', 'OMP_NUM_THREADS': '2'}, 2),
]


@pytest.mark.trains
@pytest.mark.parametrize(('given', 'threads'), LIMITS)
def test_a_limit_is_obeyed_and_nothing_waits(given, threads):
    pytest.importorskip('torch', reason='torch is not set up')
    env = {key: value for key, value in os.environ.items() if not key.startswith('OMP_')}
    done = subprocess.run(
        [sys.executable, '-c', STEP.format(root=str(paths.ROOT))],
        env={**env, **given},
        capture_output=True,
        text=True,
        timeout=600,  # against waiting forever
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['threads', str(threads)]


def test_other_settings_stay(monkeypatch):
    monkeypatch.setattr(openmp, 'settled', None)
    for name in ('OMP_THREAD_LIMIT', 'OMP_DYNAMIC'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    monkeypatch.setenv('OMP_MAX_ACTIVE_LEVELS', '2')
    openmp.settle()
    assert openmp.settled is None
    assert (os.environ['OMP_NUM_THREADS'], os.environ['OMP_MAX_ACTIVE_LEVELS']) == ('3', '2')
