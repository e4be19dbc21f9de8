"""Gradient accumulation in whole trainings: equal to the larger batch, exact to resume, and known to --on_nan."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

import recipe.models.loss
import step_faults
from fixed_points import same_draws
from recipe.bench.model import relative_difference
from recipe.core import console
from recipe.core.exit_status import NONFINITE
from recipe.engine import config as run_config
from recipe.engine import replay
from recipe.engine.checkpoint import load_from_local
from recipe.launch import options
from resume_faults import kill_amid_accumulation, kill_before_iter, record_images, terminate_amid_accumulation
from resume_job import assert_same_end, train, write_cityscapes
from resume_job import recipe as job_config

pytestmark = pytest.mark.trains

PARTS = {'train_dataloader.batch_size': 4, 'train_cfg.accumulate': 2, 'train_cfg.max_iters': 6}
# The steps of AdamW do not depend on the size of a gradient, so that they would show its rounding.
COMPARABLE = {
    'train_dataloader.batch_size': 4,
    'train_cfg.max_iters': 4,
    'model.backbone.drop_path_rate': 0.0,
    'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=0.01, weight_decay=0.0),
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp('data'))


def fix_points(images, runner):
    """Compare masks at points that do not depend on the batch, and note the images."""
    recipe.models.loss.draw_points = same_draws
    if runner.rank == 0:
        record_images(images, runner)


def losses_of(folder):
    (path,) = folder.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: row[key] for key in row if 'loss' in key or key == 'grad_norm'} for row in rows if 'loss' in row]


def test_two_ranks_equal_the_larger_batch(data, tmp_path):
    """The same images, losses and gradient norms in each iteration, and the same weights, up to float rounding."""
    folders = [tmp_path / 'whole', tmp_path / 'parts']
    for folder, parts in zip(folders, (1, 2)):
        cfg = job_config(data, folder, **{**COMPARABLE, 'train_cfg.accumulate': parts})
        outcome = train(cfg, 2, sabotage=partial(fix_points, folder / 'images.txt'))
        assert outcome.codes == [0, 0], outcome.output
    whole, parts = folders
    assert (whole / 'images.txt').read_text() == (parts / 'images.txt').read_text()
    assert len(losses_of(whole)) == 4
    assert relative_difference(losses_of(whole), losses_of(parts)) < 1e-4
    weights = [load_from_local(folder / 'iter_4.pth')['state_dict'] for folder in folders]
    assert relative_difference(*({k: v for k, v in one.items() if v.is_floating_point()} for one in weights)) < 1e-4


@pytest.mark.parametrize('world', [1, 3])
def test_killed_amid_an_accumulation_equals_never_killed(data, tmp_path, world):
    unbroken, folder = tmp_path / 'unbroken', tmp_path / 'run'
    assert train(job_config(data, unbroken, **PARTS), world).codes == [0] * world
    cfg = job_config(data, folder, **PARTS)
    outcome = train(cfg, world, sabotage=partial(kill_amid_accumulation, 4))
    assert outcome.codes == [-9] * world, outcome.output
    outcome = train(cfg, world, resume=True)
    assert outcome.codes == [0] * world, outcome.output
    assert 'RESUMED iter_2.pth' in outcome.output and 'not bit by bit' not in outcome.output
    assert_same_end(folder, unbroken)


def test_asked_to_stop_amid_an_accumulation_it_ends_after_the_whole_step(data, tmp_path):
    unbroken, folder = tmp_path / 'unbroken', tmp_path / 'run'
    assert train(job_config(data, unbroken, **PARTS)).codes == [0]
    cfg = job_config(data, folder, **PARTS)
    outcome = train(cfg, sabotage=partial(terminate_amid_accumulation, 3))
    assert outcome.codes == [143] and 'stopped after iteration 3' in outcome.output
    assert train(cfg, resume=True).codes == [0]
    names = {path.name for path in unbroken.glob('iter_*.pth')}
    assert names <= {path.name for path in folder.glob('iter_*.pth')}
    weights = [load_from_local(one / 'iter_6.pth')['state_dict'] for one in (unbroken, folder)]
    assert relative_difference(*weights) == 0


def test_another_number_of_parts_goes_on_with_the_next_images(data, tmp_path):
    """The parts change the rounding and the draws of a step, and not which images it sees."""
    cfg = job_config(data, tmp_path, **PARTS)
    assert train(cfg, sabotage=partial(kill_before_iter, 5)).codes == [-9]
    outcome = train(job_config(data, tmp_path, **{**PARTS, 'train_cfg.accumulate': 4}), resume=True)
    assert outcome.codes == [0], outcome.output
    assert 'not bit by bit' in outcome.output and 'accumulate 2 -> 4' in outcome.output


def test_a_step_that_is_not_finite_is_one_step(data, tmp_path):
    """It is skipped as a whole. Without a skip, its dump holds all its images, and the replay computes its losses."""
    skipping = {**PARTS, 'default_hooks.nonfinite_guard.max_skips': 1}
    fault = step_faults.sometimes(step_faults.loss, 3)
    outcome = train(job_config(data, tmp_path / 'skips', **skipping), sabotage=fault)
    assert outcome.codes == [0] and '1 of at most 1' in outcome.output
    outcome = train(job_config(data, tmp_path / 'ends', **PARTS), sabotage=fault)
    assert outcome.codes == [NONFINITE], outcome.output
    (path,) = (tmp_path / 'ends' / 'nonfinite').glob('iter_3_rank_0.pth')
    dump = replay.load(str(path))
    assert len(dump['images']) == 4
    again = replay.replay(dump, 'cpu')
    finite = {name: value for name, value in dump['losses'].items() if name not in ('loss', 'decode.loss_dice')}
    assert len(finite) > 3
    assert relative_difference(finite, {name: again['losses'][name] for name in finite}) < 1e-5


def test_an_engine_that_cannot_accumulate_is_refused():
    asked = options.parse('full', ['--accumulate=2', '--engine=upstream'])
    with pytest.raises(console.UserError, match=r'--accumulate.*leave out --engine=upstream'):
        run_config.make(asked, 'cpu', Path('/data'))
