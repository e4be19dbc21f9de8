"""The shares of the parts of a batch in its loss, for gradient accumulation.

A loss that is a mean over a batch is a weighted sum of the means over its parts. The weights follow from what each term
is averaged over:

- Mask2Former's class loss: the class weights of all queries of the rank. Each ground truth mask is matched with one
  query, so this sum follows from the labels, before the matching.
- its mask and dice losses: the number of matched masks, as a mean over the ranks.
- all other terms: the images, of which all parts have as many. This is right for a loss that is a mean over all pixels.
"""

from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import torch
from mmdet.utils import reduce_mean
from mmseg.models.decode_heads import Mask2FormerHead
from torch import Tensor, nn

from recipe.models.present_classes import count_values

_HEAD = 'decode.'  # the prefix of the terms of a segmentor's decode_head


class LossShares:
    """Scales the loss terms of each part, so that their sums over the parts are the terms of the whole batch.

    It is made on all ranks, because the number of masks is a mean over the ranks.

    Args:
        model: The segmentor, without a wrapper, on its device.
        parts: Batches of the loader, of as many images each.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Any]) -> None:
        self._model = model
        self._others = 1 / len(parts)
        self._by_kind: Dict[str, Sequence[Any]] = {}
        head = getattr(model, 'decode_head', None)
        if len(parts) == 1 or not isinstance(head, Mask2FormerHead):
            return
        counts = [_averaged_over(head, part) for part in parts]
        factors = [factor for factor, _ in counts]
        masks = torch.tensor([number for _, number in counts], device=next(head.parameters()).device)
        masks = reduce_mean(masks)
        by_masks = (masks / masks.sum()).unbind()
        self._by_kind = {
            'loss_cls': [factor / sum(factors) for factor in factors],
            'loss_mask': by_masks,
            'loss_dice': by_masks,
        }

    @contextmanager
    def of_part(self, number: int) -> Iterator[None]:
        """Have the model scale the terms of a part, counted from 0."""
        model: Any = self._model
        # A plain attribute of the instance, which hides the method.
        model.parse_losses = partial(self._parse_scaled, model.parse_losses, number)
        try:
            yield
        finally:
            del model.parse_losses

    def _parse_scaled(self, parse: Callable, number: int, losses: Dict[str, Any]) -> Tuple[Tensor, Dict[str, Tensor]]:
        scaled: Dict[str, Any] = {}
        for name, value in losses.items():
            share = self._share(name, number)
            scaled[name] = [one * share for one in value] if isinstance(value, list) else value * share
        result: Tuple[Tensor, Dict[str, Tensor]] = parse(scaled)
        return result

    def _share(self, name: str, number: int) -> Any:
        kind = name.rpartition('.')[2]
        if name.startswith(_HEAD) and kind in self._by_kind:
            return self._by_kind[kind][number]
        return self._others


def _averaged_over(head: Mask2FormerHead, part: Any) -> Tuple[float, float]:
    """What the losses of a part are averaged over, on this rank.

    Returns:
        The class weights of all queries, and the matched masks. An image without ground truth counts as one mask.
    """
    weights: List[float] = list(head.class_weight)
    factor, masks = 0.0, 0
    for sample in part['data_samples']:
        names = [value for value in count_values(sample.gt_sem_seg.data) if value != head.ignore_index]
        matched = min(len(names), head.num_queries)
        # With more masks than queries the matching chooses the masks; they are taken to weigh as much as the others.
        factor += sum(weights[name] for name in names if name < len(weights)) * matched / max(1, len(names))
        factor += (head.num_queries - matched) * weights[-1]
        masks += max(matched, 1)
    return factor, float(masks)
