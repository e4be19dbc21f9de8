"""The Mask2Former head: all layers and images at once, and no full-size masks."""

from typing import Any, Dict, List, Sequence, Tuple

import torch
from mmseg.models.decode_heads import Mask2FormerHead
from mmseg.utils import SampleList
from torch import Tensor

from recipe.models.class_maps import class_scores
from recipe.models.compiled_parts import parts_of
from recipe.models.cost_faults import CostFaults
from recipe.models.decode import QueryPredictions, can_decode, decode
from recipe.models.execution import to_device
from recipe.models.loss import batched_loss, can_batch
from recipe.models.present_classes import present_classes
from recipe.models.static_loss import Targets, graph_loss, static_loss


class FastMask2FormerHead(Mask2FormerHead):
    """mmseg's Mask2Former head; computes the losses of all layers and images at once.

    If the decoder, the matching or a loss is of another kind, upstream's methods run.

    Attributes:
        cost_faults: Decides what happens if a matching cost is not finite.
    """

    def set_up(self) -> None:
        """Add what upstream's head does not have."""
        self.cost_faults = CostFaults()

    @property
    def decodes_at_once(self) -> bool:
        """Whether :func:`decode` can replace the modules: it computes the same, and the head has no hooks."""
        return not (self._forward_hooks or self._forward_pre_hooks) and can_decode(self)

    @property
    def batches_loss(self) -> bool:
        """Whether the losses of all layers and images are computed at once; the same on all ranks."""
        return self.decodes_at_once and can_batch(self)

    def forward(self, x: List[Tensor], batch_data_samples: SampleList) -> Tuple[List[Tensor], List[Tensor]]:
        """Return class logits and mask logits of each layer, as upstream's method does.

        Args:
            x: Features of the backbone.
            batch_data_samples: Not used, as upstream.

        Returns:
            For each layer the class logits, (B, Q, C + 1), and the mask logits, (B, Q, h, w).
        """
        if not can_decode(self):
            return super().forward(x, batch_data_samples)
        predictions = decode(self, x)
        layers = range(len(predictions.cls_logits))
        return list(predictions.cls_logits), [predictions.masks(layer) for layer in layers]

    def loss(self, x: Sequence[Tensor], batch_data_samples: SampleList, train_cfg: Any) -> Dict[str, Tensor]:
        """Run the head and compute its losses.

        Args:
            x: Features of the backbone.
            batch_data_samples: Hold ``gt_sem_seg``, all of the same size.
            train_cfg: Not used, as upstream.

        Returns:
            Losses of one element for each layer, with the names of ``loss_by_feat``.
        """
        if not self.batches_loss:
            return super().loss(x, batch_data_samples, train_cfg)
        maps = [sample.gt_sem_seg for sample in batch_data_samples]
        classes = [present_classes(label_map, self.ignore_index) for label_map in maps]
        parts = parts_of(self)
        predictions = (parts.decode if parts else decode)(self, x)
        # Always in float32, because costs in half precision would change the matching.
        with torch.autocast(x[0].device.type, enabled=False):
            predictions = QueryPredictions(*(p.float() for p in predictions))
            data = [label_map.data for label_map in maps]
            if parts:
                return static_loss(self, predictions, torch.cat(data), classes, parts.costs, parts.point_losses)
            return batched_loss(self, predictions, _class_masks(data, classes), classes)

    def loss_of_targets(self, x: Sequence[Tensor], targets: Targets) -> Dict[str, Tensor]:
        """Compute the losses without anything that the host has to know of the labels; see ``graph_loss``.

        Args:
            x: Features of the backbone.
            targets: From ``targets_of``.
        """
        predictions = decode(self, x)
        with torch.autocast(x[0].device.type, enabled=False):
            return graph_loss(self, QueryPredictions(*(p.float() for p in predictions)), targets)

    def predict(self, x: Sequence[Tensor], batch_img_metas: List[dict], test_cfg: Any) -> Tensor:
        """Return the score of each class at each pixel.

        Args:
            x: Features of the backbone.
            batch_img_metas: Hold the size of the images, ``pad_shape`` or ``img_shape``.
            test_cfg: Not used, as upstream.

        Returns:
            Shape (B, C, H, W).
        """
        if not self.decodes_at_once:
            return super().predict(x, batch_img_metas, test_cfg)
        predictions = decode(self, x)
        meta = batch_img_metas[0]
        size = meta['pad_shape'] if 'pad_shape' in meta else meta['img_shape']
        return class_scores(predictions.cls_logits[-1], predictions.masks(-1), size)


def _class_masks(maps: Sequence[Tensor], classes: Sequence[Sequence[int]]) -> Tensor:
    """Make a float32 mask of each class of each map (1, H, W); M masks in all, (M, H, W)."""
    device = maps[0].device
    sizes = [len(names) for names in classes]
    names = to_device(torch.tensor([name for image in classes for name in image], dtype=maps[0].dtype), device)
    masks = [label_map == part.view(-1, 1, 1) for label_map, part in zip(maps, names.split(sizes))]
    return torch.cat(masks).float()
