"""Checkpoints changed at random are refused or loaded, in every way of loading; see test/faults/fuzz_checkpoints.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fuzz_checkpoints

pytestmark = pytest.mark.trains


def of_faults(figures):
    return [f'{one["number"]} {one["way"]} {one["mutation"]}: {one["outcome"]}' for one in figures['faults']]


def test_a_sample(tmp_path):
    figures = fuzz_checkpoints.campaign([5, 9, 14, 19], seed=1)  # zip records, instructions, values
    assert of_faults(figures) == []
    assert all(sum(counts.values()) == 4 for counts in figures['outcomes'].values())


def test_the_program_needs_nothing_that_the_tests_import():
    command = [sys.executable, fuzz_checkpoints.__file__, '--seed=1', '--only=5']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.release
def test_the_whole_campaign():
    figures = fuzz_checkpoints.campaign(list(range(500)), seed=0)
    assert of_faults(figures) == []
    # Not all of it is refused by the first look.
    assert all(counts['loaded'] > 25 for counts in figures['outcomes'].values())


def runs(path):
    import subprocess

    subprocess.run(['true'], check=True)


def writes(path):
    (path.parent.parent / 'beside').touch()


def removes(path):
    (path.parent.parent / 'mine.pth').unlink()


def dies(path):
    import os

    os.kill(os.getpid(), 11)


def raises(path):
    raise KeyError('a')


def exhausts(path):
    held = []
    while True:
        held.append(bytearray(1 << 24))


@pytest.mark.parametrize(
    ('way', 'outcome'),
    [(runs, 'ran'), (writes, 'wrote'), (removes, 'wrote'), (dies, 'crashed'), (raises, 'error'), (exhausts, 'error')],
)
def test_a_fault_is_noticed(tmp_path, way, outcome):
    assert fuzz_checkpoints.attempt(way, b'', tmp_path)['outcome'] == outcome
