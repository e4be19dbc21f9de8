"""When the attention in windows takes its Triton kernels; the kernels themselves: test_triton_kernels.py."""

import sys

import pytest
import torch

from recipe.models import swin_branches, token_attention
from recipe.models.window_maps import window_maps


@pytest.fixture
def on_cuda(monkeypatch):
    monkeypatch.setattr(token_attention, 'device_kind', lambda device: 'cuda')
    token_attention._triton_works.cache_clear()
    yield
    token_attention._triton_works.cache_clear()


def test_without_triton_there_is_one_warning_and_the_attention_of_torch(on_cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, 'recipe.models.window_attention_triton', None)
    case = token_attention.small_case(torch.device('cpu'), torch.bfloat16, 3, 1, (4, 3))
    qkv = torch.cat((case.qkv.flatten(0, 1), case.qkv_bias[None]))
    maps = window_maps(case.hw_shape, 3, 1, qkv.device)
    branch = swin_branches.Branch(0.0, maps, 32**-0.5, torch.bfloat16)
    with pytest.warns(UserWarning, match='Swin attends without its Triton kernels') as warned:
        kinds = [swin_branches._attention(qkv, case.position_bias) for _ in range(2)]
    assert len(warned) == 1
    found = kinds[1](qkv, case.position_bias, branch, 2)
    wanted = token_attention.by_autograd(case)[0]
    torch.testing.assert_close(found.attended.double(), wanted, rtol=2e-2, atol=2e-2 * wanted.abs().max().item())


@pytest.mark.parametrize(
    'kind, dtype, window, takes',
    [
        ('cuda', torch.float16, 12, True),
        ('cuda', torch.bfloat16, 16, True),
        ('cuda', torch.float32, 12, False),
        ('cuda', torch.bfloat16, 17, False),  # a row of scores would not fit
        ('npu', torch.bfloat16, 12, False),
    ],
)
def test_what_takes_the_kernels(monkeypatch, kind, dtype, window, takes):
    monkeypatch.setattr(token_attention, 'device_kind', lambda device: kind)
    monkeypatch.setattr(token_attention, '_triton_works', lambda *_: True)
    bias = torch.zeros(1, window**2, window**2)
    assert token_attention.takes_triton(torch.ones(5, 96, dtype=dtype), bias) == takes
    assert not token_attention.takes_triton(torch.ones(1, 96, dtype=dtype), bias)  # the padding token alone
