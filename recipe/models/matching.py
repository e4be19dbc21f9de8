"""Matching of queries and ground truth for all layers and images at once."""

from functools import partial
from typing import List, NamedTuple, Optional, Sequence, Union

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
from torch import Tensor

from recipe.models.assignment import Problems, solve
from recipe.models.cost_faults import CostFaults


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
        usable: False if a cost was not finite. The pairs are then meaningless. A bool, or a scalar on the device.
    """

    queries: Tensor
    labels: Tensor
    by_mask: Tensor
    by_pair: Tensor
    usable: Union[Tensor, bool] = True


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


def describe_faults(costs: Sequence[Tensor], labels: Sequence[Sequence[int]]) -> Optional[str]:
    """Describe the costs that are not finite; the host waits for them.

    Args:
        costs: Costs of each image, (L, Q, K).
        labels: For each image the K classes.

    Returns:
        The first image with such costs, their number, and the first of them; None if all costs are finite.
    """
    for image, matrix in enumerate(costs):
        cost = matrix.cpu().numpy()
        bad = ~np.isfinite(cost)
        if bad.any():
            layer, query, mask = first = tuple(np.argwhere(bad)[0])
            return (
                f'matching cost is not finite: {bad.sum()} of {bad.size} costs of '
                f'image {image} of the batch, the first one {cost[first]} of '
                f'prediction {layer}, query {query}, class {labels[image][mask]}'
            )
    return None


def assign(
    costs: List[Tensor], labels: Sequence[Sequence[int]], names: Tensor, background: int, faults: CostFaults
) -> Pairs:
    """Match queries and masks of each layer and image at the least total cost.

    Args:
        costs: Costs of each image, (L, Q, K).
        labels: For each image the K classes.
        names: All classes in ``labels``, (M,), on the device of the costs.
        background: Class of queries without a pair.
        faults: Decides what happens if a cost is not finite.

    Returns:
        The pairs, on the device of the costs.

    Raises:
        ValueError: A cost is not finite, and ``faults`` does not tolerate it; names image, prediction, query and class.
    """
    num_layers, num_queries, _ = costs[0].shape
    problems = list_problems([len(image) for image in labels], num_layers, num_queries)
    queries, masks, usable = solve(torch.cat([cost.flatten() for cost in costs]), problems)
    usable = faults.judge(usable, partial(describe_faults, costs, labels))
    classes = queries.new_full((num_layers * len(costs) * num_queries,), background)
    classes.scatter_(0, queries, names.index_select(0, masks))
    device = queries.device
    by_pair = (masks.view(num_layers, -1) * num_layers + torch.arange(num_layers, device=device).unsqueeze(1)).flatten()
    by_mask = queries.new_zeros(len(names) * num_layers)
    by_mask.scatter_(0, by_pair, torch.arange(len(by_pair), device=device))
    return Pairs(queries, classes, by_mask, by_pair, usable)


def list_problems(sizes: Sequence[int], num_layers: int, num_queries: int, room: Optional[int] = None) -> Problems:
    """List the assignment problems of all layers and images, sorted by layer in the result.

    Args:
        sizes: Masks of each image.
        num_layers: L.
        num_queries: Q.
        room: Masks of each image with padding, K. None: none is padded.

    Returns:
        Problems with the costs of all images one after the other, each (L, Q, K). Queries are indices in (L * B * Q),
        masks in the masks of all images.
    """
    masks = np.array(sizes, dtype=np.int64)
    strides = masks if room is None else np.full_like(masks, room)
    places = np.minimum(strides, num_queries)
    layers, images = (grid.ravel() for grid in np.indices((num_layers, len(masks))))
    starts = np.cumsum(strides) - strides
    columns = (
        (starts[images] * num_layers + layers * strides[images]) * num_queries,
        masks[images],
        strides[images],
        layers * places.sum() + (np.cumsum(places) - places)[images],
        (layers * len(masks) + images) * num_queries,
        starts[images],
    )
    return Problems(np.stack(columns, axis=1), num_queries, int(num_layers * places.sum()))
