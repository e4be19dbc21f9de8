"""The Triton kernels of the attention in windows; test_triton_kernels.py runs this with TRITON_INTERPRET=1."""

import copy

import pytest
import torch
from mmseg.models.backbones.swin import SwinTransformer
from torch import nn

import accelerator_path
from recipe.models import accelerate, token_attention, window_attention_triton

CPU = torch.device('cpu')
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Window, shift, height and width, images, heads and channels of a head: whole windows without and with a shift, and a
# map with padding whose windows take two programs each (with the TILE below), the second one less than full.
SIZES = [(2, 0, (2, 4), 1, 1, 4), (3, 1, (3, 6), 1, 1, 8), (5, 2, (7, 5), 2, 1, 32)]


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter multiplies the bits of bfloat16 as integers; a GPU multiplies numbers and adds in float32."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    dot = InterpreterBuilder.create_dot

    def exact(self, left, right, *rest):
        pair = [self.cast_impl(one, tl.float32) if one.dtype.scalar == tl.bfloat16 else one for one in (left, right)]
        return dot(self, *pair, *rest)

    monkeypatch.setattr(InterpreterBuilder, 'create_dot', exact)


def compare(case):
    found, wanted = token_attention.by_kernels(case), token_attention.by_autograd(case)
    dtype = case.qkv.dtype
    assert [one.dtype for one in found] == [dtype, dtype, dtype, torch.float32]
    for result, expected in zip(found, wanted):
        assert result.shape == expected.shape
        close = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(result.double(), expected, rtol=close, atol=close * expected.abs().max().item())
    return found


CASES = [
    *((SIZES[0], one) for one in DTYPES),
    (SIZES[1], torch.bfloat16),
    (SIZES[2], torch.float32),
    (SIZES[2], torch.bfloat16),
    pytest.param(SIZES[2], torch.float16, marks=pytest.mark.release),
]


@pytest.mark.parametrize('size, dtype', CASES, ids=str)
def test_result_and_gradients_are_those_of_autograd(size, dtype, monkeypatch):
    monkeypatch.setattr(token_attention, 'TILE', 512)
    compare(token_attention.small_case(CPU, dtype, *size))


@pytest.mark.parametrize(
    'window, shift, hw_shape',
    [(12, 0, (12, 12)), pytest.param(7, 3, (6, 9), marks=pytest.mark.release)],
    ids=str,
)
def test_windows_of_the_configs(window, shift, hw_shape):
    compare(token_attention.small_case(CPU, torch.bfloat16, window, shift, hw_shape, images=1, heads=1))


def test_results_are_the_same_each_time(monkeypatch):
    """Also with several windows for each partial sum."""
    monkeypatch.setattr(token_attention, '_PROGRAMS', 1)
    case = token_attention.small_case(CPU, torch.bfloat16, *SIZES[1])
    first, second = compare(case), token_attention.by_kernels(case)
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_swin_with_the_kernels_has_the_values_and_gradients_of_upstream(monkeypatch):
    torch.manual_seed(0)
    plain = SwinTransformer(
        embed_dims=8, depths=(2,), num_heads=(2,), strides=(4,), out_indices=(0,), window_size=3, drop_path_rate=0.0
    )
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    accelerator_path.take(monkeypatch, 'cuda')
    monkeypatch.setattr(token_attention, '_triton_works', lambda *_: True)
    monkeypatch.setattr(token_attention, 'DTYPES', [torch.float32])  # to compare closely
    calls = []
    for name in ('run_forward', 'run_backward_queries', 'run_backward_keys'):
        run = getattr(window_attention_triton, name)
        monkeypatch.setattr(
            window_attention_triton, name, lambda *args, run=run, name=name: calls.append(name) or run(*args)
        )
    x = torch.randn(1, 3, 12, 24)
    results = []
    for model in (plain, fast):
        outs = model(x)
        sum(out.square().sum() for out in outs).backward()
        results.append([*outs, *(parameter.grad for parameter in model.parameters())])
    assert calls == ['run_forward'] * 2 + ['run_backward_queries', 'run_backward_keys'] * 2
    for expected, found in zip(*results):
        assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_the_check_before_first_use_passes_and_catches_wrong_kernels(monkeypatch):
    small = CPU, torch.float32, 2, 4
    assert token_attention._triton_works.__wrapped__(*small)
    exact = token_attention.by_autograd
    for wrong, name in ((1, 'the gradient of qkv'), (3, 'the gradient of the position bias')):
        for factor in (1.01, float('nan')):
            monkeypatch.setattr(
                token_attention,
                'by_kernels',
                lambda case, at=wrong, by=factor: [x * (by if i == at else 1) for i, x in enumerate(exact(case))],
            )
            with pytest.warns(UserWarning, match=f'without its Triton kernels on cpu: AssertionError: {name} is wrong'):
                assert not token_attention._triton_works.__wrapped__(*small)
