from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.core import paths
from recipe.launch import progress


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder in its iteration 3."""
    folder = tmp_path / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'steps.csv').write_text('iter,data_s,step_s\n1,0.1,3.0\n2,0.1,0.5\n3,0.1,0.1\n')
    rows = [{'loss': 40.0, 'step': 1, 'time': 3.0}, {'mIoU': 5.0, 'step': 2}, {'loss': 30.5, 'step': 2, 'time': 2.0}]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    (folder.parent / f'{folder.parent.name}.log').write_text('... Iter(train) [3/9] lr: 1e-4\n')
    return tmp_path


def test_the_state_is_read_from_the_run_folder(run):
    assert progress.read(run) == progress.State(iteration=3, step_s=1.2, loss=30.5, validating=None)
    assert progress.State(iteration=3, step_s=1.2, loss=30.5) != progress.State()


def test_a_half_written_line_is_left_for_the_next_look(run):
    folder = run / '20260101_000000' / 'vis_data'
    with open(folder / 'steps.csv', 'a') as steps, open(folder / 'scalars.json', 'a') as scalars:
        steps.write('4,0.1')
        scalars.write('{"loss": 2')
    assert progress.read(run) == progress.State(iteration=3, step_s=1.2, loss=30.5)


def test_a_config_without_the_recipe_s_loop_has_its_log(run):
    (run / '20260101_000000' / 'vis_data' / 'steps.csv').unlink()
    assert progress.read(run) == progress.State(iteration=2, step_s=2.0, loss=30.5)


def test_what_was_logged_since_the_steps_were_written_counts(run):
    with open(run / '20260101_000000' / 'vis_data' / 'scalars.json', 'a') as scalars:
        scalars.write('{"loss": 20.5, "step": 8}\n')
    assert progress.read(run) == progress.State(iteration=8, step_s=1.2, loss=20.5)


def test_validation_is_seen(run):
    with open(run / '20260101_000000' / '20260101_000000.log', 'a') as log:
        log.write('2026/01/01 00:00:00 - mmengine - INFO - Iter(val) [ 50/500]    eta: 0:01:00\n')
    assert progress.read(run).validating == (50, 500)


def test_an_earlier_start_is_not_this_one(run):
    assert progress.read(run, {'20260101_000000'}) == progress.State()
    assert progress.read(run / 'nothing') == progress.State()


def test_a_clock():
    assert progress.clock(3723.9) == '1:02:03'
    assert progress.clock(100 * 3600) == '100:00:00'


def test_elsewhere_than_on_a_terminal_a_line_is_printed(run, capsys):
    begun = (run / '20260101_000000').rename(run / 'begun')
    with progress.Progress(run, 9, 8) as shown:
        begun.rename(run / '20260101_000000')
        os.utime(run / '20260101_000000' / 'vis_data', (1, 1))  # whatever clock its storage has
        shown.look()
        shown.look()  # nothing new
    assert capsys.readouterr().out == 'training  3/9  loss 30.5  6.67 images/s  ETA 0:00:07\n'


SHOW = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from recipe.launch import progress
run = Path(sys.argv[2])
begun = (run / '20260101_000000').rename(run / 'begun')
with progress.Progress(run, 9, 8) as shown:
    begun.rename(run / '20260101_000000')
    shown.look()
"""


def test_on_a_terminal_there_is_a_bar(run):
    ours, theirs = pty.openpty()
    env = {**os.environ, 'TERM': 'xterm', 'COLUMNS': '120'}
    command = [sys.executable, '-c', SHOW, str(paths.ROOT), str(run)]
    subprocess.run(command, stdout=theirs, env=env, check=True)
    text = os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)
    assert b'3/9' in text
    assert b'ETA 0:00:07' in text
