"""The Mask2Former loss with the same shapes for all images.

Each image is padded to all classes of the head. So the shapes before and after the assignment never change, and one
graph of torch.compile each is enough. Padding adds exactly 0 to the losses.
"""

from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from recipe.models.assignment import solve
from recipe.models.decode import QueryPredictions
from recipe.models.execution import to_device
from recipe.models.loss import _check_labels, _class_loss, _point_losses, can_batch, name_losses
from recipe.models.matching import cost_matrix, describe_faults, list_problems, match_costs
from recipe.models.points import draw_points, keep_uncertain, sample

# The logit of padding. Its probability is exactly 0.
_NOTHING = -1e4


def can_be_static(head: nn.Module) -> bool:
    """Return whether :func:`static_loss` computes the same as a head's parts.

    Args:
        head: A ``Mask2FormerHead``.

    Returns:
        False if ``can_batch`` is False, or for the squared dice loss, in which an empty target costs something.
    """
    return bool(can_batch(head) and head.loss_dice.naive_dice)


class PaddedPairs(NamedTuple):
    """The pairs of a batch, padded to S masks and R pairs per image; int64 tensors.

    Attributes:
        queries: Index of each pair's query in (L * B * Q), shape (L * B * R).
        labels: Target class of each query, see ``Pairs``, shape (L * B * Q).
        by_mask: Index in (L * B * R) of the pair of each mask and layer, shape (B * S * L). 0 if there is none.
        by_pair: Index in ``by_mask`` of each pair, shape (L * B * R).
        is_pair: 1 for pairs, 0 for padding, shape (B * R).
        pairs: Positions of the pairs in ``is_pair``, shape (N).
    """

    queries: Tensor
    labels: Tensor
    by_mask: Tensor
    by_pair: Tensor
    is_pair: Tensor
    pairs: Tensor


def static_costs(
    head: nn.Module, predictions: QueryPredictions, gt_masks: Tensor, classes: Tensor, points: List[Tensor]
) -> Tensor:
    """Compute the costs of the matching for all classes of all images, padding included.

    Args:
        head: Holds the weights of the costs.
        predictions: Float32.
        gt_masks: 0 or 1, float32, (B, S, H, W).
        classes: Classes of the masks, (B, S).
        points: Points of each image, (L, P, 2).

    Returns:
        Costs, (B, L, Q, S), without gradient.
    """
    costs = match_costs(head.assigner)
    with torch.no_grad():
        probabilities = predictions.cls_logits.softmax(-1)
        matrices = []
        for image, grid in enumerate(points):
            targets = sample(gt_masks[image].unsqueeze(0), grid.unsqueeze(0))[0]
            logits = sample(predictions.masks_of(image), grid.unsqueeze(1)).squeeze(2)
            matrices.append(
                cost_matrix(costs, probabilities[:, image], logits, targets.transpose(0, 1), classes[image])
            )
        return torch.stack(matrices)


def static_point_losses(
    head: nn.Module,
    predictions: QueryPredictions,
    gt_masks: Tensor,
    padded: PaddedPairs,
    candidates: Tensor,
    others: Tensor,
    num_masks: Tensor,
) -> Tuple[Tensor, Tensor]:
    """Compute mask and dice loss of each layer.

    Args:
        head: Holds options and weights of the losses.
        predictions: Float32.
        gt_masks: 0 or 1, float32, (B, S, H, W).
        padded: The pairs.
        candidates: Points from which the U most uncertain are chosen, (L * B * R, C, 2).
        others: Points that are kept in any case, (L * B * R, P - U, 2).
        num_masks: Matched masks per process, (1, ).

    Returns:
        Mask loss and dice loss, both (L, 1).
    """
    embeds, features = predictions.mask_embeds, predictions.mask_features
    num_layers, num_images = embeds.shape[:2]
    matched = embeds.flatten(0, 2).index_select(0, padded.queries).view(num_layers, num_images, -1, embeds.shape[-1])
    masks = torch.einsum('lbrc,bchw->lbrhw', matched, features).flatten(0, 2)
    points = keep_uncertain(masks, candidates, others, head.num_points)
    with torch.no_grad():
        # Each mask is read once for all layers.
        at = points.index_select(0, padded.by_mask).view(gt_masks.shape[0] * gt_masks.shape[1], num_layers, -1, 2)
        targets = sample(gt_masks.flatten(0, 1).unsqueeze(1), at)
        targets = targets.flatten(0, 2).index_select(0, padded.by_pair)
    logits = sample(masks.unsqueeze(1), points.unsqueeze(1))[:, 0, 0]
    is_pair = padded.is_pair.repeat(num_layers).unsqueeze(1) > 0
    return _point_losses(
        head, logits.masked_fill(~is_pair, _NOTHING), targets.masked_fill(~is_pair, 0.0), num_layers, num_masks
    )


