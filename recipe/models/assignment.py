"""Assignment of masks to queries at the least total cost, on the device that has the costs.

- CUDA: a Triton kernel, see ``assignment_triton``.
- NPU: ``mx_driving.hungarian_match``, in float32.
- Everything else, and wherever these two are missing or wrong in a small case: SciPy, for which the host waits for the
  costs.
"""

import warnings
from functools import lru_cache
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple, Union

import numpy as np
import torch
from mmcv.utils.mx_driving_import import import_mx_driving
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from recipe.models.execution import to_device

# The result of a solver: query and mask of each pair, and whether the costs are finite.
Solution = Tuple[Tensor, Tensor, Union[Tensor, bool]]


class Problems(NamedTuple):
    """Assignment problems whose costs lie in one tensor. Each has all Q queries of an image and some masks.

    Attributes:
        table: One row for each problem, int64, (P, 6): index of its first cost; number of masks; distance in the costs
            from one query to the next, masks being side by side; index of its first pair in the result; what is added
            to its queries; what is added to its masks.
        num_queries: Q.
        size: Length of the result. Elements that belong to no pair are 0.
    """

    table: np.ndarray
    num_queries: int
    size: int


def solve(costs: Tensor, problems: Problems) -> Solution:
    """Solve all problems.

    Args:
        costs: Costs of all problems, float32, one-dimensional.
        problems: Where they are.

    Returns:
        Query and mask of each pair, both int64, (``problems.size``,), on the device of the costs. The min(Q, masks)
        pairs of a problem are sorted by query. And whether all costs are finite, a bool or a scalar on the device. If
        not, the pairs are meaningless.
    """
    if not problems.table[:, 1].any():
        nothing = torch.zeros(problems.size, dtype=torch.int64, device=costs.device)
        return nothing, nothing.clone(), True
    return _solver(costs.device)(costs, problems)


@lru_cache(maxsize=None)
def _solver(device: torch.device) -> Callable[[Tensor, Problems], Solution]:
    """Choose the solver for a device; one that is wrong there is never used."""
    own = {'cuda': _triton, 'meta': _triton, 'npu': _mx_driving}.get(device.type)
    if own is None:
        return _scipy
    if device.type != 'meta':
        try:
            check(own, device)
        except Exception as error:  # Triton, CANN and their drivers raise exceptions of many kinds
            warnings.warn(
                f'the assignment of masks to queries runs on the host, which waits for {device} in each iteration: '
                f'{type(error).__name__}: {error}',
                stacklevel=2,
            )
            return _scipy
    return own


def check(solver: Callable[[Tensor, Problems], Solution], device: torch.device) -> None:
    """Compare a solver with SciPy in small problems.

    Args:
        solver: A function such as :func:`solve`.
        device: Device of the costs.

    Raises:
        AssertionError: The total cost of a problem is larger than SciPy's, or costs that are not finite go unnoticed.
        Exception: The solver cannot run; the error may be of any kind.
    """
    draw = np.random.default_rng(0)
    matrices = [draw.random((20, masks), dtype=np.float32) for masks in (1, 3, 19, 20, 33)]
    problems = problems_of([matrix.shape for matrix in matrices])
    costs = torch.from_numpy(np.concatenate([matrix.ravel() for matrix in matrices]))
    queries, masks, finite = solver(costs.to(device), problems)
    if not finite:
        raise AssertionError('finite costs are taken for others')
    found = list(zip(queries.cpu().numpy(), masks.cpu().numpy()))
    for matrix, row in zip(matrices, problems.table):
        pairs = np.array(found[row[3] : row[3] + min(matrix.shape)]) - row[4:]
        expected = matrix[linear_sum_assignment(matrix)].sum()
        if (np.diff(pairs[:, 0]) <= 0).any() or len(set(pairs[:, 1])) < len(pairs):
            raise AssertionError('a pair is wrong')
        total = matrix[tuple(pairs.T)].sum()
        if not total <= expected + 1e-4:
            raise AssertionError(f'the pairs cost {total}, but there are some that cost {expected}')
    costs[7] = float('nan')
    if solver(costs.to(device), problems)[2]:
        raise AssertionError('a cost of nan goes unnoticed')


