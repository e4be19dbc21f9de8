"""Deformable attention without gradients on a CPU: weighted sums of rows of the values, chunk by chunk.

The PyTorch form writes every sample, 500 MB a layer for a picture of 1024 x 2048, and reads it three times. Here a
sample is four rows of the values, and ``embedding_bag`` adds up those of a query.
"""

from typing import Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

_QUERIES = 8192  # at a time, so that what lies between the operators stays in the processor's caches


def sum_of_rows(value: Tensor, shapes: Sequence[Tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample bilinearly, weight and sum (Deformable DETR, arXiv:2010.04159, equation 3).

    Outside of a level there are zeros, and undefined places read nothing, as ``grid_sample`` has it.

    Args:
        value: (B, keys, heads, D), float32 or float64.
        shapes: (h, w) of each level.
        locations: (x, y) in [0, 1], (B, queries, heads, levels, points, 2).
        weights: (B, queries, heads, levels, points).

    Returns:
        (B, queries, heads * D).
    """
    B, _, heads, D = value.shape
    queries = locations.shape[1]
    head = torch.arange(heads, dtype=torch.int32).view(heads, 1, 1)
    out = value.new_zeros(B, queries, heads * D)
    for image in range(B):
        levels = value[image].split([h * w for h, w in shapes])
        for level, (h, w) in enumerate(shapes):
            rows = levels[level].reshape(-1, D)
            corners = torch.tensor([0, 1, w, w + 1], dtype=torch.int32)
            for begin in range(0, queries, _QUERIES):
                part = slice(begin, begin + _QUERIES)
                places = locations[image, part, :, level]
                x, left, right = _neighbours(places[..., 0], w)
                y, top, bottom = _neighbours(places[..., 1], h)
                weight = weights[image, part, :, level]
                top, bottom = top * weight, bottom * weight
                shares = torch.stack((left * top, right * top, left * bottom, right * bottom), -1)
                # A neighbour that is outside has the share 0, so its row may be any.
                index = ((y * w).add_(x).unsqueeze(-1) + corners).clamp_(0, h * w - 1).mul_(heads).add_(head)
                bags = torch.arange(0, index.numel(), index[0, 0].numel(), dtype=torch.int32)
                summed = F.embedding_bag(index.view(-1), rows, bags, mode='sum', per_sample_weights=shares.view(-1))
                out[image, part] += summed.view(-1, heads * D)
    return out


def _neighbours(places: Tensor, size: int) -> Tuple[Tensor, Tensor, Tensor]:
    """The lower one of the two nearest cells along an axis, and the shares of both.

    Args:
        places: In [0, 1].
        size: Cells.

    Returns:
        Index of the lower cell, int32, and two shares, which are 0 for a cell that is outside.
    """
    cells = places * size - 0.5
    lower = cells.floor()
    share = cells - lower
    return (
        lower.to(torch.int32),
        torch.where((lower >= 0) & (lower < size), 1 - share, 0.0),
        torch.where((lower >= -1) & (lower < size - 1), share, 0.0),
    )
