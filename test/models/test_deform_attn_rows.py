"""Deformable attention without gradients on a CPU computes what upstream's function computes."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention, multi_scale_deformable_attn_pytorch

from recipe.models import adopt, deform_attn, deform_attn_check, deform_attn_rows


def case(shapes, queries=5, heads=2, points=3):
    """Value, locations some of which lie outside, and weights, of two images; float64."""
    return deform_attn_check.small_case(torch.device('cpu'), torch.float64, shapes, heads, 4, queries, points)


def summed(value, shapes, locations, weights):
    """The same from locations: their middle is the reference point, and the rest are offsets."""
    centres = locations.nan_to_num(0, 0, 0).clamp(-1, 2).mean((2, 4))
    sizes = torch.tensor([[[w, h]] for h, w in shapes])
    offsets = (locations - centres[:, :, None, :, None]) * sizes
    return deform_attn_rows.sum_of_rows(value, shapes, centres, offsets, weights)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    queries=st.integers(1, 9),
    heads=st.integers(1, 3),
    points=st.integers(1, 4),
    chunk=st.integers(1, 10),
)
@settings(max_examples=50, deadline=None)
def test_it_is_upstreams_function(shapes, queries, heads, points, chunk):
    value, locations, weights = case(shapes, queries, heads, points)
    with mock.patch.object(deform_attn_rows, '_QUERIES', chunk):
        found = summed(value, shapes, locations, weights)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('place', [float('inf'), float('-inf'), float('nan'), 1e30, -1e30])
def test_an_undefined_place_reads_nothing(place):
    value, locations, weights = case([(3, 2)])
    assert not summed(value, [(3, 2)], torch.full_like(locations, place), weights).any()


@pytest.mark.parametrize('places', ['borders', 'centres'])
def test_places_on_borders_and_centres(places):
    shapes = [(4, 8), (2, 1)]  # powers of two, so that both forms find the same pixel without rounding
    value, locations, weights = case(shapes, queries=81, points=1)
    grid = torch.cartesian_prod(torch.arange(9) / 8, torch.arange(9) / 8).double() + (places == 'centres') / 16
    locations = grid.view(1, -1, 1, 1, 1, 2).expand_as(locations)
    found = summed(value, shapes, locations, weights)
    torch.testing.assert_close(found, multi_scale_deformable_attn_pytorch(value, shapes, locations, weights))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_the_module_takes_it_in_eval_mode_where_nothing_needs_a_gradient(dtype):
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(16, 2, 3, 4, dropout=0.0, batch_first=True).to(dtype)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    adopt(module, deform_attn.FastMultiScaleDeformableAttention)
    shapes = [(2, 3), (4, 6), (1, 5)]
    keys = sum(h * w for h, w in shapes)
    query, position = (torch.randn(2, keys, 16, dtype=dtype) for _ in range(2))
    given = {
        'query_pos': position,
        'reference_points': torch.rand(2, keys, 3, 2, dtype=dtype),
        'spatial_shapes': torch.tensor(shapes),
        'level_start_index': torch.tensor([0, 6, 30]),
    }
    with mock.patch.object(deform_attn, 'sum_of_rows', wraps=deform_attn_rows.sum_of_rows) as called:
        with_gradients = module.eval()(query, **given)
        with torch.no_grad():
            trained = module.train()(query, **given)
            assert not called.called
            tested = module.eval()(query, **given)
            assert called.called
            torch.testing.assert_close(module(query, **given, host_shapes=shapes), tested, rtol=0, atol=0)
            theirs = MultiScaleDeformableAttention.forward(module, query, **given)
    assert torch.equal(trained, with_gradients)
    torch.testing.assert_close(tested, theirs)
    torch.testing.assert_close(tested, with_gradients)
