"""--memory=report: the parts of the peak are those of the model, and each further row is one option more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.core import paths
from recipe.engine import config as run_config
from recipe.engine import step_memory
from recipe.launch import memory, options
from recipe.launch.plan import Plan


def plan(*argv):
    asked = options.parse('full', ['--demo', '--memory=report', *argv])
    return Plan(asked, device='cpu', nproc=1, config=run_config.make(asked, 'cpu', Path('/data')))


@pytest.mark.trains
def test_the_parts_are_those_of_the_model():
    small = ('--freeze=backbone', '--accumulate=3', '--ema=0.99', '--', 'model.data_preprocessor.size=(64,64)')
    config = plan(*small).config
    found = step_memory.measure(config, 'cpu')
    model = run_config.build_model(config)
    learned = {name: parameter.numel() * 4 for name, parameter in model.named_parameters()}
    trained = sum(size for name, size in learned.items() if not name.startswith('backbone.'))
    assert found['gradients'] == trained < sum(learned.values())
    assert sum(learned.values()) < found['weights'] == found['average']
    assert 2 * trained <= found['optimizer'] < 2.01 * trained
    assert found['peak'] > found['weights'] + found['average'] + found['gradients'] + found['optimizer'] > found['step']


def test_only_options_that_are_not_in_effect_are_tried():
    def named(*argv):
        return [text for text, _ in memory.savers(plan(*argv))]

    one_at_a_time = '--batch_size=1 --accumulate=8 (same steps)'
    assert named('--accumulate=4') == ['--checkpoint_activations=1', '--amp=bf16', one_at_a_time, '--freeze=backbone']
    assert named('--batch_size=1', '--amp=bf16', '--checkpoint_activations=1', '--freeze=backbone') == []
    for text, asked in memory.savers(plan()):
        again = options.parse('full', ['--demo', '--memory=report', *text.partition(' (')[0].split()])
        assert asked == again


@pytest.mark.release
def test_a_report_of_the_demo(tmp_path):
    """Each row is a step that ran. Recomputed activations and smaller batches take less; no run folder is made."""
    folder = tmp_path / 'run'
    command = [sys.executable, str(paths.TOOLS / 'launch.py'), 'run', 'full', '--demo', '--device=cpu', '--nproc=1']
    done = subprocess.run(
        [*command, '--memory=report', '--batch_size=8', f'--work_dir={folder}', '--doctor=0'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    peaks = {
        name.strip(): int(mib.replace(',', ''))
        for name, mib in re.findall(r'^  (\S.*?)  +([\d,]+) MiB', done.stdout, re.M)
    }
    assert {'weights', 'gradients', 'optimizer state', 'peak'} <= set(peaks)
    for saver in ('--checkpoint_activations=1', '--batch_size=1 --accumulate=8 (same steps)', '--freeze=backbone'):
        assert peaks[saver] < peaks['peak'], done.stdout
    assert not folder.exists()
