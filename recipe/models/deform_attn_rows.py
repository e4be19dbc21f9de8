"""Deformable attention without gradients on a CPU: weighted sums of rows of the values, chunk by chunk.

The PyTorch form writes every sample, 500 MB a layer for a picture of 1024 x 2048, and reads it three times. Here a
sample is four rows of the values, and ``embedding_bag`` adds up those of a query.
"""

from typing import Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

_QUERIES = 4096  # at a time, so that what lies between the operators stays in the processor's caches


def sum_of_rows(
    value: Tensor, shapes: Sequence[Tuple[int, int]], centres: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Sample bilinearly, weight and sum (Deformable DETR, arXiv:2010.04159, equation 3).

    Outside of a level there are zeros, and undefined places read nothing, as ``grid_sample`` has it.

    Args:
        value: (B, keys, heads, D), float32 or float64.
        shapes: (h, w) of each level.
        centres: Reference points, (x, y) in [0, 1], (B, queries, levels, 2).
        offsets: From the reference points, in cells of the level, (B, queries, heads, levels, points, 2).
        weights: (B, queries, heads, levels, points).

    Returns:
        (B, queries, heads * D).
    """
    B, _, heads, D = value.shape
    queries, _, _, points = weights.shape[1:]
    # Row of each sample's head among the rows of a cell.
    head = torch.arange(heads, dtype=torch.int32).repeat_interleave(points)
    out = value.new_zeros(B, queries, heads * D)
    for image in range(B):
        levels = value[image].split([h * w for h, w in shapes])
        for level, (h, w) in enumerate(shapes):
            rows = levels[level].reshape(-1, D)
            # From [0, 1] to cells; the centre of the first cell is 0.
            middles = centres[image, :, level, None, None] * centres.new_tensor([w, h]) - 0.5
            for begin in range(0, queries, _QUERIES):
                part = slice(begin, begin + _QUERIES)
                places = offsets[image, part, :, level]
                middle = middles[part]
                x, left, right = _neighbours((places[..., 0] + middle[..., 0]).flatten(1), w)
                y, top, bottom = _neighbours((places[..., 1] + middle[..., 1]).flatten(1), h)
                weight = weights[image, part, :, level].flatten(1)
                top.mul_(weight)
                bottom.mul_(weight)
                first = y.mul_(w).add_(x).mul_(heads).add_(head)
                index = first.new_empty(*first.shape, 4)
                shares = top.new_empty(index.shape)
                right_step, bottom_step = (heads if w > 1 else 0), (w * heads if h > 1 else 0)
                for corner, (step, row, column) in enumerate(
                    (
                        (0, top, left),
                        (right_step, top, right),
                        (bottom_step, bottom, left),
                        (bottom_step + right_step, bottom, right),
                    )
                ):
                    torch.add(first, step, out=index[..., corner])
                    torch.mul(row, column, out=shares[..., corner])
                bags = torch.arange(0, index.numel(), 4 * points, dtype=torch.int32)
                summed = F.embedding_bag(index.view(-1), rows, bags, mode='sum', per_sample_weights=shares.view(-1))
                out[image, part] += summed.view(-1, heads * D)
    return out


def _neighbours(places: Tensor, size: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Two cells next to each other on an axis, and their shares: how near each is to a place, or 0 from 1 cell on.

    Args:
        places: In cells; overwritten.
        size: Cells. With a single one, the share of the second cell is 0.

    Returns:
        Index of the lower cell, int32, and the shares of both.
    """
    # An undefined place is outside.
    lower = places.nan_to_num_(-2.0).floor().clamp_(0, max(size - 2, 0))
    beyond = places.sub_(lower)
    second = (1 - (beyond - 1).abs_()).clamp_(0) if size > 1 else torch.zeros_like(beyond)
    return lower.to(torch.int32), (1 - beyond.abs_()).clamp_(0), second
