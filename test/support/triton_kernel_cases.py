"""The Triton kernel of deformable attention; test_triton_kernels.py runs this with TRITON_INTERPRET=1."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

from recipe.models import deform_attn, deform_attn_check, deform_attn_triton

CPU = torch.device('cpu')


def levels(shapes):
    """(h, w) and first key of each level, as tensors."""
    table = torch.tensor(shapes)
    sizes = table.prod(1)
    return table, sizes.cumsum(0) - sizes


def both(inputs, shapes, direction=None):
    """Result and the three gradients of the kernel, and those of the PyTorch form in float64."""
    ours = [one.clone().requires_grad_() for one in inputs]
    exact = [one.double().requires_grad_() for one in inputs]
    out = deform_attn_triton.TritonDeformableAttention.apply(ours[0], *levels(shapes), *ours[1:])
    expected = multi_scale_deformable_attn_pytorch(exact[0], shapes, *exact[1:])
    direction = torch.randn_like(out) if direction is None else direction
    grads = torch.autograd.grad(out, ours, direction)
    return (out, *grads), (expected, *torch.autograd.grad(expected, exact, direction.double()))


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=2),
    heads=st.integers(1, 2),
    dim=st.integers(1, 9),
    queries=st.integers(1, 12),
    points=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=5, deadline=None)
def test_result_and_gradients_are_those_of_the_pytorch_form(shapes, heads, dim, queries, points, dtype):
    torch.manual_seed(0)
    inputs = deform_attn_check.small_case(CPU, dtype, shapes, heads, dim, queries, points)
    for result, expected in zip(*both(inputs, shapes)):
        assert result.dtype == dtype
        close = 1e-10 if dtype == torch.float64 else 2e-5
        # a corner of the interpolation: rounding decides on which side of it a sample is
        off = (result.double() - expected).abs() > close * expected.abs().amax().clamp(min=1)
        assert off.sum() <= (0 if dtype == torch.float64 else 2)


def test_samples_on_borders_on_centres_and_far_outside():
    # Sides are powers of two, so that both forms find the same pixel without rounding.
    shapes = [(4, 8), (2, 1)]
    places = [0.0, 1.0, 0.5, 1 / 16, 15 / 16, -1 / 16, 17 / 16, 1 / 4, -3.0, 1e6]
    grid = torch.tensor([(x, y) for x in places for y in places], dtype=torch.float64)
    locations = grid.view(1, -1, 1, 1, 1, 2).expand(1, -1, 2, 2, 1, 2).contiguous()
    torch.manual_seed(0)
    value = torch.randn(1, 34, 2, 3, dtype=torch.float64)
    weights = torch.randn(locations.shape[:-1], dtype=torch.float64)
    for result, expected in zip(*both((value, locations, weights), shapes)):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_infinite_and_undefined_places_read_nothing_and_no_foreign_memory():
    value, locations, weights = deform_attn_check.small_case(CPU, shapes=[(2, 2)], queries=3, points=1)
    locations[:, 0], locations[:, 1], locations[:, 2] = float('inf'), float('-inf'), float('nan')
    out = deform_attn_triton.TritonDeformableAttention.apply(value, *levels([(2, 2)]), locations, weights)
    assert not out.any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.release)])
def test_half_precision_rounds_once_at_the_end(dtype):
    # 24 samples of a query add up; in half precision the sum would be off by many roundings.
    shapes = [(9, 7), (5, 4), (3, 3)]
    value, locations, weights = deform_attn_check.small_case(CPU, dtype, shapes, heads=1, dim=8, queries=2, points=8)
    results, wanted = both((value, locations, weights), shapes)
    assert [one.dtype for one in results] == [dtype, dtype, torch.float32, torch.float32]
    half = torch.finfo(dtype).eps
    for result, expected in zip(results[:2], wanted[:2]):
        torch.testing.assert_close(result.double(), expected, rtol=half, atol=1e-4)
    for result, expected in zip(results[2:], wanted[2:]):
        torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=1e-3)


def test_deterministic_gradients_do_not_depend_on_the_order_of_queries():
    shapes = [(3, 2)]
    value, locations, weights = deform_attn_check.small_case(CPU, shapes=shapes, heads=1, queries=40, dim=4, points=2)
    grad = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))

    def run(deterministic, order):
        parts = (one[:, order].contiguous() for one in (locations, weights))
        return deform_attn_triton.run_backward(grad[:, order], value, *levels(shapes), *parts, deterministic)[0]

    same = torch.arange(40)
    assert torch.equal(run(True, order), run(True, same))
    assert not torch.equal(run(False, order), run(False, same))
    torch.testing.assert_close(run(True, same), run(False, same), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('deterministic', 'bad'),
    [(True, float('nan')), (True, float('inf')), pytest.param(False, float('nan'), marks=pytest.mark.release)],
)
def test_a_gradient_that_is_not_finite_stays_so(deterministic, bad):
    value, locations, weights = deform_attn_check.small_case(CPU, queries=5)
    grad = torch.ones(2, 5, 64)
    grad[1, 3, 7] = bad
    locations[1, 3] = 0.5
    table = levels(deform_attn_check.SHAPES)
    assert (
        not deform_attn_triton.run_backward(grad, value, *table, locations, weights, deterministic)[0].isfinite().all()
    )


def test_no_gradient_and_no_query_are_no_special_case():
    value, locations, weights = deform_attn_check.small_case(CPU, queries=0)
    table = levels(deform_attn_check.SHAPES)
    out = deform_attn_triton.run_forward(value, *table, locations, weights)
    assert out.shape == (2, 0, 64)
    assert not deform_attn_triton.run_backward(out, value, *table, locations, weights, True)[0].any()
    value, locations, weights = deform_attn_check.small_case(CPU, queries=2)
    grads = deform_attn_triton.run_backward(torch.zeros(2, 2, 64), value, *table, locations, weights, True)
    assert not any(one.any() for one in grads)


def test_torch_compile_takes_the_kernel_as_one_operator():
    if not hasattr(torch.library, 'custom_op'):
        pytest.skip('torch before 2.4 leaves the graph for the kernel')
    inputs = [one.requires_grad_() for one in deform_attn_check.small_case(CPU, queries=3, heads=1, points=1)]
    table = levels(deform_attn_check.SHAPES)

    def attend(value, locations, weights):
        return deform_attn_triton.TritonDeformableAttention.apply(value, *table, locations, weights) * 2

    compiled = torch.compile(attend, fullgraph=True, backend='aot_eager')
    results = [torch.autograd.grad(one(*inputs).square().sum(), inputs) for one in (attend, compiled)]
    for eager, traced in zip(*results):
        torch.testing.assert_close(traced, eager)
    torch._dynamo.reset()


def test_the_check_before_first_use_passes_and_catches_a_wrong_gradient(monkeypatch):
    deform_attn_check.compare(CPU, torch.bfloat16)
    assert deform_attn._try_triton(CPU)
    right = deform_attn_triton.run_backward

    def wrong(*args):
        value, locations, weights = right(*args)
        return value, locations * 1.2, weights

    monkeypatch.setattr(deform_attn_triton, 'run_backward', wrong)
    said = '(?s)does without its Triton kernel on cpu: AssertionError: .*gradient of locations'
    with pytest.warns(UserWarning, match=said):
        assert not deform_attn._try_triton(CPU)
