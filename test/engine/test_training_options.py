"""What the options that save memory or watch a training put into the config, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from random_mask2former import SMALL
from recipe.bench import model as bench_model
from recipe.core import console
from recipe.engine import batch, size
from recipe.engine import config as run_config
from recipe.engine.runner import adapt_model
from recipe.launch import options


def make(*argv):
    return run_config.make(options.parse('full', ['--demo', *argv]), 'cpu', Path('/data'))


def refused(*argv):
    with pytest.raises(console.UserError) as error:
        make(*argv)
    return str(error.value)


def test_accumulation_multiplies_the_images_of_an_iteration_and_nothing_else():
    plain, eight = make(), make('--accumulate=8', '--batch_size=1')
    assert (plain.train_dataloader.batch_size, plain.train_cfg.get('accumulate')) == (2, None)
    assert (eight.train_dataloader.batch_size, eight.train_cfg.accumulate) == (8, 8)
    assert eight.train_cfg.max_iters == plain.train_cfg.max_iters
    assert eight.param_scheduler == plain.param_scheduler
    assert eight.val_dataloader.batch_size == plain.val_dataloader.batch_size


def test_the_batch_rule_counts_accumulated_batches():
    """Two accumulated batches of one rank are the batch of two ranks: rate and length of the training are right."""
    assert batch.describe(make('--accumulate=2'), 1, 1) == [('4 = 1 rank x 2 images x 2 accumulated batches', '')]
    (first, _), rate, images = batch.describe(make('--accumulate=4'), 1, 1)
    assert first.startswith('8 = ') and rate[1].endswith('lr=0.004') and images[1].endswith('--max_iters=250')


@pytest.mark.parametrize(
    ('argv', 'why'),
    [
        (['--accumulate=2', '--', 'optim_wrapper.accumulative_counts=2'], 'both accumulate gradients'),
        (['--accumulate=2', '--', 'train_dataloader.batch_size=3'], 'cannot be split into train_cfg.accumulate=2'),
        (['--freeze=stages:5'], '--freeze=stages:5: the backbone has 4 stages; give stages:0 to stages:4'),
        (['--', 'default_hooks.ema.momentum=0.1'], 'the config has no default_hooks.ema'),
        (
            ['--ema=0.99', '--', 'default_hooks.ema.momentum=0.7'],
            'default_hooks.ema.momentum=0.7 is not a number above',
        ),
    ],
)
def test_contradictions_are_refused(argv, why):
    assert why in refused(*argv)


def test_a_backbone_without_the_setting_is_refused(tmp_path):
    config = tmp_path / 'bisenet.py'
    config.write_text(
        f'_base_ = [{str(run_config.DEMO)!r}]\nmodel = dict(backbone=dict(_delete_=True, type="BiSeNetV2"))\n'
    )
    plain = f'--config={config}'
    assert 'the backbone BiSeNetV2 has no with_cp; leave it out' in refused(plain, '--checkpoint_activations=1')
    assert 'has no frozen_stages; give --freeze=backbone' in refused(plain, '--freeze=stages:1')
    assert make(plain, '--freeze=backbone', '--checkpoint_activations=0').freeze_backbone


def test_an_average_needs_more_room_on_the_disk():
    model = torch.nn.Linear(1000, 1000)
    plain, with_average = (size.disk_bytes(make(*argv), model) - size.LOG_BYTES for argv in ([], ['--ema=0.99']))
    assert with_average * 12 == plain * 16


def build(*argv):
    config = make(*argv)
    config.model.backbone.init_cfg = None
    config.model.backbone.drop_path_rate = 0.5
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model, _ = adapt_model(MODELS.build(config.model), config)
    model.init_weights()
    return model.train()


@pytest.mark.parametrize(
    ('what', 'frozen'),
    [('stages:0', ['patch_embed']), ('stages:2', ['patch_embed', 'stages.0', 'stages.1', 'norm0', 'norm1'])],
)
def test_frozen_stages_get_no_gradient_and_stay_in_evaluation_mode(what, frozen):
    model = build(f'--freeze={what}')
    bench_model.step(model, bench_model.random_batch(1, 64, 128))
    for name, parameter in model.backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
        assert (parameter.grad is None) == name.startswith(tuple(frozen)), name
    modes = {name: module.training for name, module in model.backbone.named_children()}
    assert modes['patch_embed'] is False and model.training
    assert [stage.training for stage in model.backbone.stages][: len(frozen) // 2] == [False] * (len(frozen) // 2)


def test_a_frozen_backbone_keeps_its_names_and_its_features():
    """Its features in training are those in evaluation: no path is dropped. The rest is trained."""
    plain, frozen = build(), build('--freeze=backbone')
    assert plain.state_dict().keys() == frozen.state_dict().keys()
    image = torch.randn(1, 3, 64, 128)
    features = frozen.backbone(image)
    assert not any(one.requires_grad for one in features)
    assert all(torch.equal(*pair) for pair in zip(features, plain.eval().backbone(image)))
    grads = bench_model.step(frozen, bench_model.random_batch(1, 64, 128))['gradients']
    assert grads and not any(name.startswith('backbone.') for name in grads)


@pytest.mark.parametrize('fast', [True, False])
def test_activations_that_are_computed_twice_change_nothing(fast):
    """Losses and gradients are bit by bit the same, with the same dropped paths."""
    overrides = {**SMALL, 'backbone.drop_path_rate': 0.5}
    pair = [bench_model.build_pair(overrides={**overrides, 'backbone.with_cp': cp})[fast] for cp in (False, True)]
    pair[1].load_state_dict(pair[0].state_dict())
    plain, twice = (bench_model.step(model, bench_model.random_batch(2, 64, 128), seed=1) for model in pair)
    assert plain['losses']['decode.loss_cls'] > 0
    assert bench_model.relative_difference(plain, twice) == 0
