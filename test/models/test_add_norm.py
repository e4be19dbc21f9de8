"""When sum and norm take their Triton kernels; the kernels themselves: test_triton_kernels.py."""

import sys

import pytest
import torch

from recipe.models import add_norm


def test_without_triton_there_is_one_warning_and_single_operators(monkeypatch):
    monkeypatch.setitem(sys.modules, 'recipe.models.add_norm_triton', None)
    monkeypatch.setattr(add_norm, 'device_kind', lambda device: 'cuda')
    add_norm._triton_works.cache_clear()
    x, weight, bias = torch.randn(1, 3, 8), torch.randn(8), torch.randn(8)
    with pytest.warns(UserWarning, match='does without its Triton kernels') as warned:
        found = [add_norm.add_norm(x, None, None, add_norm.Norm(weight, bias, 1e-5), torch.float32) for _ in range(2)]
    add_norm._triton_works.cache_clear()
    assert len(warned) == 1
    for one in found:
        assert torch.equal(one.normed, torch.nn.functional.layer_norm(x[0], (8,), weight, bias))


@pytest.mark.parametrize(
    'kind, dtype, takes',
    [('cuda', torch.float32, True), ('cuda', torch.float64, False), ('npu', torch.float32, False)],
)
def test_what_takes_the_kernels(monkeypatch, kind, dtype, takes):
    monkeypatch.setattr(add_norm, 'device_kind', lambda device: kind)
    monkeypatch.setattr(add_norm, '_triton_works', lambda device: True)
    assert add_norm._takes_triton(torch.ones(1, 2, 3, dtype=dtype)) == takes
    assert not add_norm._takes_triton(torch.ones(0, 2, 3, dtype=dtype))
