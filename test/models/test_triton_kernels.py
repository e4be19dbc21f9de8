"""The Triton kernels without a GPU: in Triton's interpreter, and as machine code for GPUs that are not there."""

import importlib

import pytest

import triton_process

# All kernels in one process and one file: the start of such a process takes longer than most cases.
pytestmark = [triton_process.needs_triton, pytest.mark.trains]  # it takes as long as a training


def test_the_kernels_compute_what_their_references_do():
    triton_process.interpret('not release')


@pytest.mark.release
def test_the_rest_of_the_cases_and_ten_thousand_assignments():
    triton_process.interpret('release')


def compiles(kernel, kinds, constants, capability, **options):
    """Whether a kernel becomes machine code; a pointer is one to float32 unless ``kinds`` says otherwise."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        name: 'constexpr' if name in constants else kinds.get(name, '*fp32' if name.endswith('_ptr') else 'i32')
        for name in kernel.arg_names
    }
    target = GPUTarget('cuda', capability, 32)
    return bool(triton.compile(ASTSource(kernel, signature, constants), target=target, **options).asm['cubin'])


def not_interpreted(name, monkeypatch):
    """A module of kernels; Triton decides on interpretation when it is imported."""
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    return importlib.import_module(f'recipe.models.{name}')


# The A100 and the H100.
CAPABILITIES = [80, pytest.param(90, marks=pytest.mark.release)]


@pytest.mark.parametrize('capability', CAPABILITIES)
def test_deformable_attention_compiles_for_gpus(capability, monkeypatch):
    """Types and masks that the interpreter is lax about."""
    module = not_interpreted('deform_attn_triton', monkeypatch)
    from triton import language as tl

    for kernel, fixed in ((module._forward, None), (module._backward, False), (module._backward, True)):
        constants = dict(levels=3, points=4, D=32, BLOCK=module._BLOCK, acc_type=tl.float32)
        constants.update({} if fixed is None else {'FIXED': fixed})
        kinds = {'shapes_ptr': '*i64', 'starts_ptr': '*i64', 'grad_value_ptr': '*i64' if fixed else '*fp32'}
        kinds.update(dict.fromkeys(('value_ptr', 'out_ptr', 'grad_ptr'), '*bf16'))
        assert compiles(kernel, kinds, constants, capability)


@pytest.mark.parametrize('capability', [80, 90])
def test_the_assignment_compiles_for_gpus(capability, monkeypatch):
    kernel = not_interpreted('assignment_triton', monkeypatch)._assign
    kinds = dict.fromkeys(kernel.arg_names, '*i64')
    kinds.update(costs_ptr='*fp32', finite_ptr='*i1', num_problems='i32', num_queries='i32')
    assert compiles(kernel, kinds, {'GROUP': 1, 'BLOCK': 128}, capability, options={'num_warps': 1})


@pytest.mark.parametrize('capability', CAPABILITIES)
def test_sum_and_norm_compile_for_gpus(capability, monkeypatch):
    """With and without a branch, and factors of the images."""
    module = not_interpreted('add_norm_triton', monkeypatch)
    kinds = dict.fromkeys(('branch_ptr', 'normed_ptr', 'grad_ptr', 'grad_branch_ptr'), '*bf16') | {'eps': 'fp32'}
    for kernel in (module._forward, module._backward):
        optional = {'branch_ptr', 'grad_branch_ptr', 'drawn_ptr'} & set(kernel.arg_names)
        for left_out in ((), optional):
            constants = {'ROWS': 8, 'BLOCK': 512} | dict.fromkeys(left_out)
            assert compiles(kernel, kinds, constants, capability, options={'num_warps': 8})


@pytest.mark.parametrize('capability', CAPABILITIES)
@pytest.mark.parametrize('left_out', [(), pytest.param(('regions_ptr',), marks=pytest.mark.release)], ids=str)
def test_attention_in_windows_compiles_for_gpus(left_out, capability, monkeypatch):
    """Windows of 12 x 12, as the recipe has, with and without a shift."""
    module = not_interpreted('window_attention_triton', monkeypatch)
    kinds = dict.fromkeys(('qkv_ptr', 'out_ptr', 'grad_ptr', 'q_grad_ptr', 'kv_grad_ptr'), '*bf16')
    kinds |= {'rows_ptr': '*i64', 'regions_ptr': '*i32', 'scale': 'fp32'}
    block, whole = module.block_sizes(144)
    constants = {'BLOCK': block, 'ALL': whole, 'D': 32} | dict.fromkeys(left_out)
    for kernel in (module._forward, module._backward_queries, module._backward_keys):
        assert compiles(kernel, kinds, constants, capability, options={'num_warps': 8})
