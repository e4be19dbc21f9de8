"""Each tracker with its real library, offline, read back by that library; and one that is not installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import tracker_run
from recipe.core import console, paths
from recipe.launch import checks, options
from recipe.launch.plan import Plan


@pytest.mark.release
def test_every_tracker_writes_files_and_sends_nothing(tmp_path):
    """The packages go into a folder of their own, because they are large and no stack needs them."""
    packages, out = tmp_path / 'packages', tmp_path / 'out'
    requirements = str(paths.ROOT / 'requirements' / 'trackers.txt')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '-q', '--target', str(packages), '-r', requirements], check=True
    )
    command = [sys.executable, str(tracker_run.__file__), str(packages), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'the training goes on without it' not in done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result['connections'] == []
    assert result['found'] == {name: [list(pair) for pair in tracker_run.LOSSES] for name in options.TRACKERS}


def examine(asked):
    return list(checks._trackers(Plan(options.parse('full', [f'--log_to={asked}']))))


@pytest.mark.parametrize('name', options.TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_before_the_start(name, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda package: None)
    with pytest.raises(console.UserError) as error:
        examine(name)
    package = {'mlflow': 'mlflow-skinny'}.get(name, name)
    assert str(error.value) == (
        f'--log_to={name}: the package {name} is not installed; install it: '
        f'python -m pip install -c requirements/trackers.txt {package}'
    )


def test_a_tracker_that_may_send_has_to_know_where_to(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda package: object())
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    with pytest.raises(console.UserError, match='MLFLOW_TRACKING_URI names no server; set it, or give --log_to=mlflow'):
        examine('mlflow:online')
    assert [one.found for one in examine('mlflow')] == ['mlflow, in files of the run']
    assert [one.found for one in examine('wandb:online')] == ['wandb, which sends what it is given']


@pytest.mark.parametrize(
    ('asked', 'why'),
    [
        ('tensorbord', "'tensorbord' is not one of tensorboard, wandb, mlflow, swanlab"),
        ('wandb,wandb:online', 'names a tracker twice'),
        ('wandb:offline', 'after the colon only wandb:online is known'),
        ('tensorboard:online', 'tensorboard writes files only'),
        ('wandb,', "'' is not one of"),
    ],
)
def test_names_of_trackers_are_checked(asked, why):
    with pytest.raises(console.UserError, match=why):
        options.parse('full', [f'--log_to={asked}'])
