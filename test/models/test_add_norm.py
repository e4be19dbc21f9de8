"""Sum and norm in Triton without a GPU: in its interpreter, as machine code, and when the kernels are used."""

import sys
from pathlib import Path

import pytest
import torch

import triton_process
from recipe.models import add_norm

CASES = Path(__file__).resolve().parents[1] / 'support' / 'add_norm_kernel_cases.py'
CPU = torch.device('cpu')
# For a GPU that is not there: the kernels as machine code of the A100 and the H100.
COMPILE = """
import triton
from recipe.models import add_norm_triton as module
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
kinds = dict.fromkeys(('branch_ptr', 'normed_ptr', 'grad_ptr', 'grad_branch_ptr'), '*bf16') | {'eps': 'fp32'}
NAMES = ('branch_ptr', 'grad_branch_ptr', 'drawn_ptr')
for kernel in (module._forward, module._backward):
    optional = [name for name in NAMES if name in kernel.arg_names]
    for left_out in ((), optional):
        constants = {'ROWS': 8, 'BLOCK': 512} | dict.fromkeys(left_out)
        signature = {
            name: 'constexpr' if name in constants else kinds.get(name, '*fp32' if name.endswith('_ptr') else 'i32')
            for name in kernel.arg_names
        }
        for capability in CAPABILITIES:
            target = GPUTarget('cuda', capability, 32)
            assert triton.compile(
                ASTSource(kernel, signature, constants), target=target, options={'num_warps': 8}
            ).asm['cubin']
print('compiled')
"""


@pytest.mark.trains  # it takes as long as a training
@triton_process.needs_triton
def test_the_kernels_compute_what_the_formula_does():
    triton_process.interpret(CASES)


@pytest.mark.trains
@triton_process.needs_triton
@pytest.mark.parametrize('capability', [80, pytest.param(90, marks=pytest.mark.release)])
def test_the_kernels_compile_for_gpus(capability):
    """Types and masks that the interpreter is lax about."""
    done = triton_process.run('-c', COMPILE.replace('CAPABILITIES', f'({capability},)'))
    assert 'compiled' in done.stdout, done.stderr[-2000:]


def test_without_triton_there_is_one_warning_and_single_operators(monkeypatch):
    monkeypatch.setitem(sys.modules, 'recipe.models.add_norm_triton', None)
    monkeypatch.setattr(add_norm, 'device_kind', lambda device: 'cuda')
    add_norm._triton_works.cache_clear()
    x, weight, bias = torch.randn(1, 3, 8), torch.randn(8), torch.randn(8)
    with pytest.warns(UserWarning, match='does without its Triton kernels') as warned:
        found = [add_norm.add_norm(x, None, None, weight, bias, 1e-5, torch.float32) for _ in range(2)]
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
