"""The assignment of masks to queries: which solver a device takes; Triton's is tested by test_triton_kernels.py."""

import numpy as np
import pytest
import torch

from recipe.models import assignment
from recipe.models.matching import list_problems

CPU = torch.device('cpu')


def test_a_device_whose_solver_cannot_run_takes_scipy_and_says_so():
    missing = torch.device('cuda', 99)
    with pytest.warns(UserWarning, match=r'runs on the host, which waits for cuda:99 in each iteration'):
        assert assignment._solver(missing) is assignment._scipy
    assignment._solver.cache_clear()


def dearer(costs, problems):
    """Give each problem the pairs of another one: its costs turned around."""
    queries, masks, usable = assignment._scipy(-costs, problems)
    return queries, masks, usable


def twice(costs, problems):
    """Give one mask to all queries."""
    queries, masks, usable = assignment._scipy(costs, problems)
    return queries, torch.zeros_like(masks), usable


def blind(costs, problems):
    """Take every cost for a finite one."""
    return (*assignment._scipy(costs.nan_to_num(), problems)[:2], True)


def alarmed(costs, problems):
    return (*assignment._scipy(costs, problems)[:2], False)


@pytest.mark.parametrize(
    'solver, fault',
    [(dearer, 'pairs cost'), (twice, 'pair is wrong'), (blind, 'goes unnoticed'), (alarmed, 'taken for others')],
)
def test_the_check_before_first_use_catches_a_wrong_solver(solver, fault):
    assignment.check(assignment._scipy, CPU)
    with pytest.raises(AssertionError, match=fault):
        assignment.check(solver, CPU)


@pytest.mark.parametrize('room', [None, 6])
def test_problems_of_layers_and_images_are_found_in_the_costs(room):
    """Two layers, images with 2, 0 and 5 masks, 4 queries; with and without padding to 6 masks."""
    draw = np.random.default_rng(0)
    sizes, queries = [2, 0, 5], 4
    strides = sizes if room is None else [room] * 3
    images = [draw.random((2, queries, stride)).astype(np.float32) for stride in strides]
    problems = list_problems(sizes, 2, queries, room)
    matrices = assignment.matrices_of(np.concatenate([image.ravel() for image in images]), problems)
    pairs = []
    for number, matrix in enumerate(matrices):
        layer, image = divmod(number, 3)
        np.testing.assert_array_equal(matrix, images[image][layer][:, : sizes[image]])
        pairs.append((problems.table[number, 3], min(queries, sizes[image])))
    # Each layer has the pairs of its images one after the other, with padding for min(4, 6) pairs each.
    assert [start for start, _ in pairs] == ([0, 2, 2, 6, 8, 8] if room is None else [0, 4, 8, 12, 16, 20])
    assert problems.size == (12 if room is None else 24)
    assert problems.table[:, 4].tolist() == [0, 4, 8, 12, 16, 20]
    assert problems.table[:, 5].tolist() == ([0, 2, 2] * 2 if room is None else [0, 6, 12] * 2)


def test_images_without_masks_need_no_solver():
    queries, masks, usable = assignment.solve(torch.zeros(0), list_problems([0, 0], 2, 4))
    assert len(queries) == len(masks) == 0 and usable is True
    queries, masks, usable = assignment.solve(torch.full((96,), float('nan')), list_problems([0, 0], 2, 4, room=6))
    assert not queries.any() and not masks.any() and len(queries) == len(masks) == 16 and usable is True
