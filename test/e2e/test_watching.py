"""Whole trainings with a moving average, an early stop, frozen stages and trackers."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from recipe.engine.checkpoint import load_from_local
from recipe.report import metrics
from recipe.report.collect import collect
from resume_faults import kill_before_iter
from resume_job import assert_same_end, recipe, train, write_cityscapes

pytestmark = pytest.mark.trains

EMA = {'default_hooks.ema': dict(type='ResumableEMAHook', momentum=0.25)}
# Nothing is learnt, so no validation is better than the first.
STOP = {
    'default_hooks.early_stop': dict(type='ResumableEarlyStoppingHook', patience=2),
    'optim_wrapper.optimizer.lr': 0.0,
    'train_cfg.val_interval': 2,
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp('data'))


class KeepValidated(Hook):
    """Writes the weights that a validation uses."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        torch.save(runner.model.state_dict(), self.path)


def keep_validated(path, runner):
    runner.register_hook(KeepValidated(path))


def test_the_average_is_validated_and_saved_and_the_trained_weights_beside_it(data, tmp_path):
    every = {
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'train_cfg.max_iters': 4,
    }
    cfg = recipe(data, tmp_path, **EMA, **every)
    outcome = train(cfg, sabotage=partial(keep_validated, tmp_path / 'validated.pt'))
    assert outcome.codes == [0], outcome.output
    saved = [load_from_local(tmp_path / f'iter_{number}.pth') for number in (1, 2, 3, 4)]
    name = 'decode_head.cls_embed.weight'
    average = saved[0]['ema_state_dict'][f'module.{name}']
    for checkpoint in saved[1:]:
        trained = checkpoint['ema_state_dict'][f'module.{name}']
        average = 0.75 * average + 0.25 * trained
        assert torch.allclose(average, checkpoint['state_dict'][name], atol=1e-7)
        assert not torch.equal(trained, checkpoint['state_dict'][name])
    validated = torch.load(tmp_path / 'validated.pt')
    assert all(torch.equal(validated[key], value) for key, value in saved[-1]['state_dict'].items())


def test_the_average_is_part_of_an_exact_resume(data, tmp_path):
    unbroken, folder = tmp_path / 'unbroken', tmp_path / 'run'
    assert train(recipe(data, unbroken, **EMA)).codes == [0]
    cfg = recipe(data, folder, **EMA)
    assert train(cfg, sabotage=partial(kill_before_iter, 7)).codes == [-9]
    outcome = train(cfg, resume=True)
    assert outcome.codes == [0] and 'RESUMED iter_6.pth' in outcome.output, outcome.output
    assert_same_end(folder, unbroken)


def test_a_run_that_goes_on_without_the_average_takes_the_trained_weights(data, tmp_path):
    plain, folder = tmp_path / 'plain', tmp_path / 'run'
    assert train(recipe(data, plain)).codes == [0]
    outcome = train(recipe(data, folder, **EMA), sabotage=partial(kill_before_iter, 7))
    assert outcome.codes == [-9], outcome.output
    assert train(recipe(data, folder), resume=True).codes == [0]
    weights = [load_from_local(one / 'iter_12.pth')['state_dict'] for one in (plain, folder)]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_a_checkpoint_with_a_foreign_average_is_passed_over(data, tmp_path):
    cfg = recipe(data, tmp_path, **EMA)
    assert train(cfg, sabotage=partial(kill_before_iter, 7)).codes == [-9]
    path = tmp_path / 'iter_6.pth'
    checkpoint = load_from_local(path)
    checkpoint['ema_state_dict']['steps'] = 'many'
    torch.save(checkpoint, path)
    for best in tmp_path.glob('best_*_iter_6.pth'):
        best.unlink()
    outcome = train(cfg, resume=True)
    assert outcome.codes == [0], outcome.output
    assert "('iter_6.pth', 'holds an ema_state_dict that does not belong to its weights')" in outcome.output


def test_a_training_that_does_not_improve_ends_well(data, tmp_path):
    """After the first validation and two more; the report says so. A kill does not make it forget what it has seen."""
    folder = tmp_path / 'run'
    cfg = recipe(data, folder, **STOP)
    assert train(cfg, sabotage=partial(kill_before_iter, 6)).codes == [-9]
    outcome = train(cfg, resume=True)
    assert outcome.codes == [0], outcome.output
    assert 'Early stop at iteration 6: 2 validations in a row' in outcome.output
    result = collect(folder, ['miou'])
    assert result.complete and (result.early_stop_iter, result.iters_done, result.iters_planned) == (6, 6, 12)
    assert metrics.summary(result)[0].endswith(
        '6 of 12 iterations, stopped early because mIoU did not improve, resumed after 4'
    )
    # nothing is left to do, unless it may wait longer
    outcome = train(cfg, resume=True)
    assert outcome.codes == [0] and 'Iter(train)' not in outcome.output
    cfg = recipe(data, folder, **{**STOP, 'default_hooks.early_stop.patience': 4})
    outcome = train(cfg, resume=True)
    assert outcome.codes == [0] and 'Early stop at iteration 10: 4 validations in a row' in outcome.output


