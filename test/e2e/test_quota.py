"""Checkpoints, logs and decoded pictures over quota: nothing is lost, and the training goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import quota
from recipe.engine.checkpoint import find_resumable
from resume_job import assert_same_end, recipe, train, write_cityscapes

CACHE = Path(__file__).resolve().parents[2] / 'tools/cityscapes.py'
SAID = 'Disk quota exceeded'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp('data') / 'data')


@pytest.fixture(scope='module')
def unbroken(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('unbroken') / 'run'
    assert train(recipe(data, folder)).codes == [0]
    return folder


KINDS = {'write': quota.preloaded, 'close': partial(quota.preloaded, late=True), 'btrfs': quota.btrfs}


@pytest.mark.parametrize('kind', ['close', 'btrfs'])
def test_checkpoints_over_quota(data, unbroken, tmp_path, kind):
    """There is room for two checkpoints and a half."""
    size = (unbroken / 'iter_12.pth').stat().st_size * 5 // 2
    with KINDS[kind](tmp_path, size) as over:
        run = over.folder / 'run'
        outcome = over.train(recipe(data, run))
        assert outcome.codes == [1], outcome.output[-3000:]
        assert f'iter_12.pth could not be written ([Errno 122] {SAID}' in outcome.output
        assert 'the last checkpoint, after iteration 12, could not be written' in outcome.output
        assert not list(run.glob('.*'))
        assert Path(find_resumable(str(run))[0]).name == 'iter_4.pth'
        moved = Path(shutil.copytree(run, tmp_path / 'moved'))
    assert train(recipe(data, moved), resume=True).codes == [0]
    assert_same_end(moved, unbroken)


@pytest.mark.parametrize('kind', [pytest.param('write', marks=pytest.mark.release), 'btrfs'])
def test_nothing_can_be_written_for_a_while(data, unbroken, tmp_path, kind):
    """Not a line of a log either."""
    size = (unbroken / 'iter_12.pth').stat().st_size * 6
    with KINDS[kind](tmp_path, size) as over:
        run = over.folder / 'run'
        outcome = over.train(recipe(data, run), sabotage=partial(quota.use_up, over.folder, 5, 8))
        assert outcome.codes == [0], outcome.output[-3000:]
        assert f'iter_6.pth could not be written ([Errno 122] {SAID}' in outcome.output
        assert f'({SAID}); the training goes on and tries again' in outcome.output
        assert_same_end(run, unbroken)
        (scalars,) = run.glob('*/vis_data/scalars.json')
        steps = [json.loads(line) for line in scalars.read_text().splitlines()]
        assert [row['iter'] for row in steps if 'loss' in row] == list(range(1, 13))
        times = (scalars.parent / 'steps.csv').read_text().splitlines()
        assert [line.split(',')[0] for line in times] == ['iter', *map(str, range(1, 13))]


@pytest.mark.parametrize('kind', ['write', 'btrfs'])
def test_decoded_pictures_over_quota(data, tmp_path, kind):
    """There is room for a few; with more room, the same command makes the rest."""

    def build(over, **env):
        options = [f'--data_path={data}', f'--to={over.folder}/decoded', '--num_workers=1']
        command = [sys.executable, str(CACHE), 'cache', *options]
        return subprocess.run(command, env={**over.env, **env}, capture_output=True, text=True, check=False)

    with KINDS[kind](tmp_path, 200_000) as over:
        done = build(over)
        assert done.returncode == 1, done.stderr
        assert done.stderr.splitlines()[-1].startswith(f'error: {SAID}'), done.stderr
        assert 'Traceback' not in done.stderr
        kept = {path: path.read_bytes() for path in over.folder.rglob('*') if path.is_file()}
        assert kept
        if kind == 'btrfs':
            subprocess.run(['btrfs', 'qgroup', 'limit', 'none', str(over.folder)], check=True)
        done = build(over, QUOTA_BYTES='1000000000')
        assert done.returncode == 0, done.stderr
        assert all(path.read_bytes() == content for path, content in kept.items())
