"""Multi-scale deformable attention in Triton, forward and backward.

It needs no compiled extension. Values are read in their own dtype, bfloat16 and float16 included. Coordinates and all
arithmetic are float32 (float64 for float64). The import of this module needs Triton.

Several samples add to the gradient of one value. The additions are atomic and in any order, as in mmcv's compiled
operator. Under ``torch.use_deterministic_algorithms`` they add integers, whose sum does not depend on the order.
"""

from typing import Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from recipe.models.execution import as_operator

# Queries per program.
_BLOCK = 32
# Bits below the largest possible contribution in deterministic mode. An int64 holds the sum of 2^24 such contributions.
_FIXED_BITS = 38


@triton.jit
def _corner(level_ptr, rows, columns, inside, channels, dim, row_stride, w, acc_type: tl.constexpr):
    """Read the values at one corner of each sample, (BLOCK, D)."""
    offset = (rows * w + columns) * row_stride
    mask = inside[:, None] & (channels < dim)[None, :]
    value = tl.load(level_ptr + offset[:, None] + channels[None, :], mask=mask, other=0.0)
    return value.to(acc_type)


@triton.jit
def _place(location_ptr, at, exists, h, w):
    """Return left, top, dx, dy of each sample, (BLOCK, ): its upper left pixel and its distance from that pixel."""
    x = tl.load(location_ptr + at * 2, mask=exists, other=0.0) * w - 0.5
    y = tl.load(location_ptr + at * 2 + 1, mask=exists, other=0.0) * h - 0.5
    # Samples this far outside read zeros anyway, and the clamped position fits into an int. max and min turn NaN into
    # one of the bounds.
    x = tl.minimum(tl.maximum(x, -2.0), w + 1.0)
    y = tl.minimum(tl.maximum(y, -2.0), h + 1.0)
    left = tl.floor(x)
    top = tl.floor(y)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def _forward(
    value_ptr,
    shapes_ptr,
    starts_ptr,
    location_ptr,
    weight_ptr,
    out_ptr,
    num_keys,
    num_queries,
    heads,
    dim,
    levels: tl.constexpr,
    points: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    acc_type: tl.constexpr,
):
    """One program: BLOCK queries of one head of one image."""
    image = tl.program_id(1).to(tl.int64) // heads
    head = tl.program_id(1) % heads
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = query < num_queries
    channels = tl.arange(0, D)
    row_stride = heads * dim
    # Flat index into (bs, num_queries, num_heads).
    place = (image * num_queries + query) * heads + head
    acc = tl.zeros((BLOCK, D), dtype=acc_type)
    for level in range(levels):
        h = tl.load(shapes_ptr + 2 * level).to(tl.int32)
        w = tl.load(shapes_ptr + 2 * level + 1).to(tl.int32)
        start = tl.load(starts_ptr + level)
        level_ptr = value_ptr + (image * num_keys + start) * row_stride + head * dim
        for point in range(points):
            at = (place * levels + level) * points + point
            weight = tl.load(weight_ptr + at, mask=exists, other=0.0).to(acc_type)
            left, top, dx, dy = _place(location_ptr, at, exists, h, w)
            has_left = exists & (left >= 0) & (left < w)
            has_right = exists & (left >= -1) & (left < w - 1)
            has_top = (top >= 0) & (top < h)
            has_bottom = (top >= -1) & (top < h - 1)
            acc += (weight * (1 - dy) * (1 - dx))[:, None] * _corner(
                level_ptr, top, left, has_top & has_left, channels, dim, row_stride, w, acc_type
            )
            acc += (weight * (1 - dy) * dx)[:, None] * _corner(
                level_ptr, top, left + 1, has_top & has_right, channels, dim, row_stride, w, acc_type
            )
            acc += (weight * dy * (1 - dx))[:, None] * _corner(
                level_ptr, top + 1, left, has_bottom & has_left, channels, dim, row_stride, w, acc_type
            )
            acc += (weight * dy * dx)[:, None] * _corner(
                level_ptr, top + 1, left + 1, has_bottom & has_right, channels, dim, row_stride, w, acc_type
            )
    tl.store(
        out_ptr + (place * dim)[:, None] + channels[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=exists[:, None] & (channels < dim)[None, :],
    )


@triton.jit
def _add(level_ptr, rows, columns, inside, channels, dim, row_stride, w, amount, scale, FIXED: tl.constexpr):
    """Add (BLOCK, D) to the gradient of the values at one corner."""
    offset = (rows * w + columns) * row_stride
    mask = inside[:, None] & (channels < dim)[None, :]
    if FIXED:
        amount = tl.floor(amount * scale + 0.5).to(tl.int64)
    tl.atomic_add(level_ptr + offset[:, None] + channels[None, :], amount, mask=mask, sem='relaxed')


@triton.jit
def _backward(
    grad_ptr,
    value_ptr,
    shapes_ptr,
    starts_ptr,
    location_ptr,
    weight_ptr,
    scale_ptr,
    grad_value_ptr,
    grad_location_ptr,
    grad_weight_ptr,
    num_keys,
    num_queries,
    heads,
    dim,
    levels: tl.constexpr,
    points: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    acc_type: tl.constexpr,
    FIXED: tl.constexpr,
):
    """One program: BLOCK queries of one head of one image."""
    image = tl.program_id(1).to(tl.int64) // heads
    head = tl.program_id(1) % heads
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = query < num_queries
    channels = tl.arange(0, D)
    row_stride = heads * dim
    place = (image * num_queries + query) * heads + head
    grad = tl.load(
        grad_ptr + (place * dim)[:, None] + channels[None, :],
        mask=exists[:, None] & (channels < dim)[None, :],
        other=0.0,
    ).to(acc_type)
    scale = tl.load(scale_ptr)
    for level in range(levels):
        h = tl.load(shapes_ptr + 2 * level).to(tl.int32)
        w = tl.load(shapes_ptr + 2 * level + 1).to(tl.int32)
        start = tl.load(starts_ptr + level)
        first = (image * num_keys + start) * row_stride + head * dim
        level_ptr = value_ptr + first
        sum_ptr = grad_value_ptr + first
        for point in range(points):
            at = (place * levels + level) * points + point
            weight = tl.load(weight_ptr + at, mask=exists, other=0.0).to(acc_type)
            left, top, dx, dy = _place(location_ptr, at, exists, h, w)
            has_left = exists & (left >= 0) & (left < w)
            has_right = exists & (left >= -1) & (left < w - 1)
            has_top = (top >= 0) & (top < h)
            has_bottom = (top >= -1) & (top < h - 1)
            # The product of gradient and value at each corner, (BLOCK, )
            a = tl.sum(
                grad * _corner(level_ptr, top, left, has_top & has_left, channels, dim, row_stride, w, acc_type), 1
            )
            b = tl.sum(
                grad * _corner(level_ptr, top, left + 1, has_top & has_right, channels, dim, row_stride, w, acc_type), 1
            )
            c = tl.sum(
                grad * _corner(level_ptr, top + 1, left, has_bottom & has_left, channels, dim, row_stride, w, acc_type),
                1,
            )
            d = tl.sum(
                grad
                * _corner(level_ptr, top + 1, left + 1, has_bottom & has_right, channels, dim, row_stride, w, acc_type),
                1,
            )
            along_top = a + (b - a) * dx
            along_bottom = c + (d - c) * dx
            tl.store(grad_weight_ptr + at, along_top + (along_bottom - along_top) * dy, mask=exists)
            grad_x = ((b - a) * (1 - dy) + (d - c) * dy) * weight * w
            grad_y = (along_bottom - along_top) * weight * h
            tl.store(grad_location_ptr + at * 2, grad_x, mask=exists)
            tl.store(grad_location_ptr + at * 2 + 1, grad_y, mask=exists)
            _add(
                sum_ptr,
                top,
                left,
                has_top & has_left,
                channels,
                dim,
                row_stride,
                w,
                (weight * (1 - dy) * (1 - dx))[:, None] * grad,
                scale,
                FIXED,
            )
            _add(
                sum_ptr,
                top,
                left + 1,
                has_top & has_right,
                channels,
                dim,
                row_stride,
                w,
                (weight * (1 - dy) * dx)[:, None] * grad,
                scale,
                FIXED,
            )
            _add(
                sum_ptr,
                top + 1,
                left,
                has_bottom & has_left,
                channels,
                dim,
                row_stride,
                w,
                (weight * dy * (1 - dx))[:, None] * grad,
                scale,
                FIXED,
            )
            _add(
                sum_ptr,
                top + 1,
                left + 1,
                has_bottom & has_right,
                channels,
                dim,
                row_stride,
                w,
                (weight * dy * dx)[:, None] * grad,
                scale,
                FIXED,
            )


def _accumulates_in(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _sizes(value: Tensor, locations: Tensor) -> Tuple[tuple, tuple, dict]:
    """Return grid, sizes and constants of both kernels."""
    bs, num_keys, heads, dim = value.shape
    num_queries, _, levels, points = locations.shape[1:5]
    constants = dict(
        levels=levels,
        points=points,
        D=triton.next_power_of_2(dim),
        BLOCK=_BLOCK,
        acc_type=tl.float64 if value.dtype == torch.float64 else tl.float32,
    )
    return ((triton.cdiv(num_queries, _BLOCK), bs * heads), (num_keys, num_queries, heads, dim), constants)


@as_operator('deform_attn_forward')
def run_forward(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable DETR (arXiv:2010.04159), equation 3.

    Args:
        value: Shape (bs, num_keys, num_heads, head_dim), of any floating dtype.
        shapes: (h, w) of each level, integer, on the device.
        starts: First key of each level, integer, on the device.
        locations: (x, y) in [0, 1], shape (bs, num_queries, num_heads, num_levels, num_points, 2), float32; float64 for
            a ``value`` of float64.
        weights: Shape (bs, num_queries, num_heads, num_levels, num_points).

    Returns:
        Shape (bs, num_queries, num_heads * head_dim), dtype of ``value``.
    """
    value, locations, weights = (t.contiguous() for t in (value, locations, weights))
    grid, sizes, constants = _sizes(value, locations)
    bs, _, heads, dim = value.shape
    out = value.new_empty(bs, locations.shape[1], heads * dim)
    if out.numel():
        _forward[grid](value, shapes.contiguous(), starts.contiguous(), locations, weights, out, *sizes, **constants)
    return out


@as_operator('deform_attn_backward')
def run_backward(
    grad: Tensor, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, deterministic: bool
) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`run_forward`.

    Args:
        grad: Gradient of its result, with the same shape and dtype.
        value: As in ``run_forward``.
        shapes: As in ``run_forward``.
        starts: As in ``run_forward``.
        locations: As in ``run_forward``.
        weights: As in ``run_forward``.
        deterministic: Sum in fixed point, so that the sum does not depend on the order. The step is 2^-38 of the
            largest gradient times the largest weight.

    Returns:
        Gradients of ``value``, ``locations`` and ``weights``, each in the shape and dtype of its tensor. If an element
        of ``grad`` is not finite, at least one element of the first is not finite.
    """
    grad, value, locations, weights = (t.contiguous() for t in (grad, value, locations, weights))
    grid, sizes, constants = _sizes(value, locations)
    acc_dtype = _accumulates_in(value)
    scale = torch.ones((), dtype=acc_dtype, device=value.device)
    sums = torch.zeros(value.shape, dtype=torch.int64 if deterministic else acc_dtype, device=value.device)
    grad_locations = torch.empty_like(locations)
    grad_weights = torch.empty_like(weights)
    if grad.numel():
        if deterministic:
            most = grad.abs().amax().to(acc_dtype) * weights.abs().amax()
            # A power of two, so that scaling rounds nothing. If a number is not finite, the scale is 0, and no sum
            # comes out finite.
            scale = torch.exp2(_FIXED_BITS - torch.ceil(torch.log2(most.clamp(min=2.0**-80))))
        _backward[grid](
            grad,
            value,
            shapes.contiguous(),
            starts.contiguous(),
            locations,
            weights,
            scale,
            sums,
            grad_locations,
            grad_weights,
            *sizes,
            FIXED=deterministic,
            **constants,
        )
    if deterministic:
        sums = sums.to(torch.float64).div(scale)
    return sums.to(value.dtype), grad_locations, grad_weights


if hasattr(run_forward, 'register_fake'):

    @run_forward.register_fake
    def _(value, shapes, starts, locations, weights):
        bs, _, heads, dim = value.shape
        return value.new_empty(bs, locations.shape[1], heads * dim)

    @run_backward.register_fake
    def _(grad, value, shapes, starts, locations, weights, deterministic):
        return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (value, locations, weights))


class TritonDeformableAttention(Function):
    """Deformable attention in Triton; no second derivative."""

    @staticmethod
    def forward(ctx, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """Compute the same as :func:`run_forward`."""
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return run_forward(value, shapes, starts, locations, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        """Compute the same as :func:`run_backward`."""
        grads = run_backward(grad, *ctx.saved_tensors, torch.are_deterministic_algorithms_enabled())
        return grads[0], None, None, grads[1], grads[2]
