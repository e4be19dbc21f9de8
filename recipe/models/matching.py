"""Matching of queries and ground truth for all layers and images at once.

The costs stay on the device until all are computed. One copy brings them to the host, SciPy assigns the pairs there,
and one copy brings the pairs back.
"""

from typing import Callable, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models.task_modules.assigners import (
    BaseAssigner,
    ClassificationCost,
    CrossEntropyLossCost,
    DiceCost,
    HungarianAssigner,
)
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class MatchCosts(NamedTuple):
    """The three costs of Mask2Former's matching."""

    cls: ClassificationCost
    mask: CrossEntropyLossCost
    dice: DiceCost


class Pairs(NamedTuple):
    """The pairs of a query and a ground truth mask; int64 tensors.

    L is the number of layers, B of images, Q of queries per image, M of masks and N of pairs in each layer. The pairs
    of a layer are sorted by image, then by query.

    Attributes:
        queries: Index of each pair's query in (L * B * Q), shape (L * N).
        labels: Target class of each query; the background for queries without a pair, shape (L * B * Q).
        by_mask: Index in (L * N) of the pair of each mask and layer, shape (M * L). 0 if the mask has no pair.
        by_pair: Index in ``by_mask`` of each pair, shape (L * N).
        usable: False if a cost was not finite. The pairs are then meaningless.
    """

    queries: Tensor
    labels: Tensor
    by_mask: Tensor
    by_pair: Tensor
    usable: bool = True


def match_costs(assigner: BaseAssigner) -> Optional[MatchCosts]:
    """Return the costs of an assigner that :func:`cost_matrix` computes.

    Args:
        assigner: The assigner of a head.

    Returns:
        The costs; None if the assigner or one of its costs is of another class.
    """
    if type(assigner) is not HungarianAssigner:
        return None
    costs = {type(cost): cost for cost in assigner.match_costs}
    types = (ClassificationCost, CrossEntropyLossCost, DiceCost)
    if len(assigner.match_costs) != len(types) or set(costs) != set(types):
        return None
    found = MatchCosts(*(costs[t] for t in types))
    return found if found.mask.use_sigmoid else None


def cost_matrix(costs: MatchCosts, probabilities: Tensor, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    r"""Compute the cost of each pair of a query and a mask of one image.

    The binary cross entropy of logits x and targets g is :math:`\sum_p \mathrm{softplus}(x_p) - x_p g_p`. So one
    softplus and one matrix product are enough for all pairs.

    Args:
        costs: Weights and options.
        probabilities: Class probabilities, (L, Q, C).
        logits: Mask logits at points, (L, Q, P).
        targets: Masks of the ground truth at the points, in [0, 1], (L, K, P).
        labels: Classes of the ground truth, (K, ).

    Returns:
        Costs, (L, Q, K).
    """
    targets_t = targets.transpose(1, 2)
    cls_cost = probabilities.index_select(2, labels)
    mask_cost = F.softplus(logits).sum(-1, keepdim=True) - torch.bmm(logits, targets_t)
    masks = logits.sigmoid() if costs.dice.pred_act else logits
    overlap = torch.bmm(masks, targets_t)
    if costs.dice.naive_dice:
        size, target_size = masks.sum(-1), targets.sum(-1)
    else:
        size, target_size = masks.square().sum(-1), targets.square().sum(-1)
    eps = costs.dice.eps
    dice_cost = 1 - (2 * overlap + eps) / (size.unsqueeze(2) + target_size.unsqueeze(1) + eps)
    return (
        mask_cost * (costs.mask.weight / logits.shape[-1]) + dice_cost * costs.dice.weight - cls_cost * costs.cls.weight
    )


def _fault(cost: np.ndarray, image: int, labels: Sequence[int]) -> Optional[str]:
    """Describe the costs (L, Q, K) that are not finite; None if all are."""
    bad = ~np.isfinite(cost)
    if not bad.any():
        return None
    layer, query, mask = first = tuple(np.argwhere(bad)[0])
    return (
        f'matching cost is not finite: {bad.sum()} of {bad.size} costs of '
        f'image {image} of the batch, the first one {cost[first]} of '
        f'prediction {layer}, query {query}, class {labels[mask]}'
    )


def assign(
    costs: List[np.ndarray],
    labels: Sequence[Sequence[int]],
    background: int,
    device: torch.device,
    on_bad_costs: Optional[Callable[[str], None]] = None,
) -> Pairs:
    """Match queries and masks of each layer and image at the least total cost.

    Args:
        costs: Costs of each image, (L, Q, K).
        labels: For each image the K classes.
        background: Class of queries without a pair.
        device: Device of the result.
        on_bad_costs: Called with a description if a cost is not finite; see :class:`HostRead`.

    Returns:
        The pairs, on the device.

    Raises:
        ValueError: A cost is not finite and ``on_bad_costs`` is None; names image, prediction, query and class.
    """
    num_layers, num_queries, _ = costs[0].shape
    num_images = len(costs)
    usable = True
    queries_of: List[List[np.ndarray]] = [[] for _ in range(num_layers)]
    masks_of: List[List[np.ndarray]] = [[] for _ in range(num_layers)]
    classes = np.full((num_layers, num_images, num_queries), background)
    first_mask = 0
    for image, cost in enumerate(costs):
        fault = _fault(cost, image, labels[image])
        if fault is not None:
            if on_bad_costs is None:
                raise ValueError(fault)
            on_bad_costs(fault)
            usable = False
            cost = np.where(np.isfinite(cost), cost, 0)
        names = np.asarray(labels[image], dtype=np.int64)
        for layer in range(num_layers):
            rows, columns = linear_sum_assignment(cost[layer])
            queries_of[layer].append((layer * num_images + image) * num_queries + rows)
            masks_of[layer].append(first_mask + columns)
            classes[layer, image, rows] = names[columns]
        first_mask += len(names)
    queries = np.concatenate([q for layer in queries_of for q in layer])
    masks = np.concatenate([m for layer in masks_of for m in layer])
    num_pairs = len(masks) // num_layers
    by_pair = masks * num_layers + np.arange(num_layers).repeat(num_pairs)
    by_mask = np.zeros(first_mask * num_layers, dtype=np.int64)
    by_mask[by_pair] = np.arange(len(by_pair))
    parts = (queries, classes.reshape(-1), by_mask, by_pair)
    packed = torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device, non_blocking=True)
    rows, targets, by_mask_rows, by_pair_rows = packed.split([len(part) for part in parts])
    return Pairs(rows, targets, by_mask_rows, by_pair_rows, usable)
