"""Killed and resumed equals never killed, in half precision and in graphs too."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch

from recipe.engine.checkpoint import load_from_local
from resume_faults import kill_before_iter
from resume_job import assert_same_end, recipe, train, write_cityscapes

MODES = {
    'bf16': {'optim_wrapper.type': 'Bf16OptimWrapper'},
    # Overflows at once, and grows again after two good steps.
    'fp16': {
        'optim_wrapper.type': 'Fp16OptimWrapper',
        'optim_wrapper.loss_scale': dict(init_scale=2.0**22, growth_interval=2),
    },
    # The compiler of --compile takes a minute for each start.
    'graphs': {'custom_hooks': [dict(type='CompileHook', backend='aot_eager')]},
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp('data'))


@pytest.mark.parametrize(
    ('mode', 'world'),
    [
        pytest.param('bf16', 2, marks=pytest.mark.release),
        ('fp16', 2),
        pytest.param('graphs', 1, marks=pytest.mark.release),
    ],
)
def test_equals_a_run_that_was_never_stopped(data, tmp_path, mode, world):
    whole = recipe(data, tmp_path / 'whole', **MODES[mode])
    outcome = train(whole, world)
    assert outcome.codes == [0] * world, outcome.output
    broken = recipe(data, tmp_path / 'broken', **MODES[mode])
    assert train(broken, world, sabotage=partial(kill_before_iter, 8)).codes == [-9] * world
    outcome = train(broken, world, resume=True)
    assert outcome.codes == [0] * world, outcome.output
    assert 'RESUMED iter_6.pth []' in outcome.output
    assert_same_end(tmp_path / 'broken', tmp_path / 'whole')


@pytest.mark.release
def test_the_modes_are_other_trainings(data, tmp_path):
    """What the test above compares is not float32 twice."""
    ends = {}
    for mode in ('off', 'bf16', 'fp16'):
        cfg = recipe(data, tmp_path / mode, **{**MODES.get(mode, {}), 'train_cfg.max_iters': 4})
        assert train(cfg).codes == [0]
        ends[mode] = load_from_local(tmp_path / mode / 'iter_4.pth')
    weights = [torch.cat([one.flatten() for one in end['state_dict'].values()]) for end in ends.values()]
    assert not any(torch.equal(one, other) for one in weights for other in weights if one is not other)


def test_the_scale_of_fp16_is_taken_up(data, tmp_path):
    """Where the run is stopped it is not the one of the start; with that one the end would be another."""
    cfg = recipe(data, tmp_path / 'kept', **MODES['fp16'])
    assert train(cfg, sabotage=partial(kill_before_iter, 8)).codes == [-9]
    shutil.copytree(tmp_path / 'kept', tmp_path / 'lost')
    path = tmp_path / 'lost' / 'iter_6.pth'
    checkpoint = load_from_local(path)
    scaler = checkpoint['optimizer']['loss_scaler']
    first = MODES['fp16']['optim_wrapper.loss_scale']['init_scale']
    assert scaler['scale'] < first
    scaler['scale'] = first
    torch.save(checkpoint, path)
    for name in ('kept', 'lost'):
        cfg.work_dir = str(tmp_path / name)
        outcome = train(cfg, resume=True)
        assert outcome.codes == [0], outcome.output
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path / 'lost', tmp_path / 'kept')
