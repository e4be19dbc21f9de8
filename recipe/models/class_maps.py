"""Turns the masks of queries into class scores, a few rows at a time.

At full size the masks of 100 queries of a 1024 x 2048 image take 839 MB, which are written and read several times. Here
a few rows at a time are enlarged and summed, with the same result.
"""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of enlarged masks at a time. On a CPU they fit into the cache; elsewhere they keep the accelerator busy.
_PART_NUMEL = {'cpu': 2**22}
_OTHER_PART_NUMEL = 2**27


def class_scores(cls_logits: Tensor, mask_logits: Tensor, size: Tuple[int, int]) -> Tensor:
    """Sum softmax(class) * sigmoid(mask) over all queries.

    MaskFormer (arXiv:2107.06278), section 3.4, semantic inference.

    Args:
        cls_logits: (B, Q, C + 1); the last class means "no object".
        mask_logits: (B, Q, h, w); enlarged bilinearly.
        size: H and W.

    Returns:
        Class scores, (B, C, H, W), in the floating dtype of the logits.
    """
    height, width = (int(side) for side in size)
    scores = F.softmax(cls_logits, dim=-1)[..., :-1]
    low = mask_logits.shape[-2]
    whole_multiple = height % low == 0 and width % mask_logits.shape[-1] == 0
    rows = _rows(mask_logits, height, width)
    if not whole_multiple or rows >= low or _needs_gradient(cls_logits, mask_logits):
        masks = F.interpolate(mask_logits, (height, width), mode='bilinear', align_corners=False)
        return torch.einsum('bqc, bqhw->bchw', scores, masks.sigmoid())
    times = height // low
    out = mask_logits.new_empty(
        (len(scores), scores.shape[-1], height, width), dtype=torch.result_type(scores, mask_logits)
    )
    for first in range(0, low, rows):
        last = min(first + rows, low)
        # One more row on both sides, because the outer rows are interpolated from it.
        begin, end = max(first - 1, 0), min(last + 1, low)
        masks = F.interpolate(
            mask_logits[:, :, begin:end], ((end - begin) * times, width), mode='bilinear', align_corners=False
        )
        masks = masks[:, :, (first - begin) * times : (last - begin) * times].sigmoid()
        out[:, :, first * times : last * times] = torch.einsum('bqc, bqhw->bchw', scores, masks)
    return out


def _rows(mask_logits: Tensor, height: int, width: int) -> int:
    """Return how many of the h rows are enlarged at a time."""
    numel = _PART_NUMEL.get(mask_logits.device.type, _OTHER_PART_NUMEL)
    images, queries, low, _ = mask_logits.shape
    return max(4, numel // (images * queries * width * (height // low or 1)))


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def most_likely(logits: Tensor) -> Tensor:
    """Return the class with the largest logit of each pixel; the first one if several are equal.

    Args:
        logits: (C, H, W).

    Returns:
        (1, H, W), int64.
    """
    if logits.device.type == 'cpu':
        # This takes a third of the time of argmax.
        return logits.max(dim=0, keepdim=True).indices
    return logits.argmax(dim=0, keepdim=True)
