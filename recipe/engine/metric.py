"""An IoU metric that counts on the device and reads the counts once per validation."""

from typing import Any, Dict, List, Sequence, Tuple

import torch
from mmseg.evaluation.metrics import IoUMetric
from mmseg.registry import METRICS
from torch import Tensor

Areas = Tuple[Tensor, Tensor, Tensor, Tensor]


@METRICS.register_module()
class DeviceIoUMetric(IoUMetric):
    """mmseg's IoU metric, with one host read per validation."""

    results: List[Any]

    def process(self, data_batch: Dict[str, Any], data_samples: Sequence[Dict[str, Any]]) -> None:
        """Count a batch.

        Args:
            data_batch: The loader's batch.
            data_samples: Predictions and labels.

        Raises:
            ValueError: A prediction has another size than its labels.
        """
        for sample in () if self.format_only else data_samples:
            pred, label = (tuple(sample[key]['data'].shape[-2:]) for key in ('pred_sem_seg', 'gt_sem_seg'))
            if pred != label:
                raise ValueError(
                    f'{sample.get("img_path", "a picture")}: the prediction is {pred} pixels, the labels {label}'
                )
        super().process(data_batch, data_samples)

    @staticmethod
    def intersect_and_union(pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
        """Count the pairs of true and predicted class; see :func:`confusion`. ``evaluate`` computes areas from them."""
        return confusion(pred_label, label, num_classes, ignore_index)

    def evaluate(self, size: int) -> Dict[str, Any]:
        """Read the counts of all batches, then evaluate.

        Args:
            size: Number of images of the data set.
        """
        if self.results and not self.format_only:
            self.results = read_areas(self.results)
        return super().evaluate(size)


def confusion(pred: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count the pairs of true and predicted class. The host does not wait.

    Args:
        pred: Predicted classes, an integer type, any shape.
        label: True classes, any integer type, as many as ``pred``.
        num_classes: Number of classes C. Other values are counted as one more class.
        ignore_index: Pixels with this label are left out.

    Returns:
        Counts, shape (C + 1, C + 1), true class first, on the device of ``pred``. On an accelerator they are float32,
        exact up to 2^24 pixels; on a CPU int64.
    """
    side = num_classes + 1
    pred, label = pred.flatten().int(), label.flatten().to(pred.device).int()
    kept = label != ignore_index
    # An index below 0 or above num_classes counts as num_classes.
    pred, label = (
        torch.where((one < 0) | (one > num_classes), torch.full_like(one, num_classes), one) for one in (pred, label)
    )
    cell = label * side + pred
    count = _count_on_host if cell.device.type == 'cpu' else _count_on_device
    return count(cell, kept, side * side).view(side, side)


def _count_on_host(cell: Tensor, kept: Tensor, bins: int) -> Tensor:
    return torch.bincount(cell[kept], minlength=bins)


def _count_on_device(cell: Tensor, kept: Tensor, bins: int) -> Tensor:
    """Count without bincount, which first reads the largest index on the host."""
    outside = torch.full_like(cell, -1)
    return torch.histc(torch.where(kept, cell, outside).float(), bins, min=0, max=bins - 1)


def read_areas(confusions: List[Tensor]) -> List[Areas]:
    """Bring counts to the host in one copy, and compute the areas.

    Args:
        confusions: Results of :func:`confusion`, all of the same shape.

    Returns:
        For each of them the areas of :meth:`IoUMetric.intersect_and_union`: intersection, union, prediction and label
        of each class, in pixels, float32, shape (C,).
    """
    areas = []
    for counts in torch.stack(confusions).cpu().long():
        intersect = counts.diagonal()[:-1]
        pred, label = counts.sum(0)[:-1], counts.sum(1)[:-1]
        areas.append(tuple(one.float() for one in (intersect, pred + label - intersect, pred, label)))
    return areas
