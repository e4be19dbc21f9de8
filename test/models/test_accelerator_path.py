"""The functions that only accelerators run, here on the CPU: they compute what the modules do that they replace."""

from __future__ import annotations

import copy

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmcv.ops import MultiScaleDeformableAttention
from mmseg.models.backbones.swin import SwinTransformer
from torch import nn

import accelerator_path
from recipe.bench import model as bench_model
from recipe.engine.optimizers.float32_norms import keep_norms_in_float32
from recipe.models import accelerate, adopt, half_parameters, points, swin_branches
from recipe.models.deform_attn import FastMultiScaleDeformableAttention
from recipe.models.feed_forward import FastFFN, feed_forward
from recipe.models.half_parameters import in_dtype, parameters_cast

KINDS = ('cuda', 'npu')


def gradients(output, tensors):
    torch.manual_seed(1)
    return torch.autograd.grad(output, tensors, torch.randn_like(output))


def swin(**options):
    torch.manual_seed(0)
    options = {'depths': (2, 2), 'window_size': 3, 'drop_path_rate': 0.5, **options}
    model = SwinTransformer(embed_dims=8, num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), **options).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


# 12 x 12 and 6 x 6 tokens are whole windows; 8 x 10 and 4 x 5 are not.
@pytest.mark.parametrize('size', [(48, 48), (32, 40)], ids=['whole windows', 'padding'])
@pytest.mark.parametrize('kind', KINDS)
def test_swin_has_the_values_and_gradients_of_upstream(kind, size, monkeypatch):
    plain = swin()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    accelerator_path.take(monkeypatch, kind)
    calls = []
    for function in (swin_branches.AttentionBranch, swin_branches.MLPBranch):
        backward = function.backward
        monkeypatch.setattr(
            function,
            'backward',
            staticmethod(lambda *args, run=backward, name=function: calls.append(name) or run(*args)),
        )
    x = torch.randn(3, 3, *size, dtype=torch.double)
    results = []
    for model in (plain, fast):
        torch.manual_seed(5)  # drops some samples of some branches
        outs = model(x)
        sum(out.square().sum() for out in outs).backward()
        results.append((outs, {name: parameter.grad for name, parameter in model.named_parameters()}))
    assert len(calls) == 2 * 4  # both branches of the four blocks
    torch.testing.assert_close(results[1], results[0])


def test_blocks_of_other_kinds_run_module_by_module(monkeypatch):
    accelerator_path.take(monkeypatch, 'cuda')

    def never(*args):
        raise AssertionError('it computes something else')

    monkeypatch.setattr(swin_branches.AttentionBranch, 'apply', never)
    for options in ({'qkv_bias': False}, {'with_cp': True}, {'act_cfg': {'type': 'ReLU'}}):
        model = swin(**options)
        accelerate(model)
        model(torch.randn(2, 3, 32, 40, dtype=torch.double))
    model = swin()
    accelerate(model)
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 40, dtype=torch.double))
    model.stages[0].blocks[0].attn.w_msa.qkv.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(AssertionError, match='computes something else'):
        model(torch.randn(2, 3, 32, 40, dtype=torch.double))  # of another block


def test_blocks_alone_or_with_a_hook_return_the_whole_sum(monkeypatch):
    """Else a block leaves its last sum to the next one."""
    plain = swin(depths=(3, 2), drop_path_rate=0.0)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    accelerator_path.take(monkeypatch, 'cuda')
    x = torch.randn(2, 80, 8, dtype=torch.double, requires_grad=True)
    stages = [model.stages[0] for model in (plain, fast)]
    outs = [stage.blocks[1](x, (8, 10)) for stage in stages]
    torch.testing.assert_close(outs[1], outs[0])
    torch.testing.assert_close(
        *(gradients(out, [x, *stage.blocks[1].parameters()]) for out, stage in zip(outs, stages))
    )
    seen = []
    for stage in stages:
        stage.blocks[1].register_forward_hook(lambda module, args, output: seen.extend((*args[:1], output)))
    outs = [torch.cat([one.flatten() for one in stage(x, (8, 10))[::2]]) for stage in stages]
    torch.testing.assert_close(seen[2:], seen[:2])
    torch.testing.assert_close(outs[1], outs[0])
    torch.testing.assert_close(*(gradients(out, [x, *stage.parameters()]) for out, stage in zip(outs, stages)))


