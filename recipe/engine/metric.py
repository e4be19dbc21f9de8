"""Areas of predicted and true classes, counted where the prediction is."""

from typing import List, Tuple

import torch
from torch import Tensor

Areas = Tuple[Tensor, Tensor, Tensor, Tensor]


def confusion(pred: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count the pairs of true and predicted class. The host does not wait.

    Args:
        pred (Tensor): Predicted classes, an integer type, any shape.
        label (Tensor): True classes, another integer type or the same.
        num_classes (int): Number of classes C. Other values are counted as
            one more class.
        ignore_index (int): Pixels with this label are left out.

    Returns:
        Tensor: Counts, shape (C + 1, C + 1), true class first, on the device
        of ``pred``; float32 on an accelerator, where counts are exact up to
        2^24 pixels, int64 on a CPU.
    """
    side = num_classes + 1
    pred, label = pred.flatten().int(), label.flatten().to(pred.device).int()
    kept = label != ignore_index
    # an index below 0 or above num_classes counts as num_classes
    pred, label = (
        torch.where((one < 0) | (one > num_classes), torch.full_like(one, num_classes), one) for one in (pred, label)
    )
    cell = label * side + pred
    count = _count_on_host if cell.device.type == 'cpu' else _count_on_device
    return count(cell, kept, side * side).view(side, side)


def _count_on_host(cell: Tensor, kept: Tensor, bins: int) -> Tensor:
    return torch.bincount(cell[kept], minlength=bins)


def _count_on_device(cell: Tensor, kept: Tensor, bins: int) -> Tensor:
    """Count without bincount, which has to read its largest value first."""
    outside = torch.full_like(cell, -1)
    return torch.histc(torch.where(kept, cell, outside).float(), bins, min=0, max=bins - 1)


def read_areas(confusions: List[Tensor]) -> List[Areas]:
    """Bring counts to the host, in one copy.

    Args:
        confusions (list[Tensor]): From :func:`confusion`, same shape.

    Returns:
        list[tuple[Tensor]]: For each the areas that
        :meth:`IoUMetric.intersect_and_union` returns: intersection, union,
        prediction and label of each class, float32, shape (C, ).
    """
    areas = []
    for counts in torch.stack(confusions).cpu().long():
        intersect = counts.diagonal()[:-1]
        pred, label = counts.sum(0)[:-1], counts.sum(1)[:-1]
        areas.append(tuple(one.float() for one in (intersect, pred + label - intersect, pred, label)))
    return areas
