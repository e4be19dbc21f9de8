"""The Mask2Former loss for all decoder layers and images at once.

Each ground truth mask is matched with one query if there are enough queries. So all shapes, counts and average factors
follow from the labels, which the host knows.
"""

import math
from functools import lru_cache
from typing import Dict, List, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss, DiceLoss
from mmdet.models.task_modules.samplers import MaskPseudoSampler
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from recipe.models.decode import QueryPredictions
from recipe.models.execution import kept_constants, to_device
from recipe.models.matching import MatchCosts, Pairs, assign, cost_matrix, match_costs
from recipe.models.points import draw_points, keep_uncertain, sample

# mmdet's weight_reduce_loss adds it to the average factor.
EPS = torch.finfo(torch.float32).eps


def can_batch(head: nn.Module) -> bool:
    """Return whether :func:`batched_loss` computes the same as a head's parts.

    Args:
        head: A ``Mask2FormerHead``.

    Returns:
        False if the assigner, the sampler or a loss is of another class, or has options that ``batched_loss`` lacks.
    """
    cls, mask, dice = head.loss_cls, head.loss_mask, head.loss_dice
    return bool(
        match_costs(head.assigner) is not None
        and type(head.sampler) is MaskPseudoSampler
        and type(cls) is type(mask) is CrossEntropyLoss
        and type(dice) is DiceLoss
        and not (cls.use_sigmoid or cls.use_mask or cls.avg_non_ignore)
        and cls.ignore_index is None
        and mask.use_sigmoid
        and mask.class_weight is None
        and mask.ignore_index is None
        and not mask.avg_non_ignore
        and dice.use_sigmoid
        and dice.activate
        and cls.reduction == mask.reduction == dice.reduction == 'mean'
    )