def problems_of(shapes: Sequence[Tuple[int, int]]) -> Problems:
    """List problems whose costs follow each other, each (Q, masks) and contiguous; no indices are added."""
    rows, start, out = [], 0, 0
    for num_queries, num_masks in shapes:
        rows.append((start, num_masks, num_masks, out, 0, 0))
        start += num_queries * num_masks
        out += min(num_queries, num_masks)
    return Problems(np.array(rows, dtype=np.int64).reshape(-1, 6), shapes[0][0], out)


def matrices_of(costs: Union[Tensor, np.ndarray], problems: Problems) -> List:
    """Return the costs (Q, masks) of each problem."""
    found = []
    for start, num_masks, stride in problems.table[:, :3].tolist():
        whole = costs[start : start + problems.num_queries * stride]
        found.append(whole.reshape(problems.num_queries, stride)[:, :num_masks])
    return found


def _scipy(costs: Tensor, problems: Problems) -> Solution:
    """Solve on the host; one copy brings the costs there, and one brings the pairs back."""
    pairs = np.zeros((2, problems.size), dtype=np.int64)
    usable = True
    for matrix, row in zip(matrices_of(costs.cpu().numpy(), problems), problems.table):
        finite = np.isfinite(matrix)
        if not finite.all():
            usable = False
            matrix = np.where(finite, matrix, 0)
        queries, masks = linear_sum_assignment(matrix)
        at = slice(row[3], row[3] + len(queries))
        pairs[0, at], pairs[1, at] = queries + row[4], masks + row[5]
    queries, masks = to_device(torch.from_numpy(pairs), costs.device)
    return queries, masks, usable


def _triton(costs: Tensor, problems: Problems) -> Solution:
    """Solve with one launch of the kernel."""
    table = to_device(torch.from_numpy(problems.table), costs.device)
    return solve_table(costs, table, problems.num_queries, int(problems.table[:, 1].max()), problems.size)


def solve_table(
    costs: Tensor, table: Tensor, num_queries: int, most_masks: int, size: int
) -> Tuple[Tensor, Tensor, Tensor]:
    """Solve problems whose table is on the device, where the host does not know it; as :func:`solve`.

    Args:
        costs: Costs of all problems.
        table: ``Problems.table``.
        num_queries: Q.
        most_masks: At least the masks of each problem.
        size: Length of the result.
    """
    from recipe.models import assignment_triton

    queries, masks, finite = assignment_triton.run(costs, table, num_queries, most_masks, size)
    return queries, masks, finite.all()


def solves_tables(device: torch.device) -> bool:
    """Return whether :func:`solve_table` is what solves problems on a device."""
    return _solver(device) is _triton


def _mx_driving(costs: Tensor, problems: Problems) -> Solution:
    """Solve with one call of Ascend's operator for each problem; the pairs of the problems follow each other."""
    hungarian_match = import_mx_driving().hungarian_match
    finite = costs.isfinite()
    found: Dict[int, Tuple[Tensor, Tensor]] = {}
    added = np.zeros((2, problems.size), dtype=np.int64)
    for matrix, row in zip(matrices_of(torch.where(finite, costs, 0.0), problems), problems.table.tolist()):
        if row[1]:
            found[row[3]] = queries, masks = hungarian_match(matrix.contiguous())
            added[:, row[3] : row[3] + len(queries)] = [[row[4]], [row[5]]]
    pairs = [torch.cat([found[at][kind] for at in sorted(found)]) for kind in (0, 1)]
    queries, masks = to_device(torch.from_numpy(added), costs.device) + torch.stack(pairs)
    return queries, masks, finite.all()
