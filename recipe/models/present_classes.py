"""Finds the classes in a label map before it goes to the device.

If they were counted on the device, the host would have to wait for the result. The list is stored as meta information
of the label map.
"""

from typing import List, Optional, Sequence

import torch
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

KEY = 'present_values'
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def count_values(label_map: Tensor) -> List[int]:
    """Return the values of a label map, sorted.

    Args:
        label_map: Any integer type, shape and device. If it is not on the CPU, the host waits for the device.

    Returns:
        Each value that occurs, once, in ascending order.
    """
    label_map = label_map.flatten()
    countable = label_map.dtype in INTEGERS and label_map.numel()
    if countable and label_map.device.type == 'cpu':
        low, high = (int(v) for v in torch.aminmax(label_map))
        if low >= 0 and high < 2**16:
            # A histogram is many times cheaper than unique, which sorts.
            return torch.bincount(label_map).nonzero().flatten().tolist()
    return torch.unique(label_map).tolist()


def host_values(data_samples: Optional[Sequence]) -> List[Optional[List[int]]]:
    """Count the values of label maps that are still on the host.

    Args:
        data_samples: Samples from the data loader.

    Returns:
        For each sample the values of ``gt_sem_seg``; None if it has no label map, or the map is on a device already.
    """
    return [
        count_values(sample.gt_sem_seg.data)
        if 'gt_sem_seg' in sample and sample.gt_sem_seg.data.device.type == 'cpu'
        else None
        for sample in data_samples or ()
    ]


def note_values(data_sample: BaseDataElement, values: Optional[Sequence[int]], pad_value: int) -> None:
    """Store the values of a label map in its meta information, after it was moved and perhaps padded.

    Args:
        data_sample: The sample as the model will see it, with the padding in its meta information.
        values: Values of ``gt_sem_seg`` before padding; None if they are not known.
        pad_value: Label of the padding.
    """
    if values is None:
        return
    padded = any(data_sample.metainfo['padding_size'])
    present = {*values, pad_value} if padded else values
    data_sample.gt_sem_seg.set_metainfo({KEY: tuple(sorted(present))})


def present_classes(label_map: PixelData, ignore_index: int) -> List[int]:
    """Return the classes of a label map.

    Args:
        label_map: A ground truth map.
        ignore_index: The value that is not a class.

    Returns:
        The classes, sorted. If the preprocessor has not stored them, they are counted, and the host waits.
    """
    values = label_map.metainfo.get(KEY)
    if values is None:
        values = count_values(label_map.data)
    return [value for value in values if value != ignore_index]