def static_loss(
    head: nn.Module,
    predictions: QueryPredictions,
    label_maps: Tensor,
    labels: Sequence[Sequence[int]],
    costs: Callable[..., Tensor] = static_costs,
    point_losses: Callable[..., Tuple[Tensor, Tensor]] = static_point_losses,
) -> Dict[str, Tensor]:
    """Compute the losses of all layers with the same shapes for all images.

    They equal those of ``batched_loss`` up to rounding. The same seed gives the same random points.

    Args:
        head: A ``Mask2FormerHead`` for which :func:`can_be_static` holds.
        predictions: Float32.
        label_maps: Classes of the pixels, an integer type, (B, H, W).
        labels: For each image the classes of its map.
        costs: :func:`static_costs`, compiled or not.
        point_losses: :func:`static_point_losses`, compiled or not.

    Returns:
        Losses of one element each, with the names of :meth:`Mask2FormerHead.loss_by_feat`.

    Raises:
        ValueError: As in ``batched_loss``.
    """
    num_classes: Any = head.num_classes
    _check_labels(labels, num_classes)
    num_layers, num_images, num_queries, _ = predictions.cls_logits.shape
    device = predictions.cls_logits.device
    counts = [min(len(image), num_queries) for image in labels]
    draws = draw_points(
        num_layers,
        num_images,
        sum(counts),
        head.num_points,
        head.oversample_ratio,
        head.importance_sample_ratio,
        device,
    )
    # An image without ground truth counts as one mask, as in SamplingResult.
    num_masks = reduce_mean(torch.full((1,), float(sum(max(n, 1) for n in counts)), device=device)).clamp(min=1)
    names = torch.zeros(num_images, num_classes, dtype=torch.long)
    for image, present in enumerate(labels):
        names[image, : len(present)] = torch.as_tensor(present, dtype=torch.long)
    names = to_device(names, device)
    gt_masks = (label_maps.unsqueeze(1) == names[..., None, None].to(label_maps.dtype)).float()

    # The draws are views whose strides depend on the number of masks. A graph needs fixed strides.
    points = [drawn.contiguous() for drawn in draws.matching]
    all_costs = costs(head, predictions, gt_masks, names, points)
    sizes = [len(image) for image in labels]
    queries, masks, usable = solve(all_costs.flatten(), list_problems(sizes, num_layers, num_queries, num_classes))
    real = [cost[:, :, :size] for cost, size in zip(all_costs, sizes)]
    usable = head.cost_faults.judge(usable, partial(describe_faults, real, labels))
    padded = pad_pairs(queries, masks, names, counts, num_layers, num_queries, num_classes)

    cls_losses = _class_loss(head, predictions.cls_logits, padded.labels)
    candidates, others = (_spread(drawn, padded, num_layers) for drawn in (draws.candidates, draws.others))
    mask_losses, dice_losses = point_losses(head, predictions, gt_masks, padded, candidates, others, num_masks)
    return name_losses(cls_losses, mask_losses, dice_losses, usable)


def pad_pairs(
    queries: Tensor,
    masks: Tensor,
    names: Tensor,
    counts: Sequence[int],
    num_layers: int,
    num_queries: int,
    background: int,
) -> PaddedPairs:
    """Index the pairs of a batch.

    Args:
        queries: Index of each pair's query in (L * B * Q), shape (L * B * R).
        masks: Index of each pair's mask in (B * S), shape (L * B * R).
        names: Classes of the masks, (B, S).
        counts: Number of pairs of each image.
        num_layers: L.
        num_queries: Q.
        background: Class of queries without a pair.

    Returns:
        The padded pairs, on the device of ``queries``.
    """
    num_images, device = len(names), queries.device
    room = len(queries) // (num_layers * num_images)
    taken = np.arange(room) < np.array(counts)[:, None]
    is_pair = to_device(torch.from_numpy(taken.reshape(-1).astype(np.int64)), device)
    positions = to_device(torch.from_numpy(np.flatnonzero(taken)), device)
    # Padding is written into one more element at the end.
    padding = is_pair.repeat(num_layers) == 0
    layers = torch.arange(num_layers, device=device).repeat_interleave(num_images * room)
    by_pair = masks * num_layers + layers
    by_mask = queries.new_zeros(names.numel() * num_layers + 1)
    by_mask.scatter_(0, by_pair.masked_fill(padding, len(by_mask) - 1), torch.arange(len(queries), device=device))
    labels = queries.new_full((num_layers * num_images * num_queries + 1,), background)
    labels.scatter_(0, queries.masked_fill(padding, len(labels) - 1), names.flatten().index_select(0, masks))
    return PaddedPairs(queries, labels[:-1], by_mask[:-1], by_pair.masked_fill(padding, 0), is_pair, positions)


def _spread(drawn: Tensor, padded: PaddedPairs, num_layers: int) -> Tensor:
    """Put the points of pairs at their padded positions, (L * N, K, 2) -> (L * B * R, K, 2)."""
    spread = drawn.new_zeros(num_layers, len(padded.is_pair), *drawn.shape[1:])
    if len(drawn):
        spread.index_copy_(1, padded.pairs, drawn.view(num_layers, -1, *drawn.shape[1:]))
    return spread.flatten(0, 1)
