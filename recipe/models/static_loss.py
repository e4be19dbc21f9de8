"""The Mask2Former loss in shapes that no image changes.

Each image has room for every class of the head, so that what is computed
before and after the assignment has one shape for the whole training and one
graph of torch.compile serves it. Rooms without a class, and pairs without a
mask, add exactly 0.
"""

from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from recipe.models.decode import QueryPredictions
from recipe.models.loss import _check_labels, _class_loss, _point_losses, can_batch, name_losses
from recipe.models.matching import Pairs, assign, cost_matrix, match_costs
from recipe.models.points import draw_points, keep_uncertain, sample

# The logit of pixels that count for nothing: a probability of exactly 0.
_NOTHING = -1e4


def can_be_static(head: nn.Module) -> bool:
    """Say whether :func:`static_loss` computes what a head's parts compute.

    Args:
        head (nn.Module): A ``Mask2FormerHead``.

    Returns:
        bool: False where ``can_batch`` says so, and for the dice loss of
        squares, in which nothing is not at no cost.
    """
    return can_batch(head) and head.loss_dice.naive_dice


class Rooms(NamedTuple):
    """Pairs and masks in their rooms: S of masks and R of pairs an image.

    Attributes:
        queries (Tensor): Rows of the pairs in (L * B * Q), (L * B * R).
        labels (Tensor): See ``Pairs``, (L * B * Q).
        by_mask (Tensor): The pair of each mask and layer, a row of
            (L * B * R); (B * S * L). 0 where there is none.
        by_pair (Tensor): The row of ``by_mask`` of each pair, (L * B * R).
        taken (Tensor): 1 where a room has a pair, (B * R).
        pairs (Tensor): The rooms that have a pair, (N).
    """

    queries: Tensor
    labels: Tensor
    by_mask: Tensor
    by_pair: Tensor
    taken: Tensor
    pairs: Tensor


def static_costs(
    head: nn.Module, predictions: QueryPredictions, gt_masks: Tensor, classes: Tensor, points: List[Tensor]
) -> Tensor:
    """Compute the costs of the matching for all rooms of all images.

    Args:
        head (nn.Module): Holds the weights of the costs.
        predictions (QueryPredictions): Float32.
        gt_masks (Tensor): 0 or 1, float32, (B, S, H, W).
        classes (Tensor): Of the rooms, (B, S).
        points (list[Tensor]): Of each image, (L, P, 2).

    Returns:
        Tensor: (B, L, Q, S), without gradient.
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
    rooms: Rooms,
    candidates: Tensor,
    others: Tensor,
    num_masks: Tensor,
) -> Tuple[Tensor, Tensor]:
    """Compute mask and dice loss of each layer.

    Args:
        head (nn.Module): Holds options and weights of the losses.
        predictions (QueryPredictions): Float32.
        gt_masks (Tensor): 0 or 1, float32, (B, S, H, W).
        rooms (Rooms): The pairs.
        candidates (Tensor): Points to choose from, (L * B * R, C, 2).
        others (Tensor): Points kept anyway, (L * B * R, P - U, 2).
        num_masks (Tensor): Matched masks per process, (1, ).

    Returns:
        tuple[Tensor]: Mask loss and dice loss, both (L, 1).
    """
    embeds, features = predictions.mask_embeds, predictions.mask_features
    num_layers, num_images = embeds.shape[:2]
    matched = embeds.flatten(0, 2).index_select(0, rooms.queries).view(num_layers, num_images, -1, embeds.shape[-1])
    masks = torch.einsum('lbrc,bchw->lbrhw', matched, features).flatten(0, 2)
    points = keep_uncertain(masks, candidates, others, head.num_points)
    with torch.no_grad():
        # each mask is read once, for all layers
        at = points.index_select(0, rooms.by_mask).view(gt_masks.shape[0] * gt_masks.shape[1], num_layers, -1, 2)
        targets = sample(gt_masks.flatten(0, 1).unsqueeze(1), at)
        targets = targets.flatten(0, 2).index_select(0, rooms.by_pair)
    logits = sample(masks.unsqueeze(1), points.unsqueeze(1))[:, 0, 0]
    taken = rooms.taken.repeat(num_layers).unsqueeze(1) > 0
    return _point_losses(
        head, logits.masked_fill(~taken, _NOTHING), targets.masked_fill(~taken, 0.0), num_layers, num_masks
    )


def static_loss(
    head: nn.Module,
    predictions: QueryPredictions,
    label_maps: Tensor,
    labels: List[Sequence[int]],
    costs: Callable[..., Tensor] = static_costs,
    point_losses: Callable[..., Tuple[Tensor, Tensor]] = static_point_losses,
) -> Dict[str, Tensor]:
    """Compute the losses of all layers, in shapes that no image changes.

    They equal those of ``batched_loss`` up to rounding, with the same random
    points for the same seed.

    Args:
        head (nn.Module): A ``Mask2FormerHead`` for which
            :func:`can_be_static` holds.
        predictions (QueryPredictions): Float32.
        label_maps (Tensor): Classes of the pixels, an integer type,
            (B, H, W).
        labels (list[sequence[int]]): For each image the classes of its map.
        costs (Callable): :func:`static_costs`, compiled or not.
        point_losses (Callable): :func:`static_point_losses`, likewise.

    Returns:
        dict[str, Tensor]: As :meth:`Mask2FormerHead.loss_by_feat` names them.

    Raises:
        ValueError: As ``batched_loss``.
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
    # an image without ground truth counts as one mask, as in SamplingResult
    num_masks = reduce_mean(torch.full((1,), float(sum(max(n, 1) for n in counts)), device=device)).clamp(min=1)
    names = torch.zeros(num_images, head.num_classes, dtype=torch.long)
    for image, present in enumerate(labels):
        names[image, : len(present)] = torch.as_tensor(present, dtype=torch.long)
    names = names.to(device, non_blocking=True)
    gt_masks = (label_maps.unsqueeze(1) == names[..., None, None].to(label_maps.dtype)).float()

    # drawn in one with the others, their strides vary with the masks
    points = [drawn.contiguous() for drawn in draws.matching]
    # The one place of a training step where the host waits for the device.
    host = head.host_read.read([costs(head, predictions, gt_masks, names, points)])[0]
    pairs = assign(
        [cost[:, :, : len(image)] for cost, image in zip(host, labels)],
        labels,
        head.num_classes,
        torch.device('cpu'),
        head.host_read.on_bad_costs,
    )
    rooms = into_rooms(pairs, labels, counts, num_queries, head.num_classes, num_layers, device)

    cls_losses = _class_loss(head, predictions.cls_logits, rooms.labels)
    candidates, others = (_spread(drawn, rooms, num_layers) for drawn in (draws.candidates, draws.others))
    mask_losses, dice_losses = point_losses(head, predictions, gt_masks, rooms, candidates, others, num_masks)
    return name_losses(cls_losses, mask_losses, dice_losses, pairs.usable)