@pytest.mark.parametrize('sizes', [[(4, 8), (2, 4)], [(3, 5), (2, 3)]], ids=['powers of two', 'other sizes'])
def test_encoder_attention_has_the_values_and_gradients_of_upstream(sizes, monkeypatch):
    torch.manual_seed(0)
    plain = MultiScaleDeformableAttention(16, num_heads=4, num_levels=2, num_points=3, dropout=0.0, batch_first=True)
    plain.double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    fast = copy.deepcopy(plain)
    adopt(fast, FastMultiScaleDeformableAttention)
    accelerator_path.take(monkeypatch, 'cuda')
    keys = sum(h * w for h, w in sizes)
    x, pos = (torch.randn(2, keys, 16, dtype=torch.double, requires_grad=True) for _ in range(2))
    shapes = torch.tensor(sizes)
    given = dict(
        query_pos=pos,
        reference_points=torch.rand(2, keys, 2, 2, dtype=torch.double),
        spatial_shapes=shapes,
        level_start_index=torch.tensor([0, sizes[0][0] * sizes[0][1]]),
    )
    theirs = plain(x, **given)
    ours = fast(x, **given, host_shapes=sizes)
    assert 'EncoderAttention' in type(ours.grad_fn).__name__
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        gradients(ours, [x, pos, *fast.parameters()]), gradients(theirs, [x, pos, *plain.parameters()])
    )


@pytest.mark.parametrize('activation', [{'type': 'GELU'}, {'type': 'ReLU', 'inplace': True}], ids=str)
def test_a_feed_forward_network_under_autocast_computes_what_autocast_does(activation, monkeypatch):
    torch.manual_seed(0)
    ffn = FFN(16, 24, act_cfg=activation, add_identity=False)
    x = torch.randn(2, 5, 16, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        theirs = ffn(x)
    expected = gradients(theirs, [x, *ffn.parameters()])
    adopt(ffn, FastFFN)
    accelerator_path.take(monkeypatch, 'cuda')
    with torch.autocast('cpu', torch.bfloat16):
        ours = feed_forward(ffn.layers, x)
    assert 'FeedForward' in type(ours.grad_fn).__name__ and ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    found = gradients(ours, [x, *ffn.parameters()])
    assert [grad.dtype for grad in found] == [torch.float32] * 5
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_parameters_cast_together_are_those_cast_alone():
    torch.manual_seed(0)
    layer, unused = nn.Linear(5, 3), nn.Linear(2, 2)
    x = torch.randn(4, 5)
    results = []
    for groups in ([list(layer.parameters()), list(unused.parameters())], []):
        with parameters_cast(groups, torch.bfloat16):
            weight, bias = (in_dtype(one, torch.bfloat16) for one in (layer.weight, layer.bias))
            again = in_dtype(layer.weight, torch.bfloat16)
            out = torch.addmm(bias, x.bfloat16(), weight.t()).float().square().sum()
            assert (again is weight) == bool(groups)  # one cast serves all uses
        assert in_dtype(layer.weight, torch.bfloat16) is not weight  # and none after the forward pass
        results.append((out, torch.autograd.grad(out, list(layer.parameters()))))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert unused.weight.grad is None


SMALL = {
    'backbone.depths': [2, 1, 1, 1],
    'decode_head.num_queries': 20,
    'decode_head.train_cfg.num_points': 64,
    'decode_head.transformer_decoder.num_layers': 2,
    'decode_head.pixel_decoder.encoder.num_layers': 1,
}
# Largest relative difference from float32 of a loss term, and of all gradients together.
NEAR = {'losses': 2e-2, 'gradients': 0.1}


@pytest.mark.trains
@pytest.mark.parametrize('kind', KINDS)
def test_a_step_has_the_losses_and_gradients_of_upstream(kind, monkeypatch):
    plain, fast = bench_model.build_pair(overrides=SMALL)
    plain, fast = plain.double(), fast.double()
    accelerator_path.take(monkeypatch, kind)
    monkeypatch.setattr(points, 'device_kind', lambda device: 'cpu')  # CUDA draws in another order than upstream
    batch = bench_model.random_batch(2, 64, 128, block=16)
    expected, found = (bench_model.step(model, batch, seed=3) for model in (plain, fast))
    assert bench_model.relative_difference(expected['losses'], found['losses']) < 1e-5
    assert bench_model.relative_difference(expected['gradients'], found['gradients']) < 1e-4


@pytest.mark.trains
def test_a_step_in_bf16_is_near_float32_and_casts_parameters_together(monkeypatch):
    _, fast = bench_model.build_pair(overrides=SMALL)
    batch = bench_model.random_batch(2, 64, 128, block=16)
    expected = bench_model.step(fast, batch, seed=3)
    keep_norms_in_float32('cpu')  # as on accelerators
    accelerator_path.take(monkeypatch, 'cuda')
    calls = []
    copies = half_parameters._copies
    monkeypatch.setattr(half_parameters, '_copies', lambda *args: calls.append(len(args[0])) or copies(*args))
    found = bench_model.step(fast, batch, seed=3, amp='bf16')
    assert len(calls) == 2 * 5  # four stages and the encoder, forward and backward
    assert all(grad.dtype == torch.float32 for grad in found['gradients'].values())
    assert found['gradients'].keys() == expected['gradients'].keys()
    assert bench_model.relative_difference(expected['losses'], found['losses']) < NEAR['losses']
    difference = bench_model.relative_difference(
        *(torch.cat([one['gradients'][name].flatten() for name in expected['gradients']]) for one in (expected, found))
    )
    assert difference < NEAR['gradients']
