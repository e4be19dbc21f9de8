"""Gradient accumulation: the sum over the parts of a batch is the whole batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import recipe.models.loss
from fixed_points import same_draws, same_points
from random_mask2former import SMALL
from recipe.bench import model as bench_model
from recipe.engine import accumulation

# Images with many classes, with one, and with none at all: their parts weigh differently.
TINY = {**SMALL, 'decode_head.train_cfg.num_points': 64}
CLASSES = [list(range(12)), [3], [], [1, 2, 18]]


@pytest.fixture
def fixed_points(monkeypatch):
    """Random points depend on the batch; the losses are compared at points that do not."""
    monkeypatch.setattr(recipe.models.loss, 'draw_points', same_draws)

    def rand(*shape, generator=None, **_):
        return real(*shape, generator=generator) if generator else same_points(shape[0] if len(shape) == 1 else shape)

    real = torch.rand
    monkeypatch.setattr(torch, 'rand', rand)


def gradients(model, batch, count):
    model.zero_grad(set_to_none=True)
    wrapper = SimpleNamespace(optim_context=lambda _: torch.enable_grad(), backward=lambda loss: loss.backward())
    losses = accumulation.forward_and_backward(model, wrapper, batch, count)
    return dict(losses), {name: one.grad for name, one in model.named_parameters()}


@pytest.mark.parametrize('fast', [True, False])
def test_the_parts_add_up_to_the_batch(fixed_points, fast):
    """Losses and gradients, in the fast modules and in upstream's, with parts that have unequal numbers of masks."""
    model = bench_model.build_pair(overrides=TINY)[fast]
    batch = bench_model.samples(bench_model.random_batch(4, 64, 64, classes=CLASSES))
    losses, grads = gradients(model, batch, 1)
    assert losses['decode.loss_mask'] > 0
    for count in (2, 4) if fast else (4,):
        parts = gradients(model, batch, count)
        assert bench_model.relative_difference(losses, parts[0]) < 1e-5
        assert bench_model.relative_difference(grads, parts[1]) < 1e-3
        total = [torch.cat([one.flatten() for one in some.values()]) for some in (grads, parts[1])]
        assert bench_model.relative_difference(*total) < 1e-5


def test_equal_weights_would_differ(fixed_points, monkeypatch):
    """Without the shares, that is with the mean over the parts, the loss is another one."""
    monkeypatch.setattr('recipe.models.loss_shares._averaged_over', lambda head, part: (1.0, 1.0))
    _, model = bench_model.build_pair(overrides=TINY)
    batch = bench_model.samples(bench_model.random_batch(4, 64, 64, classes=CLASSES))
    whole, parts = (gradients(model, batch, count)[0] for count in (1, 4))
    assert bench_model.relative_difference(whole['loss'], parts['loss']) > 0.01


def test_a_batch_is_split_as_it_is_nested():
    batch = {'inputs': torch.arange(4), 'data_samples': list('abcd'), 'pair': ([1, 2, 3, 4], torch.ones(4, 2))}
    first, second = accumulation.split(batch, 2)
    assert first['inputs'].tolist() == [0, 1] and second['data_samples'] == ['c', 'd']
    assert second['pair'][0] == [3, 4] and second['pair'][1].shape == (2, 2)
    with pytest.raises(ValueError, match='4 images cannot be split into 3 equal parts'):
        accumulation.split(batch, 3)
