"""Deformable attention without gradients on a CPU computes what upstream's function computes."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

from recipe.models import deform_attn, deform_attn_check, deform_attn_rows


def case(shapes, queries=5, heads=2, points=3):
    """Value, locations some of which lie outside, and weights, of two images; float64."""
    return deform_attn_check.small_case(torch.device('cpu'), torch.float64, shapes, heads, 4, queries, points)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    queries=st.integers(1, 9),
    heads=st.integers(1, 3),
    points=st.integers(1, 4),
    chunk=st.integers(1, 10),
)
@settings(max_examples=50, deadline=None)
def test_it_is_upstreams_function(shapes, queries, heads, points, chunk):
    inputs = case(shapes, queries, heads, points)
    with mock.patch.object(deform_attn_rows, '_QUERIES', chunk):
        found = deform_attn_rows.sum_of_rows(inputs[0], shapes, *inputs[1:])
    expected = multi_scale_deformable_attn_pytorch(inputs[0], shapes, *inputs[1:])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('place', [float('inf'), float('-inf'), float('nan'), 1e30, -1e30])
def test_an_undefined_place_reads_nothing(place):
    value, locations, weights = case([(3, 2)])
    assert not deform_attn_rows.sum_of_rows(value, [(3, 2)], torch.full_like(locations, place), weights).any()


@pytest.mark.parametrize('places', ['borders', 'centres'])
def test_places_on_borders_and_centres(places):
    shapes = [(4, 8), (2, 1)]  # powers of two, so that both forms find the same pixel without rounding
    value, locations, weights = case(shapes, queries=81, points=1)
    grid = torch.cartesian_prod(torch.arange(9) / 8, torch.arange(9) / 8).double() + (places == 'centres') / 16
    locations = grid.view(1, -1, 1, 1, 1, 2).expand_as(locations)
    found = deform_attn_rows.sum_of_rows(value, shapes, locations, weights)
    torch.testing.assert_close(found, multi_scale_deformable_attn_pytorch(value, shapes, locations, weights))


def test_it_runs_in_eval_mode_where_nothing_needs_a_gradient():
    value, locations, weights = case([(3, 2)])
    arguments = (value, torch.tensor([[3, 2]]), torch.tensor([0]), locations, weights)
    with mock.patch.object(deform_attn, 'sum_of_rows', wraps=deform_attn_rows.sum_of_rows) as called:
        with_gradients = deform_attn.multi_scale_deformable_attn(*arguments, training=False)
        with torch.no_grad():
            trained = deform_attn.multi_scale_deformable_attn(*arguments)
            assert not called.called
            tested = deform_attn.multi_scale_deformable_attn(*arguments, training=False)
        assert called.called
    assert torch.equal(trained, with_gradients)
    torch.testing.assert_close(tested, trained)
