"""The feed-forward network with a backward pass of its own: same values and gradients as its modules, one by one."""

from __future__ import annotations

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import nn

import accelerator_path
from recipe.models import adopt
from recipe.models.feed_forward import FastFFN, feed_forward

ACTIVATIONS = [{'type': 'GELU'}, {'type': 'ReLU', 'inplace': True}, {'type': 'ReLU'}]


def network(activation=ACTIVATIONS[0], **options):
    torch.manual_seed(0)
    ffn = FFN(16, 24, act_cfg=activation, **{'add_identity': False, **options}).double()
    adopt(ffn, FastFFN)
    return ffn


def norm_of(width=16):
    norm = nn.LayerNorm(width).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def gradients(output, tensors):
    torch.manual_seed(1)
    return torch.autograd.grad(output, tensors, torch.randn_like(output))


@pytest.mark.parametrize('shape', [(2, 5, 16), (3, 16), (0, 5, 16)], ids=str)
@pytest.mark.parametrize('has_norm', [False, True], ids=['no norm', 'norm'])
@pytest.mark.parametrize('activation', ACTIVATIONS, ids=str)
@pytest.mark.parametrize('kind', ['cpu', 'cuda', 'npu'])
def test_equals_its_modules(activation, has_norm, shape, kind, monkeypatch):
    accelerator_path.take(monkeypatch, kind)
    ffn, norm = network(activation), norm_of() if has_norm else None
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    tensors = [x, *ffn.parameters(), *(norm.parameters() if has_norm else ())]
    ours = feed_forward(ffn.layers, x, norm)
    theirs = ffn.layers(norm(x) if has_norm else x)
    assert 'FeedForward' in type(ours.grad_fn).__name__
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, tensors), gradients(theirs, tensors))


@pytest.mark.parametrize('shape', [(2, 5, 16), (3, 16), (0, 5, 16)], ids=str)
@pytest.mark.parametrize('has_norm', [False, True], ids=['no norm', 'norm'])
@pytest.mark.parametrize('activation', ACTIVATIONS, ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_equals_its_modules_without_gradients(activation, has_norm, shape, dtype):
    ffn, norm = network(activation).to(dtype), norm_of().to(dtype) if has_norm else None
    x = torch.randn(shape, dtype=dtype)
    before = x.clone()
    with torch.no_grad():
        expected = ffn.layers(norm(x) if has_norm else x)
        assert torch.equal(feed_forward(ffn.layers, x, norm), expected)  # in a training
        torch.testing.assert_close(feed_forward(ffn.eval().layers, x, norm), expected)
    assert torch.equal(x, before)


def test_keeps_one_tensor_of_the_hidden_width():
    ffn = network()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        feed_forward(ffn.layers, torch.randn(7, 16, dtype=torch.double, requires_grad=True), norm_of())
    assert kept.count((7, 24)) == 1  # the modules keep both sides of the activation
    assert kept.count((7, 16)) == 1  # and the input beside its norm


@pytest.mark.parametrize('options', [{}, {'add_identity': True}, {'layer_scale_init_value': 0.5}], ids=str)
def test_the_module_computes_what_upstreams_does(options):
    ffn = network(**options)
    x, identity = (torch.randn(2, 5, 16, dtype=torch.double, requires_grad=True) for _ in range(2))
    for rest in ((), (identity,)):
        torch.testing.assert_close(ffn(x, *rest), FFN.forward(ffn, x, *rest))


def hooked():
    ffn = network()
    ffn.layers[1].register_forward_hook(lambda module, args, output: output * 2)
    return ffn


@pytest.mark.parametrize(
    'ffn',
    [
        network(num_fcs=3),
        network(ffn_drop=0.5),
        network({'type': 'LeakyReLU'}),
        network(layer_scale_init_value=0.5),
        hooked(),
    ],
    ids=['three layers', 'dropout', 'other activation', 'layer scale', 'hook'],
)
def test_other_networks_run_module_by_module(ffn):
    x = torch.randn(2, 16, dtype=torch.double, requires_grad=True)
    torch.manual_seed(2)
    ours = ffn(x)
    torch.manual_seed(2)
    theirs = ffn.gamma2(ffn.layers(x))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    tensors = [x, *ffn.parameters()]
    torch.testing.assert_close(gradients(ours, tensors), gradients(theirs, tensors))


def test_other_norms_and_autocast_run_module_by_module():
    ffn = network().float()
    x = torch.randn(2, 16, requires_grad=True)
    other = nn.Sequential(norm_of().float())
    assert 'FeedForward' not in type(feed_forward(ffn.layers, x, other).grad_fn).__name__
    with torch.autocast('cpu', torch.bfloat16):
        half = feed_forward(ffn.layers, x, norm_of().float())
    assert half.dtype == torch.bfloat16
    assert 'FeedForward' not in type(half.grad_fn).__name__
