"""Which kernel of deformable attention is chosen; Triton's is tested by test_triton_kernels.py."""

import sys

import pytest
import torch

from recipe.models import deform_attn

CPU = torch.device('cpu')


def test_without_triton_there_is_one_warning_and_the_pytorch_form(monkeypatch):
    monkeypatch.setitem(sys.modules, 'recipe.models.deform_attn_triton', None)
    with pytest.warns(UserWarning, match='does without its Triton kernel'):
        assert not deform_attn._try_triton(CPU)


@pytest.mark.parametrize(
    'choice, built, dtype, takes',
    [
        ('auto', False, torch.float32, True),
        ('auto', True, torch.float32, False),
        ('auto', True, torch.bfloat16, True),
        ('triton', True, torch.float32, True),
        ('compiled', True, torch.bfloat16, False),
        ('pytorch', False, torch.float32, False),
    ],
)
def test_which_kernel_a_gpu_runs(monkeypatch, choice, built, dtype, takes):
    monkeypatch.setenv(deform_attn.CHOICE, choice)
    monkeypatch.setattr(deform_attn, 'check_ops_exist', lambda: built)
    monkeypatch.setitem(deform_attn._triton_passed, CPU, True)
    assert deform_attn._takes_triton(torch.zeros(1, dtype=dtype)) == takes


def test_an_unknown_kernel_is_refused(monkeypatch):
    monkeypatch.setenv(deform_attn.CHOICE, 'fast')
    with pytest.raises(ValueError, match='MMCV_DEFORM_ATTN=fast is not one of auto, triton'):
        deform_attn._takes_triton(torch.zeros(1))
