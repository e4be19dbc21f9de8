"""Multi-scale deformable attention on CPU that keeps no sampled values.

Upstream keeps the samples of each layer for the backward pass: 264 MB per layer of Mask2Former for two images of 512 x
1024. Here the levels are sampled one after the other, weighted in place and summed. The backward pass samples each
level again.

The queries are always the last axis. Then neighbouring queries sample neighbouring pixels, and weights and sums run
along contiguous memory.
"""

from typing import Iterator, List, NamedTuple, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable


class Samples(NamedTuple):
    """The values, the positions of the samples, and their weights.

    Attributes:
        values: Shape (bs, num_heads, head_dim, num_keys), float32 or float64.
        grids: (x, y) in [-1, 1], shape (bs, num_heads, num_levels, num_points, 2, num_queries).
        weights: Shape (bs, num_heads, num_levels, num_points, num_queries).
        shapes: (h, w) of each level.
    """

    values: Tensor
    grids: Tensor
    weights: Tensor
    shapes: Sequence[Tuple[int, int]]

    def levels(self) -> Iterator[Tuple[Tensor, Tensor, Tensor]]:
        """Yield feature map, sampling grid and weights of each level.

        Yields:
            Shapes (bs * num_heads, head_dim, h, w), (bs * num_heads, num_points, num_queries, 2) and (bs * num_heads,
            1, num_points, num_queries).
        """
        sizes = [h * w for h, w in self.shapes]
        values = self.values.flatten(0, 1).split(sizes, -1)
        grids = self.grids.flatten(0, 1).transpose(-1, -2).unbind(1)
        weights = self.weights.flatten(0, 1).unsqueeze(1).unbind(2)
        for value, shape, grid, weight in zip(values, self.shapes, grids, weights):
            yield value.unflatten(-1, shape), grid, weight


def attend(samples: Samples) -> Tensor:
    """Sample, weight and sum (Deformable DETR, equation 3).

    Args:
        samples: Values, positions and weights.

    Returns:
        Shape (bs, num_heads * head_dim, num_queries).
    """
    out = None
    for value, grid, weight in samples.levels():
        part = _sample(value, grid).mul_(weight).sum(2)
        out = part if out is None else out.add_(part)
    assert out is not None, 'there is at least one level'
    return out.view(samples.values.shape[0], -1, out.shape[-1])


def attend_backward(grad: Tensor, samples: Samples, grad_grids: Tensor, grad_weights: Tensor) -> Tensor:
    """Compute the gradients of :func:`attend`.

    Args:
        grad: Gradient of its result, contiguous.
        samples: Its argument.
        grad_grids: Receives the gradient of the grids, in their shape.
        grad_weights: Receives the gradient of the weights, in their shape; contiguous.

    Returns:
        The gradient of the values, shape (bs, num_heads * head_dim, num_keys).
    """
    bs, num_heads, head_dim = samples.values.shape[:3]
    grad = grad.view(bs * num_heads, head_dim, 1, -1)
    grad_values: List[Tensor] = []
    for level, place, number in zip(samples.levels(), grad_grids.unbind(2), grad_weights.flatten(0, 1).unbind(1)):
        value, grid, weight = level
        sampled = _sample(value, grid)
        torch.sum(sampled.mul_(grad), 1, out=number)
        torch.mul(grad, weight, out=sampled)
        # Bilinear (0), zeros for padding (0), align_corners=False.
        grad_value, grad_grid = torch.ops.aten.grid_sampler_2d_backward(sampled, value, grid, 0, 0, False, [True, True])
        grad_values.append(grad_value.flatten(2))
        place.copy_(grad_grid.unflatten(0, (bs, num_heads)).transpose(-1, -2))
    return torch.cat(grad_values, -1).view(bs, num_heads * head_dim, -1)


class CPUDeformableAttention(Function):
    """Deformable attention on CPU; no second derivative."""

    @staticmethod
    def forward(
        ctx, value: Tensor, sampling_locations: Tensor, attention_weights: Tensor, shapes: Sequence[Tuple[int, int]]
    ) -> Tensor:
        """Deformable DETR (arXiv:2010.04159), equation 3.

        Args:
            ctx: Receives the tensors for the backward pass.
            value: Shape (bs, num_keys, num_heads, head_dim), float32 or float64.
            sampling_locations: (x, y) in [0, 1], shape (bs, num_queries, num_heads, num_levels, num_points, 2).
            attention_weights: Shape (bs, num_queries, num_heads, num_levels, num_points).
            shapes: (h, w) of each level.

        Returns:
            Shape (bs, num_queries, num_heads * head_dim).
        """
        ctx.shapes = shapes
        ctx.save_for_backward(value, sampling_locations, attention_weights)
        samples = _queries_last(value, sampling_locations, attention_weights, shapes)
        return attend(samples).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        """Gradients of values, locations and weights."""
        value, sampling_locations, attention_weights = ctx.saved_tensors
        samples = _queries_last(value, sampling_locations, attention_weights, ctx.shapes)
        grad_grids = torch.empty_like(samples.grids)
        grad_weights = torch.empty_like(samples.weights)
        grad_values = attend_backward(grad.transpose(1, 2).contiguous(), samples, grad_grids, grad_weights)
        # The grid runs from -1 to 1, locations from 0 to 1.
        return (
            grad_values.view(samples.values.shape).permute(0, 3, 1, 2),
            grad_grids.mul_(2).permute(0, 5, 1, 2, 3, 4),
            grad_weights.permute(0, 4, 1, 2, 3),
            None,
        )


def _queries_last(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[Tuple[int, int]]) -> Samples:
    """Move the axes of keys and queries to the end."""
    grids = locations.permute(0, 2, 3, 4, 5, 1)
    return Samples(
        value.permute(0, 2, 3, 1).contiguous(),
        grids.mul(2).sub_(1).contiguous(),
        weights.permute(0, 2, 3, 4, 1).contiguous(),
        shapes,
    )


def _sample(value: Tensor, grid: Tensor) -> Tensor:
    """Sample one level bilinearly, (bs * num_heads, head_dim, num_points, num_queries)."""
    return F.grid_sample(value, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
