"""The Mask2Former loss with the same shapes for all images.

Each image is padded to all classes of the head. So the shapes before and after the assignment never change, and one
graph of torch.compile each is enough. Padding adds exactly 0 to the losses.
"""

from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from recipe.models.assignment import Solution, solve, solve_table
from recipe.models.decode import QueryPredictions
from recipe.models.execution import to_device
from recipe.models.loss import _check_labels, _class_loss, _point_losses, can_batch, name_losses
from recipe.models.matching import cost_matrix, describe_faults, list_problems, match_costs
from recipe.models.points import PointDraws, draw_points, keep_uncertain, sample

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
    """

    queries: Tensor
    labels: Tensor
    by_mask: Tensor
    by_pair: Tensor
    is_pair: Tensor


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
    logits = sample(masks.unsqueeze(1), points.unsqueeze(1)).flatten(1)
    is_pair = padded.is_pair.repeat(num_layers).unsqueeze(1) > 0
    return _point_losses(
        head, logits.masked_fill(~is_pair, _NOTHING), targets.masked_fill(~is_pair, 0.0), num_layers, num_masks
    )


class Targets(NamedTuple):
    """What the loss needs of the labels of a batch: tensors on the device, whose shapes are the same for all labels.

    L is the number of predictions per query, S that of classes, R = min(S, Q) that of pairs an image has at most.

    Attributes:
        label_maps: Classes of the pixels, an integer type, (B, H, W).
        names: Classes of each image, int64, (B, S). Padding is 0.
        is_pair: 1 for pairs, 0 for padding, int64, (B * R,).
        num_masks: Matched masks per process, float32, (1,).
        table: ``Problems.table`` of the matching, int64, (L * B, 6).
    """

    label_maps: Tensor
    names: Tensor
    is_pair: Tensor
    num_masks: Tensor
    table: Tensor


def targets_of(head: nn.Module, label_maps: Tensor, labels: Sequence[Sequence[int]]) -> Targets:
    """Describe the labels of a batch.

    Args:
        head: A ``Mask2FormerHead`` for which :func:`can_be_static` holds.
        label_maps: Classes of the pixels, (B, H, W).
        labels: For each image the classes of its map.

    Raises:
        ValueError: The head does not have a class of ``labels``; names image and class.
    """
    num_classes: Any = head.num_classes
    num_queries: Any = head.num_queries
    num_layers: Any = head.num_transformer_decoder_layers
    _check_labels(labels, num_classes)
    device, sizes = label_maps.device, [len(image) for image in labels]
    names = torch.zeros(len(labels), num_classes, dtype=torch.long)
    for image, present in enumerate(labels):
        names[image, : len(present)] = torch.as_tensor(present, dtype=torch.long)
    # An image without ground truth counts as one mask, as in SamplingResult.
    counted = float(sum(max(min(size, num_queries), 1) for size in sizes))
    problems = list_problems(sizes, num_layers + 1, num_queries, num_classes)
    return Targets(
        label_maps,
        to_device(names, device),
        to_device(_is_pair(sizes, min(num_classes, num_queries)).long(), device),
        reduce_mean(torch.full((1,), counted, device=device)).clamp(min=1),
        to_device(torch.from_numpy(problems.table), device),
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
    targets = targets_of(head, label_maps, labels)
    num_layers, _, num_queries, _ = predictions.cls_logits.shape
    sizes = [len(image) for image in labels]
    counts = [min(size, num_queries) for size in sizes]
    draws = _draw(head, predictions, sum(counts))
    # The draws are views whose strides depend on the number of masks. A graph needs fixed strides.
    points = [drawn.contiguous() for drawn in draws.matching]
    all_costs = costs(head, predictions, _masks(targets), targets.names, points)
    solution = solve(all_costs.flatten(), list_problems(sizes, num_layers, num_queries, targets.names.shape[1]))
    real = [cost[:, :, :size] for cost, size in zip(all_costs, sizes)]
    usable = head.cost_faults.judge(solution[2], partial(describe_faults, real, labels))
    is_pair = _is_pair(sizes, len(targets.is_pair) // len(sizes))
    positions = to_device(is_pair.nonzero().flatten(), label_maps.device)
    others = [_spread(drawn, positions, targets, num_layers) for drawn in (draws.candidates, draws.others)]
    return _losses(head, predictions, targets, (*solution[:2], usable), others, point_losses)


def graph_loss(head: nn.Module, predictions: QueryPredictions, targets: Targets) -> Dict[str, Tensor]:
    """Compute the losses of all layers without anything that the host has to know of the labels.

    They equal those of :func:`static_loss`, but points are drawn for padding too, so that other random points belong to
    a seed. If a cost is not finite, all losses are NaN.

    Args:
        head: A ``Mask2FormerHead`` for which :func:`can_be_static` holds.
        predictions: Float32, on a device for which ``assignment.solves_tables`` holds.
        targets: From :func:`targets_of`.
    """
    num_queries, num_classes = predictions.cls_logits.shape[2], targets.names.shape[1]
    draws = _draw(head, predictions, len(targets.is_pair))
    costs = static_costs(head, predictions, _masks(targets), targets.names, draws.matching)
    size = len(predictions.cls_logits) * len(targets.is_pair)
    solution = solve_table(costs.flatten(), targets.table, num_queries, num_classes, size)
    return _losses(head, predictions, targets, solution, [draws.candidates, draws.others], static_point_losses)


def _is_pair(sizes: Sequence[int], room: int) -> Tensor:
    """Return which of the rooms for pairs are taken, bool, on the host, (B * R,)."""
    return (torch.arange(room) < torch.tensor(sizes)[:, None]).flatten()


def _draw(head: nn.Module, predictions: QueryPredictions, num_masks: int) -> PointDraws:
    num_layers, num_images = predictions.cls_logits.shape[:2]
    share, device = head.importance_sample_ratio, predictions.cls_logits.device
    return draw_points(num_layers, num_images, num_masks, head.num_points, head.oversample_ratio, share, device)


def _masks(targets: Targets) -> Tensor:
    """Return a mask of each class of each image, 0 or 1, float32, (B, S, H, W)."""
    label_maps = targets.label_maps
    return (label_maps.unsqueeze(1) == targets.names[..., None, None].to(label_maps.dtype)).float()


def _losses(
    head: nn.Module,
    predictions: QueryPredictions,
    targets: Targets,
    solution: Solution,
    points: Sequence[Tensor],
    point_losses: Callable[..., Tuple[Tensor, Tensor]],
) -> Dict[str, Tensor]:
    """Compute the losses from the pairs, and from candidates and other points of each room for a pair."""
    queries, masks, usable = solution
    num_layers, _, num_queries, _ = predictions.cls_logits.shape
    padded = pad_pairs(queries, masks, targets, num_layers, num_queries)
    cls_losses = _class_loss(head, predictions.cls_logits, padded.labels)
    mask_losses, dice_losses = point_losses(head, predictions, _masks(targets), padded, *points, targets.num_masks)
    return name_losses(cls_losses, mask_losses, dice_losses, usable)


def pad_pairs(queries: Tensor, masks: Tensor, targets: Targets, num_layers: int, num_queries: int) -> PaddedPairs:
    """Index the pairs of a batch.

    Args:
        queries: Index of each pair's query in (L * B * Q), shape (L * B * R).
        masks: Index of each pair's mask in (B * S), shape (L * B * R).
        targets: The labels.
        num_layers: L.
        num_queries: Q.

    Returns:
        The padded pairs, on the device of ``queries``.
    """
    names, is_pair, device = targets.names, targets.is_pair, queries.device
    # Padding is written into one more element at the end.
    padding = is_pair.repeat(num_layers) == 0
    layers = torch.arange(num_layers, device=device).repeat_interleave(len(is_pair))
    by_pair = masks * num_layers + layers
    by_mask = queries.new_zeros(names.numel() * num_layers + 1)
    by_mask.scatter_(0, by_pair.masked_fill(padding, len(by_mask) - 1), torch.arange(len(queries), device=device))
    # The class of a query without a pair is the one after all others.
    labels = queries.new_full((num_layers * len(names) * num_queries + 1,), names.shape[1])
    labels.scatter_(0, queries.masked_fill(padding, len(labels) - 1), names.flatten().index_select(0, masks))
    return PaddedPairs(queries, labels[:-1], by_mask[:-1], by_pair.masked_fill(padding, 0), is_pair)


def _spread(drawn: Tensor, positions: Tensor, targets: Targets, num_layers: int) -> Tensor:
    """Put the points of pairs at their padded positions, (L * N, K, 2) -> (L * B * R, K, 2)."""
    spread = drawn.new_zeros(num_layers, len(targets.is_pair), *drawn.shape[1:])
    if len(drawn):
        spread.index_copy_(1, positions, drawn.view(num_layers, -1, *drawn.shape[1:]))
    return spread.flatten(0, 1)
