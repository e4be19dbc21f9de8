"""Deformable attention in Triton without a GPU: in its interpreter, as machine code, and which kernel is chosen."""

import sys
from pathlib import Path

import pytest
import torch

import triton_process
from recipe.models import deform_attn

CASES = Path(__file__).resolve().parents[1] / 'support' / 'triton_kernel_cases.py'
CPU = torch.device('cpu')


pytestmark = triton_process.needs_triton
# For a GPU that is not there: the kernels as machine code of the A100 and the H100.
COMPILE = """
import triton
from recipe.models import deform_attn_triton as module
from triton import language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
for kernel, fixed in ((module._forward, None), (module._backward, False), (module._backward, True)):
    constants = dict(levels=3, points=4, D=32, BLOCK=module._BLOCK, acc_type=tl.float32)
    constants.update({} if fixed is None else {'FIXED': fixed})
    kinds = {'shapes_ptr': '*i64', 'starts_ptr': '*i64', 'grad_value_ptr': '*i64' if fixed else '*fp32'}
    kinds.update(dict.fromkeys(('value_ptr', 'out_ptr', 'grad_ptr'), '*bf16'))
    signature = {
        name: 'constexpr' if name in constants else kinds.get(name, '*fp32' if name.endswith('_ptr') else 'i32')
        for name in kernel.arg_names
    }
    for capability in CAPABILITIES:
        target = GPUTarget('cuda', capability, 32)
        assert triton.compile(ASTSource(kernel, signature, constants), target=target).asm['cubin']
print('compiled')
"""


@pytest.mark.trains  # it takes as long as a training
def test_the_kernels_compute_what_the_pytorch_form_does():
    triton_process.interpret(CASES)


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


@pytest.mark.trains
@pytest.mark.parametrize('capability', [80, pytest.param(90, marks=pytest.mark.release)])
def test_the_kernels_compile_for_gpus(capability):
    """Types and masks that the interpreter is lax about."""
    done = triton_process.run('-c', COMPILE.replace('CAPABILITIES', f'({capability},)'))
    assert 'compiled' in done.stdout, done.stderr[-2000:]