def test_a_training_that_improves_is_not_stopped(data, tmp_path):
    cfg = recipe(data, tmp_path, **{**STOP, 'optim_wrapper.optimizer.lr': 1e-2, 'train_cfg.val_interval': 4})
    outcome = train(cfg)
    assert outcome.codes == [0] and 'Early stop' not in outcome.output
    assert (tmp_path / 'iter_12.pth').exists()


@pytest.mark.parametrize(
    ('frozen', 'names'),
    [
        pytest.param(
            {'model.backbone.frozen_stages': 2},
            ('backbone.patch_embed.', 'backbone.stages.0.', 'backbone.stages.1.'),
            marks=pytest.mark.release,
        ),
        ({'freeze_backbone': True}, ('backbone.',)),
    ],
    ids=['stages', 'backbone'],
)
def test_two_ranks_with_frozen_parts_resume_exactly(data, tmp_path, frozen, names):
    """No rank waits for gradients that never come. The optimizer keeps no state for what is frozen."""
    unbroken, folder = tmp_path / 'unbroken', tmp_path / 'run'
    outcome = train(recipe(data, unbroken, **frozen), 2)
    assert outcome.codes == [0, 0], outcome.output
    cfg = recipe(data, folder, **frozen)
    assert train(cfg, 2, sabotage=partial(kill_before_iter, 5)).codes == [-9, -9]
    early = load_from_local(folder / 'iter_4.pth')
    outcome = train(cfg, 2, resume=True)
    assert outcome.codes == [0, 0], outcome.output
    assert_same_end(folder, unbroken)
    late = load_from_local(folder / 'iter_12.pth')
    same = {
        name
        for name, value in late['state_dict'].items()
        if value.is_floating_point() and torch.equal(value, early['state_dict'][name])
    }
    assert {name for name in early['state_dict'] if name.startswith(names) and 'index' not in name} <= same
    assert 'decode_head.cls_embed.weight' not in same
    trained = [
        name for name, value in late['state_dict'].items() if value.is_floating_point() and not name.startswith(names)
    ]
    assert 0 < len(late['optimizer']['state']) <= len(trained)


def trackers(*names):
    backends = [dict(type='SturdyVisBackend')]
    backends += [dict(type='TrackerVisBackend', name=name, tracker=name) for name in names]
    return {'visualizer.vis_backends': backends, 'vis_backends': backends, 'train_cfg.max_iters': 4}


def warnings(outcome):
    return [line for line in outcome.output.splitlines() if 'the training goes on without it' in line]


def lacks(name):
    return importlib.util.find_spec(name) is None


@pytest.mark.skipif(lacks('tensorboard'), reason='the package tensorboard is not installed (requirements/test.txt)')
def test_tensorboard_has_what_scalars_json_has(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = train(recipe(data, tmp_path, **trackers('tensorboard')))
    assert outcome.codes == [0] and not warnings(outcome), outcome.output
    (path,) = tmp_path.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    events = EventAccumulator(str(path.parent / 'tensorboard'))
    events.Reload()
    for name in ('loss', 'lr', 'grad_norm', 'mIoU'):
        expected = [(row['step'], row[name]) for row in rows if name in row]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert expected and [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])


@pytest.mark.skipif(not lacks('wandb'), reason='the package wandb is installed, and this needs one that is missing')
def test_a_tracker_that_fails_at_its_start_does_not_end_the_training(data, tmp_path):
    outcome = train(recipe(data, tmp_path, **trackers('wandb')))
    assert outcome.codes == [0], outcome.output
    (line,) = warnings(outcome)
    assert "wandb fails (ModuleNotFoundError: No module named 'wandb')" in line
    assert (tmp_path / 'iter_4.pth').exists()


def break_tracker(number, runner):
    class Break(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if batch_idx + 1 == number:
                runner.visualizer.get_backend('tensorboard').experiment._writer.close()
                runner.visualizer.get_backend('tensorboard').experiment._writer = None

    runner.register_hook(Break())


@pytest.mark.skipif(lacks('tensorboard'), reason='the package tensorboard is not installed (requirements/test.txt)')
def test_a_tracker_that_fails_amid_the_training_does_not_end_it(data, tmp_path):
    outcome = train(recipe(data, tmp_path, **trackers('tensorboard')), sabotage=partial(break_tracker, 3))
    assert outcome.codes == [0], outcome.output
    (line,) = warnings(outcome)
    assert 'tensorboard fails (AttributeError' in line
    assert (tmp_path / 'iter_4.pth').exists()
