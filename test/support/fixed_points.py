"""Random points of the losses that depend neither on the number of images nor on the number of masks."""

from __future__ import annotations

from typing import Any, Sequence

import torch

from recipe.models.points import PointDraws


def same_points(shape: Sequence[int]) -> torch.Tensor:
    """Numbers in [0, 1) of shape (..., P, 2), the same for all leading indices."""
    *many, count, pair = shape
    points = torch.rand(count, pair, generator=torch.Generator().manual_seed(count))
    return points.expand(*many, count, pair).contiguous()


def same_draws(
    layers: int, images: int, masks: int, points: int, oversampling: float, important: float, device: Any
) -> PointDraws:
    """Stand in for recipe.models.loss.draw_points."""

    def draw(many: int, count: int) -> torch.Tensor:
        return (same_points((many, count, 2)) * 2 - 1).to(device)

    others = points - int(important * points)
    return PointDraws(
        [draw(layers, points)] * images, draw(layers * masks, int(points * oversampling)), draw(layers * masks, others)
    )
