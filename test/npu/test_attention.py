"""The decoder's attention and the softmax in Swin's windows by torch_npu's operators, beside torch's on the CPU."""

from __future__ import annotations

import warnings

import pytest
import torch

import device_counts
from recipe.models import attention

TORCHS = torch.nn.functional.scaled_dot_product_attention
composes = pytest.mark.skipif(
    torch.__version__ >= '2.7', reason="torch's own attention is fused on this stack: test_kernels.py"
)


def inputs(dtype=torch.float32):
    draw = torch.Generator().manual_seed(3)
    query, *others = (torch.randn(2, 4, length, 32, generator=draw).to(dtype) for length in (7, 30, 30))
    allowed = torch.rand(2, 1, 7, 30, generator=draw) < 0.3
    allowed[..., 5] = True
    return [query, *others], allowed


def run(function, tensors, *mask):
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(*leaves, *mask)
    grads = torch.autograd.grad(out.float().pow(2).sum(), leaves)
    return [x.detach().cpu().float() for x in (out, *grads)]


@pytest.fixture
def forgotten():
    """The choice of an operator is made anew, before and after."""
    choices = (attention._takes_operator, attention._takes_softmax)
    for choice in choices:
        choice.cache_clear()
    yield
    for choice in choices:
        choice.cache_clear()


@composes
@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.parametrize(('dtype', 'rounding'), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
def test_results_and_gradients_are_those_of_the_cpu(dtype, rounding, masked):
    tensors, allowed = inputs(dtype)
    found = run(attention.attention, [x.npu() for x in tensors], allowed.npu() if masked else None)
    expected = run(TORCHS, [x.float() for x in tensors], allowed if masked else None)
    for ours, wanted in zip(found, expected):
        assert (ours - wanted).norm() < rounding * wanted.norm()


@composes
def test_one_operator_each_way(forgotten):
    tensors, allowed = inputs()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(attention.attention, [x.npu() for x in tensors], allowed.npu())
    torch.npu.synchronize()
    device_counts.reset()
    run(attention.attention, [x.npu() for x in tensors], allowed.npu())
    torch.npu.synchronize()
    counts = device_counts.read()
    assert counts['npu::npu_fusion_attention'] == counts['npu::npu_fusion_attention_grad'] == 1
    assert not any('softmax' in name for name in counts)


def wrong(*args, **kwargs):
    import torch_npu

    out, *more = torch_npu.npu_fusion_attention.original(*args, **{**kwargs, 'scale': 1.0})
    return (out, *more)


def missing(*args, **kwargs):
    raise RuntimeError('aclnnFlashAttentionScore or aclnnFlashAttentionScoreGetWorkspaceSize not in libopapi.so')


@composes
@pytest.mark.parametrize('fault', [wrong, missing])
def test_an_operator_that_is_wrong_or_missing_is_not_used(monkeypatch, forgotten, fault):
    import torch_npu

    fault.original = torch_npu.npu_fusion_attention
    monkeypatch.setattr(torch_npu, 'npu_fusion_attention', fault)
    tensors, allowed = inputs()
    said = 'is off by' if fault is wrong else 'aclnnFlashAttentionScore'
    with pytest.warns(UserWarning, match=f'does without npu_fusion_attention on npu.*{said}'):
        found = run(attention.attention, [x.npu() for x in tensors], allowed.npu())
    for ours, wanted in zip(found, run(TORCHS, tensors, allowed)):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def windows(dtype=torch.float32):
    draw = torch.Generator().manual_seed(4)
    scores, bias = torch.randn(2, 3, 4, 9, 9, generator=draw), torch.randn(4, 9, 9, generator=draw)
    mask = torch.where(torch.rand(3, 1, 9, 9, generator=draw) < 0.3, -100.0, 0.0)
    return [x.to(dtype) for x in (scores, bias, mask)]


@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.parametrize(('dtype', 'rounding'), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
def test_the_softmax_in_windows_is_that_of_the_cpu_in_one_operator(dtype, rounding, masked):
    tensors = windows(dtype)[: 3 if masked else 2]
    attention._takes_softmax(torch.device('npu:0'))  # compared before its first use, which is not counted here
    torch.npu.synchronize()
    device_counts.reset()
    found = attention.window_softmax(*[x.npu() for x in tensors], *[None] * (not masked), 0.5)
    torch.npu.synchronize()
    counts = {name: count for name, count in device_counts.read().items() if name.startswith(('aten::', 'npu::'))}
    assert found.dtype == dtype
    wanted = [x.float() for x in tensors]
    expected = torch.softmax(wanted[0] * 0.5 + sum(wanted[1:]), -1)
    assert (found.cpu().float() - expected).norm() < rounding * expected.norm()
    assert counts.pop('npu::npu_masked_softmax_with_rel_pos_bias') == 1
    assert not any(word in name for name in counts for word in ('softmax', 'add', 'mul'))


def without_bias(scores, mask, bias, scale):
    import torch_npu

    return torch_npu.npu_masked_softmax_with_rel_pos_bias.original(scores, mask, torch.zeros_like(bias), scale)


@pytest.mark.parametrize('fault', [without_bias, missing])
def test_a_softmax_that_is_wrong_or_missing_is_not_used(monkeypatch, forgotten, fault):
    import torch_npu

    fault.original = torch_npu.npu_masked_softmax_with_rel_pos_bias
    monkeypatch.setattr(torch_npu, 'npu_masked_softmax_with_rel_pos_bias', fault)
    scores, bias, mask = windows()
    said = 'is off by' if fault is without_bias else 'not in libopapi.so'
    with pytest.warns(UserWarning, match=f'does without npu_masked_softmax_with_rel_pos_bias on npu.*{said}'):
        found = attention.window_softmax(scores.npu(), bias.npu(), mask.npu(), 0.5)
    torch.testing.assert_close(found.cpu(), attention.composed_window_softmax(scores, bias, mask, 0.5))