@lru_cache(maxsize=16)
def _constant(values: Tuple[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return values as a tensor that is copied to the device only once."""
    with kept_constants():
        return torch.tensor(values, dtype=dtype, device=device)


def _check_labels(labels: Sequence[Sequence[int]], num_classes: int) -> None:
    """Raise ValueError if there are classes that the head does not have."""
    for image, names in enumerate(labels):
        stray = [name for name in names if not 0 <= name < num_classes]
        if stray:
            raise ValueError(
                f'image {image} of the batch has labels {stray}, but the '
                f'model has classes 0 to {num_classes - 1}; what is to be '
                'ignored must have the ignore_index'
            )


@torch.no_grad()
def _match(
    head: nn.Module,
    costs: MatchCosts,
    predictions: QueryPredictions,
    gt_masks: Tensor,
    labels: Sequence[Sequence[int]],
    points: List[Tensor],
) -> Pairs:
    """Match the queries of all layers and images.

    The predicted masks of an image are freed after they are sampled.
    """
    probabilities = predictions.cls_logits.softmax(-1)
    num_layers, _, num_queries, _ = probabilities.shape
    device = probabilities.device
    sizes = [len(image) for image in labels]
    names = to_device(torch.tensor([name for image in labels for name in image], dtype=torch.long), device)
    classes = names.split(sizes)
    matrices = []
    for image, (grid, masks) in enumerate(zip(points, gt_masks.split(sizes))):
        if not sizes[image]:
            matrices.append(probabilities.new_zeros(num_layers, num_queries, 0))
            continue
        targets = sample(masks.unsqueeze(0), grid.unsqueeze(0))[0]
        # Queries are channels: one grid serves all masks of a layer.
        predicted = predictions.masks_of(image)
        logits = sample(predicted, grid.unsqueeze(1)).squeeze(2)
        matrices.append(cost_matrix(costs, probabilities[:, image], logits, targets.transpose(0, 1), classes[image]))
    return assign(matrices, labels, names, head.num_classes, head.cost_faults)


def _matched_masks(predictions: QueryPredictions, pairs: Pairs, counts: List[int]) -> Tensor:
    """Compute the full masks of matched queries only.

    Args:
        predictions: Predictions of all queries.
        pairs: N pairs in each layer.
        counts: Number of pairs of each image, with the sum N.

    Returns:
        Mask logits, (L * N, h, w).
    """
    embeds, features = predictions.mask_embeds, predictions.mask_features
    height, width = features.shape[-2:]
    matched = embeds.flatten(0, 2).index_select(0, pairs.queries).view(len(embeds), -1, embeds.shape[-1])
    # The gradients of the maps of all images are stacked once. Those of features[image] would be padded and added.
    maps = features.flatten(2).unbind()
    masks = [torch.matmul(rows, one) for rows, one in zip(matched.split(counts, dim=1), maps)]
    return torch.cat(masks, dim=1).view(-1, height, width)


def _class_loss(head: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the class loss of each layer, (L, )."""
    num_layers = len(logits)
    weight = head.loss_cls.class_weight
    if weight is not None:
        weight = _constant(tuple(weight), logits.dtype, logits.device)
    loss = F.cross_entropy(logits.flatten(0, 2), targets, weight=weight, reduction='none')
    factors = _constant(tuple(head.class_weight), logits.dtype, logits.device).index_select(0, targets)
    loss, factors = (x.view(num_layers, -1).sum(1) for x in (loss, factors))
    return loss / (factors + EPS) * head.loss_cls.loss_weight


def _point_losses(
    head: nn.Module, logits: Tensor, targets: Tensor, num_layers: int, num_masks: Tensor
) -> Tuple[Tensor, Tensor]:
    """Compute mask and dice loss of each layer.

    Args:
        head: Holds options and weights of the losses.
        logits: Mask logits at points, (L * N, P).
        targets: Ground truth at the points, (L * N, P).
        num_layers: L.
        num_masks: Matched masks per process, (1, ).

    Returns:
        Mask loss and dice loss, both (L, 1).
    """
    mask = (
        F.binary_cross_entropy_with_logits(logits, targets, reduction='none').view(num_layers, -1).sum(1, keepdim=True)
    )
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum(1)
    eps = head.loss_dice.eps
    if head.loss_dice.naive_dice:
        sizes = probabilities.sum(1) + targets.sum(1)
        score = (2 * overlap + eps) / (sizes + eps)
    else:
        sizes = probabilities.square().sum(1) + targets.square().sum(1)
        score = 2 * overlap / (sizes + 2 * eps)
    dice = (1 - score).view(num_layers, -1).sum(1, keepdim=True)
    return (
        mask / (num_masks * head.num_points + EPS) * head.loss_mask.loss_weight,
        dice / (num_masks + EPS) * head.loss_dice.loss_weight,
    )


def batched_loss(
    head: nn.Module, predictions: QueryPredictions, gt_masks: Tensor, labels: Sequence[Sequence[int]]
) -> Dict[str, Tensor]:
    """Compute the losses of all layers.

    They equal those of :meth:`Mask2FormerHead.loss_by_feat` up to rounding. The same seed gives the same random points.
    The host does not wait for the device, unless the matching is computed there, see ``assignment``.

    Args:
        head: A ``Mask2FormerHead`` for which :func:`can_batch` holds.
        predictions: Float32.
        gt_masks: The masks of all images, 0 or 1, float32, (M, H, W).
        labels: For each image the classes of its masks, M in all.

    Returns:
        ``loss_cls``, ``loss_mask`` and ``loss_dice`` of the last layer. Those of the other layers have the prefixes
        ``d0.``, ``d1.`` and so on. Each has one element.

    Raises:
        ValueError: The head does not have a class of ``labels`` (names image and class), or a matching cost is not
            finite, see :func:`assign`.
    """
    _check_labels(labels, head.num_classes)
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
    pairs = _match(head, match_costs(head.assigner), predictions, gt_masks, labels, draws.matching)

    cls_losses = _class_loss(head, predictions.cls_logits, pairs.labels)
    masks = _matched_masks(predictions, pairs, counts)
    if sum(counts):
        points = keep_uncertain(masks, draws.candidates, draws.others, head.num_points)
        targets = _targets(gt_masks, points, pairs, num_layers)
        logits = sample(masks.unsqueeze(1), points.unsqueeze(1)).flatten(1)
        mask_losses, dice_losses = _point_losses(head, logits, targets, num_layers, num_masks)
    else:
        # Zeros that still give each parameter a gradient.
        mask_losses = dice_losses = masks.view(num_layers, 0).sum(1)
    return name_losses(cls_losses, mask_losses, dice_losses, pairs.usable)


def name_losses(
    cls_losses: Tensor, mask_losses: Tensor, dice_losses: Tensor, usable: Union[Tensor, bool]
) -> Dict[str, Tensor]:
    """Name the losses of each layer as :meth:`Mask2FormerHead.loss_by_feat` does, the last layer first.

    Args:
        cls_losses: Class losses of each layer, (L,).
        mask_losses: Mask losses, (L, 1) or (L,).
        dice_losses: Dice losses, (L, 1) or (L,).
        usable: Whether all matching costs were finite, a bool or a scalar on the device. If not, all losses become NaN.
    """
    kinds = {'loss_cls': cls_losses, 'loss_mask': mask_losses, 'loss_dice': dice_losses}
    if usable is not True:
        factor = torch.where(torch.as_tensor(usable, device=cls_losses.device), 1.0, math.nan)
        kinds = {kind: losses * factor for kind, losses in kinds.items()}
    layers = {kind: losses.unbind() for kind, losses in kinds.items()}
    last = len(cls_losses) - 1
    order = [('', last), *((f'd{layer}.', layer) for layer in range(last))]
    return {f'{prefix}{kind}': losses[layer] for prefix, layer in order for kind, losses in layers.items()}


@torch.no_grad()
def _targets(gt_masks: Tensor, points: Tensor, pairs: Pairs, num_layers: int) -> Tensor:
    """Sample the ground truth of each pair at its points.

    The points are sorted by mask, so that each mask is read once for all layers. Then the values are sorted back by
    pair.

    Args:
        gt_masks: (M, H, W).
        points: (L * N, P, 2).
        pairs: N pairs in each layer.
        num_layers: L.

    Returns:
        Targets in [0, 1], (L * N, P).
    """
    points = points.index_select(0, pairs.by_mask).view(len(gt_masks), num_layers, -1, 2)
    targets = sample(gt_masks.unsqueeze(1), points)
    return targets.flatten(0, 2).index_select(0, pairs.by_pair)
