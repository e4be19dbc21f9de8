"""Residual branches: added in place for the samples that are kept, drawn for all of them at once; DropPath's result."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from mmcv.cnn.bricks.drop import DropPath
from mmcv.cnn.bricks.feed_forward import add_feed_forward, feed_forward
from mmcv.cnn.bricks.kept_samples import KeptSamples
from mmcv.cnn.bricks.transformer import FFN
from mmseg.models.backbones.swin import SwinTransformer, WindowMSA
from mmseg.models.utils import residual_branch
from mmseg.models.utils.residual_branch import add_branch, paths_drawn
from torch import nn

WIDTH, HW, SIZE = 8, (4, 5), 3


def normal(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double()


def attention_branch():
    attn = normal(WindowMSA(WIDTH, 2, (SIZE, SIZE)))
    return attn, lambda x, norm, kept: attn.attend(x, HW, SIZE, 1, norm, kept)


def ffn_branch():
    ffn = normal(FFN(WIDTH, 16, add_identity=False))

    def branch(x, norm, kept):
        return feed_forward(ffn.layers, x, norm) if kept is None else add_feed_forward(ffn.layers, x, norm, kept)

    return ffn, branch


def gradients(output, tensors):
    torch.manual_seed(1)
    return torch.autograd.grad(output, tensors, torch.randn_like(output))


@pytest.mark.parametrize('make', [attention_branch, ffn_branch], ids=['attention', 'feed-forward'])
@pytest.mark.parametrize(
    'kept', [(0, 3, 1), (0, 3, 2.5), (1, 2, 2.5), (1, 3, 1), (0, 0, 1.25)], ids=lambda kept: '{}:{} by {}'.format(*kept)
)
@pytest.mark.parametrize('contiguous', [True, False])
def test_a_branch_added_in_place_is_the_branch_added(make, kept, contiguous):
    torch.manual_seed(0)
    (module, branch), norm = make(), normal(nn.LayerNorm(WIDTH))
    x = torch.randn(3, HW[0] * HW[1], WIDTH, dtype=torch.double)
    x = (x if contiguous else x.transpose(0, 1).contiguous().transpose(0, 1)).requires_grad_()
    before = x.detach().clone()
    first, last, scale = kept
    ours = branch(x, norm, KeptSamples(*kept))
    assert type(ours.grad_fn).__name__ in ('CPUWindowMSABackward', '_FeedForwardBackward')
    theirs = torch.cat([x[:first], x[first:last] + scale * branch(x[first:last], norm, None), x[last:]])
    torch.testing.assert_close(ours, theirs)
    tensors = [x, *module.parameters(), *norm.parameters()]
    torch.testing.assert_close(gradients(ours, tensors), gradients(theirs, tensors))
    assert torch.equal(x, before)


@pytest.mark.parametrize('together', [True, False], ids=['drawn together', 'one by one'])
@pytest.mark.parametrize('batch', [1, 2, 5])
def test_result_and_random_stream_are_those_of_drop_path(batch, together):
    drops = [DropPath(p) for p in (0.0, 0.5, 0.3, 0.9)]
    layers = [nn.Linear(WIDTH, WIDTH).double() for _ in drops]
    x = torch.randn(batch, WIDTH, dtype=torch.double)
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
                ours = add_branch(ours, lambda y, kept, layer=layer: layer(y) if kept is None else None, drop)
        assert torch.equal(torch.rand(3), following)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_an_accelerator_multiplies_and_adds_at_once(dtype, monkeypatch):
    monkeypatch.setattr(residual_branch, '_computes_kept_samples', lambda x: False)
    drops = [DropPath(0.75), DropPath(0.25), DropPath(0.0)]
    x, result = torch.randn(400, 2, 3), (torch.rand(400, 2, 3) + 0.5).to(dtype)  # it is divided by
    with paths_drawn(drops, x):
        sums = [add_branch(x, lambda y, kept: result, drop) for drop in drops]
    for drop, total in zip(drops, sums):
        factor = (total - x) / result.float()
        kept = factor.abs().amax((1, 2)) > 0.5
        expected = kept.float() / (1 - drop.drop_prob)
        torch.testing.assert_close(factor, expected[:, None, None].expand_as(factor), rtol=1e-3, atol=1e-3)
        assert abs(kept.float().mean() - (1 - drop.drop_prob)) < 0.1  # of 400, drawn with a fixed seed
        assert total.dtype == torch.float32


def test_what_was_drawn_is_used_once_and_not_later():
    drop = DropPath(0.5)
    x = torch.ones(2, 3)
    with paths_drawn([drop], x):
        pass
    torch.manual_seed(0)
    expected = x + drop(x)
    torch.manual_seed(0)
    assert torch.equal(add_branch(x, lambda y, kept: y if kept is None else None, drop), expected)


def test_a_backbone_draws_once_but_where_its_blocks_are_computed_twice():
    def draws(**options):
        torch.manual_seed(0)
        swin = SwinTransformer(
            embed_dims=8, depths=(2, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), window_size=3,
            drop_path_rate=0.3, **options
        )  # fmt: skip
        with torch.profiler.profile() as profile:
            swin(torch.randn(2, 3, 32, 32))
        return sum(event.name == 'aten::rand' for event in profile.events())

    assert draws() == 1
    assert draws(with_cp=True) == 6  # those of all blocks but the first, which drops nothing


TOUCH = """
import ctypes, resource, sys, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: some machines give pages of 2 MB, one fault each
from mmseg.utils.host_memory import keep_freed_memory
if sys.argv[1] == 'keep':
    assert keep_freed_memory()
for _ in range(8):
    torch.empty(16 * 2**20).fill_(1)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize())
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='the setting is one of glibc')
def test_freed_memory_is_used_again():
    def faults(mode):
        run = subprocess.run([sys.executable, '-c', TOUCH, mode], check=True, stdout=subprocess.PIPE, text=True)
        return int(run.stdout.split()[-1])

    # about six of eight times 64 MB; importing torch takes some hundred pages more or less each time
    assert faults('plain') - faults('keep') > 5 * 64 * 2**20
