"""Deformable attention for every device and precision: the values and gradients of upstream's function."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention, multi_scale_deformable_attn_pytorch

from recipe.models import adopt, deform_attn
from recipe.models.deform_attn import FastMultiScaleDeformableAttention

SHAPES = torch.tensor([[6, 4], [3, 2]])
STARTS = torch.tensor([0, 24])


def attention_inputs(dtype=torch.float32, queries=5, heads=2, dim=4, points=3):
    """Return value, sampling locations and attention weights, the last summing to 1."""
    value = torch.randn(2, 30, heads, dim)
    locations = torch.rand(2, queries, heads, 2, points, 2)
    weights = torch.rand(2, queries, heads, 2 * points).softmax(-1).view(2, queries, heads, 2, points)
    return value.to(dtype), locations, weights


def fast_module(**options):
    module = MultiScaleDeformableAttention(**options)
    adopt(module, FastMultiScaleDeformableAttention)
    return module


@given(seed=st.integers(0, 2**16), queries=st.integers(1, 9), heads=st.integers(1, 4), points=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_float32_equals_the_upstream_function_with_gradients(seed, queries, heads, points):
    torch.manual_seed(seed)
    inputs = attention_inputs(queries=queries, heads=heads, points=points)
    ours = [t.clone().requires_grad_() for t in inputs]
    theirs = [t.clone().requires_grad_() for t in inputs]
    out = deform_attn.multi_scale_deformable_attn(ours[0], SHAPES, STARTS, *ours[1:])
    expected = multi_scale_deformable_attn_pytorch(theirs[0], SHAPES, *theirs[1:])
    # Levels are added one after the other instead of all samples at once.
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(out.square().sum(), ours)
    expected_grads = torch.autograd.grad(expected.square().sum(), theirs)
    for grad, expected_grad in zip(grads, expected_grads):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_sampled_in_float32(dtype):
    value, locations, weights = attention_inputs(dtype)
    out = deform_attn.multi_scale_deformable_attn(value, SHAPES, STARTS, locations, weights)
    expected = multi_scale_deformable_attn_pytorch(value.float(), SHAPES, locations, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype))


def test_module_runs_under_autocast_and_trains():
    module = fast_module(embed_dims=16, num_heads=4, num_levels=2, batch_first=True)
    query = torch.randn(2, 30, 16)
    with torch.autocast('cpu', torch.bfloat16):
        out = module(query, reference_points=torch.rand(2, 30, 2, 2), spatial_shapes=SHAPES, level_start_index=STARTS)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_moves_no_sample(monkeypatch, dtype):
    module = fast_module(embed_dims=16, num_heads=4, num_levels=2, batch_first=True)
    torch.nn.init.normal_(module.sampling_offsets.weight)
    query = torch.randn(2, 30, 16)
    places = []

    def attend(value, shapes, starts, locations, *rest):
        places.append(locations)
        return value.new_zeros(2, 30, 16)

    monkeypatch.setattr(deform_attn, 'multi_scale_deformable_attn', attend)
    arguments = dict(reference_points=torch.rand(2, 30, 2, 2), spatial_shapes=SHAPES, level_start_index=STARTS)
    for enabled in (False, True):
        with torch.autocast('cpu', dtype, enabled=enabled):
            module(query, **arguments)
    assert places[0].dtype == torch.float32
    assert torch.equal(places[0], places[1])


@given(
    seed=st.integers(0, 2**16),
    queries=st.integers(1, 9),
    batch_first=st.booleans(),
    ratio=st.sampled_from([0.5, 1]),
    boxes=st.booleans(),
    masked=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_the_module_computes_what_upstreams_does(seed, queries, batch_first, ratio, boxes, masked):
    torch.manual_seed(seed)
    module = fast_module(
        embed_dims=16, num_heads=4, num_levels=2, num_points=3, dropout=0.0, batch_first=batch_first,
        value_proj_ratio=ratio,
    ).double()  # fmt: skip
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    query, value = (torch.randn(2, count, 16).double() for count in (queries, 30))
    if not batch_first:
        query, value = query.transpose(0, 1), value.transpose(0, 1)
    reference = torch.rand(2, queries, 2, 4 if boxes else 2).double()
    mask = torch.rand(2, 30) > 0.5 if masked else None
    results = []
    for forward in (FastMultiScaleDeformableAttention.forward, MultiScaleDeformableAttention.forward):
        leaves = [t.detach().clone().requires_grad_() for t in (query, value)]
        out = forward(
            module, leaves[0], value=leaves[1], reference_points=reference, spatial_shapes=SHAPES,
            level_start_index=STARTS, key_padding_mask=mask,
        )  # fmt: skip
        wanted = [*leaves, *module.parameters()]
        direction = torch.arange(out.numel()).view(out.shape).cos()
        results.append([out, *torch.autograd.grad((out * direction).sum(), wanted)])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
