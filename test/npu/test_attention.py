"""The decoder's attention by torch_npu's operator, beside torch's attention on the CPU."""

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
    attention._takes_operator.cache_clear()
    yield
    attention._takes_operator.cache_clear()


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
