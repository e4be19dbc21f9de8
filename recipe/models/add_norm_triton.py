"""The sum of a residual branch and the LayerNorm after it in Triton, one kernel each way.

Single operators write and read the tokens several times. These kernels read each input once and write each result
once. All arithmetic is float32. No addition is atomic, so results do not depend on the order of programs. The import of
this module needs Triton.
"""

from typing import Any, Sequence, Tuple

import triton
import triton.language as tl
from torch import Tensor

from recipe.models.add_norm import TILE


@triton.jit
def _forward(
    x_ptr,
    branch_ptr,
    drawn_ptr,
    weight_ptr,
    bias_ptr,
    total_ptr,
    normed_ptr,
    mean_ptr,
    rstd_ptr,
    num_rows,
    rows_per_image,
    channels,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: ROWS rows. BLOCK is at least the number of channels."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    row_exists = row < num_rows
    column_exists = column < channels
    exists = row_exists[:, None] & column_exists[None, :]
    at = row.to(tl.int64)[:, None] * channels + column[None, :]
    x = tl.load(x_ptr + at, mask=exists, other=0.0)
    if branch_ptr is not None:
        branch = tl.load(branch_ptr + at, mask=exists, other=0.0).to(tl.float32)
        if drawn_ptr is not None:
            branch *= tl.load(drawn_ptr + row // rows_per_image, mask=row_exists, other=0.0)[:, None]
        x += branch
        tl.store(total_ptr + at, x, mask=exists)
    mean = tl.sum(x, 1) / channels
    centred = tl.where(exists, x - mean[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
    weight = tl.load(weight_ptr + column, mask=column_exists, other=0.0)
    bias = tl.load(bias_ptr + column, mask=column_exists, other=0.0)
    normed = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask=exists)
    tl.store(mean_ptr + row, mean, mask=row_exists)
    tl.store(rstd_ptr + row, rstd, mask=row_exists)


@triton.jit
def _backward(
    grad_ptr,
    grad_total_ptr,
    total_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    drawn_ptr,
    grad_x_ptr,
    grad_branch_ptr,
    sums_ptr,
    num_rows,
    rows_per_image,
    channels,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: every n-th group of ROWS rows, where n is the number of programs."""
    column = tl.arange(0, BLOCK)
    column_exists = column < channels
    weight = tl.load(weight_ptr + column, mask=column_exists, other=0.0)[None, :]
    weight_sums = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    bias_sums = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for first in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        row_exists = row < num_rows
        exists = row_exists[:, None] & column_exists[None, :]
        at = row.to(tl.int64)[:, None] * channels + column[None, :]
        grad = tl.load(grad_ptr + at, mask=exists, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row_exists, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + row, mask=row_exists, other=0.0)[:, None]
        # The row with mean 0 and variance 1.
        unit = tl.where(exists, (tl.load(total_ptr + at, mask=exists, other=0.0) - mean) * rstd, 0.0)
        weight_sums += grad * unit
        bias_sums += grad
        grad *= weight
        along_mean = tl.sum(grad, 1)[:, None] / channels
        along_unit = tl.sum(grad * unit, 1)[:, None] / channels
        grad = (grad - along_mean - unit * along_unit) * rstd
        grad += tl.load(grad_total_ptr + at, mask=exists, other=0.0)
        tl.store(grad_x_ptr + at, grad, mask=exists)
        if grad_branch_ptr is not None:
            if drawn_ptr is not None:
                grad *= tl.load(drawn_ptr + row // rows_per_image, mask=row_exists, other=0.0)[:, None]
            tl.store(grad_branch_ptr + at, grad.to(grad_branch_ptr.dtype.element_ty), mask=exists)
    sums_ptr += tl.program_id(0).to(tl.int64) * 2 * channels
    tl.store(sums_ptr + column, tl.sum(weight_sums, 0), mask=column_exists)
    tl.store(sums_ptr + channels + column, tl.sum(bias_sums, 0), mask=column_exists)


def run_forward(inputs: Sequence[Any], outputs: Sequence[Any], rows_per_image: int, eps: float) -> None:
    """Compute the sum and its norm (Layer Normalization, arXiv:1607.06450, equation 4), into given tensors.

    Args:
        inputs: x, (N, C) rows of float32; branch, (N, C) of any floating dtype or None; drawn, one number an image of
            float32 or None; weight and bias of the norm, (C, ) of float32. All contiguous.
        outputs: x + drawn * branch, (N, C) of float32, or None without a branch; its norm, (N, C) of any floating
            dtype; mean and 1 / standard deviation of each row, N numbers of float32.
        rows_per_image: Rows for each number of ``drawn``.
        eps: Added to the variance.
    """
    num_rows, channels, rows, block = _sizes(outputs[1])
    _forward[(triton.cdiv(num_rows, rows),)](
        *inputs, *outputs, num_rows, rows_per_image, channels, eps, ROWS=rows, BLOCK=block, num_warps=8
    )


def run_backward(inputs: Sequence[Any], outputs: Sequence[Any], rows_per_image: int) -> None:
    """Compute the gradients of :func:`run_forward`, into given tensors.

    Args:
        inputs: Gradient of the norm, (N, C) in the dtype of the norm; gradient of the sum, (N, C) of float32; the sum,
            its means and 1 / standard deviations, and the weight, as in :func:`run_forward`; drawn or None. All
            contiguous.
        outputs: Gradient of x, (N, C) of float32; gradient of the branch, (N, C) of any floating dtype, or None without
            a branch; P partial sums of the gradients of weight and bias, (P, 2, C) of float32, for any P.
        rows_per_image: As in :func:`run_forward`.
    """
    num_rows, channels, rows, block = _sizes(inputs[0])
    _backward[(len(outputs[-1]),)](
        *inputs, *outputs, num_rows, rows_per_image, channels, ROWS=rows, BLOCK=block, num_warps=8
    )


def _sizes(x: Tensor) -> Tuple[int, int, int, int]:
    """Return the rows and channels of a tensor, rows of a program, and the power of two that holds a row."""
    block = triton.next_power_of_2(x.shape[1])
    return (*x.shape, max(1, TILE // block), block)
