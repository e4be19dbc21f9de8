"""The README's first command as it is: what the demo learns, and that an untrained model knows nothing."""

from __future__ import annotations

import json

import pytest

from launch_sandbox import Sandbox


@pytest.fixture(scope='module')
def sandbox(tmp_path_factory):
    return Sandbox(tmp_path_factory.mktemp('demo'))


def miou(sandbox, *argv):
    """Run the demo and return the mIoU, in percent, on the scenes that it did not train on."""
    done = sandbox.run('full', '--demo', *argv)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((sandbox.newest_run('full') / 'result.json').read_text())['miou_last_percent']


def test_the_demo_learns(sandbox):
    assert miou(sandbox) >= 40
    run = sandbox.newest_run('full')
    assert (run / 'curves.png').stat().st_size and (run / 'predictions.png').stat().st_size


def test_an_untrained_model_knows_nothing(sandbox):
    assert miou(sandbox, '--max_iters=8', '--val_interval=8', '--', 'optim_wrapper.optimizer.lr=0') < 5
