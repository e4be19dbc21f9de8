"""Assignment at the least total cost in Triton: one program for each problem.

It needs no compiled extension. The algorithm and the order of its additions are those of
``scipy.optimize.linear_sum_assignment``: shortest augmenting paths (Crouse 2016, `On implementing 2D rectangular
assignment algorithms <https://doi.org/10.1109/TAES.2016.140952>`_), in float64. SciPy loops over the columns; here they
are a vector. If several assignments cost the same, it may choose another one than SciPy. The import of this module
needs Triton.
"""

from typing import Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recipe.models.execution import as_operator


@triton.jit
def _at(vectors, columns, column):
    """Return one element of each vector, (GROUP, BLOCK) -> (GROUP, 1)."""
    return tl.sum(tl.where(columns == column, vectors, 0), 1)[:, None]


@triton.jit
def _any(flags):
    """Return whether any of the flags (GROUP, 1) is set, as a number."""
    return tl.max(tl.max(flags.to(tl.int32), 1), 0)


@triton.jit
def _assign(
    costs_ptr,
    table_ptr,
    queries_ptr,
    masks_ptr,
    finite_ptr,
    num_problems,
    num_queries,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: GROUP problems side by side. BLOCK is at least the number of queries and of masks."""
    problems = tl.program_id(0) * GROUP + tl.arange(0, GROUP)[:, None]
    known = problems < num_problems
    row_ptr = table_ptr + problems * 6
    start = tl.load(row_ptr, mask=known, other=0)
    num_masks = tl.load(row_ptr + 1, mask=known, other=0).to(tl.int32)
    stride = tl.load(row_ptr + 2, mask=known, other=0).to(tl.int32)
    # As in SciPy, the rows are the queries only if there are not more of them than masks.
    rows_are_queries = num_masks >= num_queries
    num_rows = tl.minimum(num_masks, num_queries)
    row_stride = tl.where(rows_are_queries, stride, 1)
    column_stride = tl.where(rows_are_queries, 1, stride)
    infinity = float('inf')
    columns = tl.arange(0, BLOCK)[None, :]
    exists = columns < tl.maximum(num_masks, num_queries)
    # For each column: its row, the dual variable of this row, and its own dual variable.
    row_of = tl.full((GROUP, BLOCK), -1, tl.int32)
    row_dual = tl.zeros((GROUP, BLOCK), tl.float64)
    dual = tl.zeros((GROUP, BLOCK), tl.float64)
    finite = tl.full((GROUP, 1), 1, tl.int32)
    for row in range(tl.max(tl.max(num_rows, 1), 0)):
        shortest = tl.full((GROUP, BLOCK), infinity, tl.float64)
        # The column through whose row the shortest path comes; -1: from the new row.
        previous = tl.full((GROUP, BLOCK), -1, tl.int32)
        done = columns + problems < 0
        lowest = tl.zeros((GROUP, 1), tl.float64)
        current_row = tl.zeros((GROUP, 1), tl.int32) + row
        current_dual = tl.zeros((GROUP, 1), tl.float64)
        current = tl.full((GROUP, 1), -1, tl.int32)
        searches = row < num_rows
        while _any(searches) > 0:
            at = costs_ptr + start + current_row * row_stride + columns * column_stride
            read = tl.load(at, mask=exists & searches, other=0.0)
            usable = tl.abs(read) < infinity
            finite = tl.minimum(finite, tl.min(usable.to(tl.int32), 1)[:, None])
            cost = tl.where(usable, read, 0.0).to(tl.float64)
            path = lowest + cost - current_dual - dual
            better = exists & searches & (done == 0) & (path < shortest)
            shortest = tl.where(better, path, shortest)
            previous = tl.where(better, current, previous)
            reachable = tl.where(exists & (done == 0), shortest, infinity)
            lowest = tl.where(searches, tl.min(reachable, 1)[:, None], lowest)
            # Of the columns with this cost, the first free one, else the first one.
            rank = tl.where(reachable == lowest, tl.where(row_of < 0, columns, columns + BLOCK), 2 * BLOCK - 1)
            current = tl.where(searches, tl.min(rank, 1)[:, None] % BLOCK, current)
            done = done | (searches & (columns == current))
            current_row = tl.where(searches, _at(row_of, columns, current), current_row)
            current_dual = _at(row_dual, columns, current)
            searches = searches & (current_row >= 0)
        change = tl.where(done, lowest - shortest, 0.0)
        row_dual += change
        dual -= change
        walks = row < num_rows
        while _any(walks) > 0:
            before = _at(previous, columns, current)
            moved_row = tl.where(before < 0, row, _at(row_of, columns, before))
            moved_dual = tl.where(before < 0, lowest, _at(row_dual, columns, before))
            here = walks & (columns == current)
            row_of = tl.where(here, moved_row, row_of)
            row_dual = tl.where(here, moved_dual, row_dual)
            current = tl.where(walks, before, current)
            walks = walks & (before >= 0)
    taken = row_of >= 0
    place = tl.where(rows_are_queries, row_of, tl.cumsum(taken.to(tl.int32), 1) - 1)
    out = tl.load(row_ptr + 3, mask=known, other=0) + place
    query = tl.where(rows_are_queries, row_of, columns) + tl.load(row_ptr + 4, mask=known, other=0)
    mask = tl.where(rows_are_queries, columns, row_of) + tl.load(row_ptr + 5, mask=known, other=0)
    tl.store(queries_ptr + out, query, mask=taken)
    tl.store(masks_ptr + out, mask, mask=taken)
    tl.store(finite_ptr + problems, finite != 0, mask=known)


@as_operator('assign')
def run(
    costs: Tensor, table: Tensor, num_queries: int, most_masks: int, size: int, group: int = 1
) -> Tuple[Tensor, Tensor, Tensor]:
    """Solve the problems of a table.

    Args:
        costs: Costs of all problems, float32, of any shape, contiguous.
        table: One row for each problem, see :class:`~recipe.models.assignment.Problems`, int64, (P, 6).
        num_queries: Q.
        most_masks: At least the number of masks of each problem.
        size: Length of the result.
        group: Problems for each program, a power of two. 1 is best on a GPU, many in Triton's interpreter.

    Returns:
        Query and mask of each pair as in :func:`~recipe.models.assignment.solve`, int64, (size,); and whether the costs
        of each problem are finite, bool, (P,).
    """
    queries, masks = (torch.zeros(size, dtype=torch.int64, device=costs.device) for _ in range(2))
    finite = torch.ones(len(table), dtype=torch.bool, device=costs.device)
    block = triton.next_power_of_2(max(num_queries, most_masks))
    # One warp needs no barriers.
    _assign[(triton.cdiv(len(table), group),)](
        costs, table, queries, masks, finite, len(table), num_queries, GROUP=group, BLOCK=block, num_warps=1
    )
    return queries, masks, finite


if hasattr(run, 'register_fake'):

    @run.register_fake
    def _(costs, table, num_queries, most_masks, size, group=1):
        queries, masks = (table.new_empty(size) for _ in range(2))
        return queries, masks, table.new_empty(len(table), dtype=torch.bool)
