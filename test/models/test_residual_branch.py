"""Residual branches: computed for the samples that are kept, drawn for all of them before; DropPath's result."""

from __future__ import annotations

import pytest
import torch
from mmcv.cnn.bricks.drop import DropPath
from mmseg.models.backbones.swin import SwinTransformer
from torch import nn

from recipe.models import accelerate, residual_branch
from recipe.models.residual_branch import add_branch, paths_drawn

WIDTH = 8


@pytest.mark.parametrize('together', [True, False], ids=['drawn together', 'one by one'])
@pytest.mark.parametrize('batch', [1, 2, 5])
def test_result_and_random_stream_are_those_of_drop_path(batch, together):
    drops = [DropPath(p) for p in (0.0, 0.5, 0.3, 0.9)]
    layers = [nn.Linear(WIDTH, WIDTH).double() for _ in drops]
    x = torch.randn(batch, 3, WIDTH, dtype=torch.double)
    for seed in range(10):
        torch.manual_seed(seed)
        theirs = x
        for layer, drop in zip(layers, drops):
            theirs = theirs + drop(layer(theirs))
        following = torch.rand(3)
        torch.manual_seed(seed)
        ours = x
        with paths_drawn(drops if together else [], x):
            for layer, drop in zip(layers, drops):
                ours = add_branch(ours, layer, drop)
        assert torch.equal(torch.rand(3), following)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_an_accelerator_multiplies_and_adds_at_once(dtype, monkeypatch):
    monkeypatch.setattr(residual_branch, '_computes_kept_samples', lambda x: False)
    drops = [DropPath(0.75), DropPath(0.25), DropPath(0.0)]
    x, result = torch.randn(400, 2, 3), torch.randn(400, 2, 3).to(dtype)
    with paths_drawn(drops, x):
        sums = [add_branch(x, lambda y: result, drop) for drop in drops]
    for drop, total in zip(drops, sums):
        factor = (total - x) / result.float()
        kept = factor.abs().amax((1, 2)) > 0.5
        expected = kept.float() / (1 - drop.drop_prob)
        torch.testing.assert_close(factor, expected[:, None, None].expand_as(factor), rtol=1e-3, atol=1e-3)
        assert abs(kept.float().mean() - (1 - drop.drop_prob)) < 0.1  # of 400; four standard deviations
        assert total.dtype == torch.float32


@pytest.mark.parametrize('batch', [1, 3])
def test_an_accelerator_draws_in_the_order_of_upstream(batch, monkeypatch):
    """One draw for all, whose numbers are upstream's with the generator of a CPU."""
    monkeypatch.setattr(residual_branch, '_computes_kept_samples', lambda x: False)
    drops = [DropPath(0.5), DropPath(0.0), DropPath(0.3)]
    x = torch.randn(batch, 2, 3)
    torch.manual_seed(0)
    with paths_drawn(drops, x):
        ours = [add_branch(x, lambda y: y, drop) for drop in drops]
    torch.manual_seed(0)
    theirs = [x + drop(x) for drop in drops]
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


def test_what_was_drawn_is_used_once_and_not_later():
    drop = DropPath(0.5)
    x = torch.ones(2, 3, 4)
    with paths_drawn([drop], x):
        pass
    torch.manual_seed(0)
    expected = x + drop(x)
    torch.manual_seed(0)
    assert torch.equal(add_branch(x, lambda y: y, drop), expected)


def test_a_backbone_draws_once_but_where_its_blocks_are_computed_twice():
    def draws(**options):
        torch.manual_seed(0)
        swin = SwinTransformer(
            embed_dims=8, depths=(2, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), window_size=3,
            drop_path_rate=0.3, **options
        )  # fmt: skip
        accelerate(swin)
        with torch.profiler.profile() as profile:
            swin(torch.randn(2, 3, 32, 32))
        return sum(event.name == 'aten::rand' for event in profile.events())

    assert draws() == 1
    assert draws(with_cp=True) == 6  # those of all blocks but the first, which drops nothing
