"""The Triton kernel of the assignment; test_triton_kernels.py runs this with TRITON_INTERPRET=1."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from recipe.models import assignment, assignment_triton

CPU = torch.device('cpu')
# How the costs of a problem with k masks and q queries are drawn. The last two have exact ties in float32.
DRAWS = {
    'uniform': lambda draw, q, k: draw.random((q, k)),
    'queries that all masks want': lambda draw, q, k: 7 + draw.normal(size=(q, k)) + 3 * draw.normal(size=(q, 1)),
    'near ties': lambda draw, q, k: draw.random((1, k)) * 10 + 1e-5 * draw.random((q, k)),
    'ties': lambda draw, q, k: draw.integers(0, 4, (q, k)),
}
# Queries, the most masks of a problem, and how many problems: 10 000 with the four draws.
SIZES = [(100, 19, 1600), (300, 19, 640), (20, 20, 200), (100, 200, 60)]


def solve(matrices, group):
    """Pairs (queries, masks) of each problem, from the kernel."""
    problems = assignment.problems_of([matrix.shape for matrix in matrices])
    costs = torch.from_numpy(np.concatenate([matrix.ravel() for matrix in matrices]))
    most = int(problems.table[:, 1].max())
    queries, masks, finite = assignment_triton.run(
        costs, torch.from_numpy(problems.table), problems.num_queries, most, problems.size, group
    )
    assert finite.all()
    ends = [int(row[3]) + min(matrix.shape) for row, matrix in zip(problems.table, matrices)]
    return [(queries[a:b].numpy(), masks[a:b].numpy()) for a, b in zip(problems.table[:, 3], ends)]


def compare(name, size, most, count, seed=0):
    """Solve problems with 0 to ``most`` masks, and compare with SciPy; return how many have other pairs."""
    draw = np.random.default_rng(seed)
    shapes = [(size, int(draw.integers(0, most + 1))) for _ in range(count)]
    matrices = [DRAWS[name](draw, *shape).astype(np.float32) for shape in shapes]
    others = 0
    for matrix, (queries, masks) in zip(matrices, solve(matrices, 16 if count < 64 else 256)):
        expected = linear_sum_assignment(matrix)
        exact = matrix.astype(np.float64)
        assert (np.diff(queries) > 0).all() and len(set(masks)) == len(masks) == min(matrix.shape)
        total = exact[expected].sum()
        # Equal but for the order of the additions.
        assert abs(exact[queries, masks].sum() - total) <= 1e-12 * max(1, abs(total))
        others += not (np.array_equal(queries, expected[0]) and np.array_equal(masks, expected[1]))
    return others


def test_a_sample_has_the_pairs_of_scipy():
    assert compare('uniform', 100, 4, 16) == 0
    compare('ties', 6, 8, 16)


@pytest.mark.release
@pytest.mark.parametrize('size, most, count', SIZES)
@pytest.mark.parametrize('name', DRAWS)
def test_ten_thousand_problems_cost_what_they_do_in_scipy(name, size, most, count):
    """The pairs are those of SciPy, too, unless there are ties."""
    others = compare(name, size, most, count, seed=size)
    assert others == 0 or 'ties' in name


def test_one_program_for_each_problem_as_on_a_gpu():
    assignment.check(assignment._triton, CPU)


def test_a_cost_that_is_not_finite_is_noticed_and_ends_in_no_endless_loop():
    for bad in (float('nan'), float('inf')):
        costs = torch.arange(12.0)
        costs[5] = bad
        problems = assignment.Problems(np.array([[0, 2, 3, 0, 0, 0], [3, 0, 3, 2, 0, 0]]), 2, 4)
        # The third place of each query is padding: what is there does not matter.
        assert assignment._triton(costs, problems)[2]
        costs[4] = bad
        assert not assignment._triton(costs, problems)[2]
