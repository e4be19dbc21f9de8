"""Deformable attention without gradients on a CPU: weighted sums of rows of the values, chunk by chunk.

The PyTorch form writes every sample, 500 MB a layer for a picture of 1024 x 2048, and reads it three times. Here a
sample is four rows of the values, and ``embedding_bag`` adds up those of a query.
"""

from typing import Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

_QUERIES = 4096  # at a time, so that what lies between the operators stays in the processor's caches


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
    B, keys, heads, D = value.shape
    queries = locations.shape[1]
    sizes = torch.tensor([[[w, h]] for h, w in shapes], dtype=value.dtype)  # (levels, 1, 2)
    widths = torch.tensor([[w] for _, w in shapes], dtype=torch.int32)
    areas = torch.tensor([[h * w] for h, w in shapes], dtype=torch.int32)
    starts = areas.cumsum(0, dtype=torch.int32) - areas
    corners = torch.stack((torch.zeros_like(widths), torch.ones_like(widths), widths, widths + 1), -1)
    head = torch.arange(heads, dtype=torch.int32).view(heads, 1, 1, 1)
    half, none = value.new_tensor(-0.5), value.new_zeros(())
    out = value.new_empty(B, queries, heads * D)
    for image in range(B):
        rows = value[image].reshape(-1, D)
        for begin in range(0, queries, _QUERIES):
            part = slice(begin, begin + _QUERIES)
            places = torch.addcmul(half, locations[image, part], sizes)
            lower = places.floor()
            # Shares of the lower and the upper neighbour in x and y; 0 for one that is outside.
            upper_share = places - lower
            lower_share = torch.where((lower >= 0) & (lower < sizes), 1 - upper_share, none)
            upper_share = torch.where((lower >= -1) & (lower < sizes - 1), upper_share, none)
            (left, top), (right, bottom) = lower_share.unbind(-1), upper_share.unbind(-1)
            top, bottom = top * weights[image, part], bottom * weights[image, part]
            shares = torch.stack((left * top, right * top, left * bottom, right * bottom), -1)
            x, y = lower.to(torch.int32).unbind(-1)
            first = (y * widths).add_(x).add_(starts)
            # A row that is outside has the share 0, so it may be any.
            index = (first.unsqueeze(-1) + corners).clamp_(0, keys - 1).mul_(heads).add_(head)
            bags = torch.arange(0, index.numel(), index[0, 0].numel(), dtype=torch.int32)
            summed = F.embedding_bag(index.view(-1), rows, bags, mode='sum', per_sample_weights=shares.view(-1))
            out[image, part] = summed.view(-1, heads * D)
    return out