def into_rooms(
    pairs: Pairs,
    labels: List[Sequence[int]],
    counts: List[int],
    num_queries: int,
    num_rooms: int,
    num_layers: int,
    device: torch.device,
) -> Rooms:
    """Put the pairs of a batch into rooms.

    Args:
        pairs (Pairs): On the host, N in each layer.
        labels (list[sequence[int]]): For each image the classes of its masks.
        counts (list[int]): For each image its pairs.
        num_queries (int): Q.
        num_rooms (int): S, masks for which an image has room.
        num_layers (int): L.
        device (torch.device): Where the rooms are needed.

    Returns:
        Rooms: Brought to the device in one copy.
    """
    num_images, room = len(labels), min(num_rooms, num_queries)
    # rooms of the N pairs, and of the masks
    pair_rooms = np.concatenate([np.arange(n) + image * room for image, n in enumerate(counts)])
    mask_rooms = np.concatenate(
        [np.arange(len(present)) + image * num_rooms for image, present in enumerate(labels)]
    ).astype(np.int64)
    layer = np.arange(num_layers)[:, None]
    rows = (layer * num_images * room + pair_rooms).reshape(-1)

    queries = np.zeros(num_layers * num_images * room, dtype=np.int64)
    queries[rows] = pairs.queries.numpy()
    at = pairs.by_pair.numpy()
    by_pair = np.zeros_like(queries)
    by_pair[rows] = mask_rooms[at // num_layers] * num_layers + at % num_layers
    by_mask = np.zeros(num_images * num_rooms * num_layers, dtype=np.int64)
    by_mask[by_pair[rows]] = rows
    taken = np.zeros(num_images * room, dtype=np.int64)
    taken[pair_rooms] = 1
    parts = (queries, pairs.labels.numpy(), by_mask, by_pair, taken, pair_rooms)
    packed = torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device, non_blocking=True)
    # copies: a graph is made for how a tensor lies in memory, too
    return Rooms(*(part.clone() for part in packed.split([len(p) for p in parts])))


def _spread(drawn: Tensor, rooms: Rooms, num_layers: int) -> Tensor:
    """Bring points of pairs to rooms, (L * N, K, 2) -> (L * B * R, K, 2)."""
    spread = drawn.new_zeros(num_layers, len(rooms.taken), *drawn.shape[1:])
    if len(drawn):
        spread.index_copy_(1, rooms.pairs, drawn.view(num_layers, -1, *drawn.shape[1:]))
    return spread.flatten(0, 1)
