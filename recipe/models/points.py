"""Random points of the Mask2Former loss for all layers and images at once.

Points have the coordinates of ``grid_sample``: (x, y) in [-1, 1].
"""

from typing import List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe.models.execution import device_kind


class PointDraws(NamedTuple):
    """All random points of one loss.

    L is the number of predictions per query, N the number of matched masks of the batch.

    Attributes:
        matching: For each image the points at which the matching compares masks, (L, P, 2).
        candidates: Points of each matched mask from which the U most uncertain are chosen, (L * N, S, 2).
        others: Points of each matched mask that are kept in any case, (L * N, P - U, 2).
    """

    matching: List[Tensor]
    candidates: Tensor
    others: Tensor


def draw_points(
    num_layers: int,
    num_images: int,
    num_masks: int,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    device: torch.device,
) -> PointDraws:
    """Draw random points in the order of the layer-by-layer loss.

    That loss calls ``torch.rand`` layer by layer: once for each image, then twice for all matched masks of the batch.
    The draws here have the same order and sizes, so the same seed gives the same points. Only CUDA draws the points of
    all layers at once: it would give other points anyway, as the draws before these differ from upstream's there.

    Args:
        num_layers: L, predictions per query.
        num_images: Number of images of the batch.
        num_masks: N, number of matched masks of the batch.
        num_points: P, points per mask.
        oversample_ratio: Candidates per point, at least 1.
        importance_sample_ratio: Share of uncertain points, U / P.
        device: Device whose generator draws the points.

    Returns:
        The points.
    """
    assert oversample_ratio >= 1
    assert 0 <= importance_sample_ratio <= 1
    num_sampled = int(num_points * oversample_ratio)
    num_others = num_points - int(importance_sample_ratio * num_points)
    shapes: List[Tuple[int, ...]] = [(num_points, 2)] * num_images
    shapes += [(num_masks, num_sampled, 2), (num_masks, num_others, 2)]
    draws = [torch.empty(num_layers, *shape, device=device) for shape in shapes]
    rounds = [draws] if device_kind(device) == 'cuda' else zip(*(draw.unbind() for draw in draws))
    for parts in rounds:
        for part in parts:
            if part.numel():
                part.uniform_(-1.0, 1.0)
    *matching, candidates, others = draws
    return PointDraws(matching, candidates.flatten(0, 1), others.flatten(0, 1))


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Interpolate maps bilinearly at points; outside of a map is 0.

    Args:
        maps: (N, C, h, w).
        points: (N, R, P, 2).

    Returns:
        (N, C, R, P).
    """
    return F.grid_sample(maps, points, align_corners=False)


@torch.no_grad()
def keep_uncertain(masks: Tensor, candidates: Tensor, others: Tensor, num_points: int) -> Tensor:
    """Choose the points at which the loss of each mask is computed.

    The uncertainty is -abs(logit), as in PointRend (https://arxiv.org/abs/1912.08193). The result is in no particular
    order.

    Args:
        masks: Mask logits, (M, h, w).
        candidates: Points to choose from, (M, S, 2).
        others: Points that are kept in any case, (M, P - U, 2).
        num_points: P.

    Returns:
        The U most uncertain candidates and the others, (M, P, 2).
    """
    num_uncertain = num_points - others.shape[1]
    logits = sample(masks.unsqueeze(1), candidates.unsqueeze(1))[:, 0, 0]
    index = logits.abs_().topk(num_uncertain, dim=1, largest=False, sorted=False)[1]
    uncertain = candidates.gather(1, index.unsqueeze(-1).expand(-1, -1, 2))
    return torch.cat((uncertain, others), dim=1)
