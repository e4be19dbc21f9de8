"""Loss and prediction of the Mask2Former head without full-size masks.

The functions act where a head computes what its class says; a subclass that
has its own methods, matching or losses keeps the path through them.
"""

from typing import Dict, Sequence, Tuple

import torch
from torch import Tensor, nn

try:
    from mmdet.models.dense_heads import Mask2FormerHead

    from recipe.models.decode import QueryPredictions, decode
    from recipe.models.loss import batched_loss, can_batch
    from recipe.models.static_loss import static_loss
except ModuleNotFoundError:
    Mask2FormerHead = None

from mmseg.utils import SampleList

from recipe.models.compiled_parts import parts_of
from recipe.models.present_classes import present_classes

LOSS_METHODS = ('loss_by_feat', '_loss_by_feat_single', 'get_targets', '_get_targets_single')


def _has_own(head: nn.Module, name: str, owner: type) -> bool:
    """Say whether a head's method is another one than its owner's."""
    method = getattr(getattr(head, name), '__func__', None)
    return method is not getattr(owner, name)


def decodes_here(head: nn.Module) -> bool:
    """Say whether a head's forward pass may be replaced by its decoder.

    Args:
        head (nn.Module): A ``Mask2FormerHead`` of mmseg.

    Returns:
        bool: False where something overrides, or listens to, ``forward``.
    """
    hooks = head._forward_hooks or head._forward_pre_hooks
    return not hooks and not _has_own(head, 'forward', Mask2FormerHead) and head.decodes_fused()


def batches_loss(head: nn.Module) -> bool:
    """Say whether a head's loss may be computed for all layers at once.

    Args:
        head (nn.Module): A ``Mask2FormerHead`` of mmseg.

    Returns:
        bool: The same on all ranks, since it depends on the config only.
    """
    return (
        decodes_here(head)
        and can_batch(head)
        and not any(_has_own(head, name, Mask2FormerHead) for name in LOSS_METHODS)
    )


def last_predictions(head: nn.Module, x: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
    """Run a head and return what its last layer predicts.

    Args:
        head (nn.Module): A head for which :func:`decodes_here` holds.
        x (sequence[Tensor]): Features of the backbone.

    Returns:
        tuple[Tensor]: Class logits (B, Q, num_classes + 1) and mask logits
        (B, Q, h, w).
    """
    predictions = decode(head, x)
    return predictions.cls_logits[-1], predictions.masks(-1)


def fused_loss(head: nn.Module, x: Sequence[Tensor], batch_data_samples: SampleList) -> Dict[str, Tensor]:
    """Run a head and compute its losses.

    Args:
        head (nn.Module): A head for which :func:`batches_loss` holds.
        x (sequence[Tensor]): Features of the backbone.
        batch_data_samples (list[:obj:`SegDataSample`]): With ``gt_sem_seg``,
            of the same size in all samples.

    Returns:
        dict[str, Tensor]: The losses of each layer, as ``loss_by_feat`` names
        them.
    """
    maps = [sample.gt_sem_seg for sample in batch_data_samples]
    classes = [present_classes(m, head.ignore_index) for m in maps]
    parts = parts_of(head)
    predictions = (parts.decode if parts else decode)(head, x)
    # in float32 whatever the forward pass ran in: costs of half precision
    # change the matching
    with torch.autocast(x[0].device.type, enabled=False):
        predictions = QueryPredictions(*(p.float() for p in predictions))
        if parts:
            return static_loss(
                head, predictions, torch.cat([m.data for m in maps]), classes, parts.costs, parts.point_losses
            )
        return batched_loss(head, predictions, _class_masks([m.data for m in maps], classes), classes)


def _class_masks(maps: Sequence[Tensor], classes: Sequence[Sequence[int]]) -> Tensor:
    """Make a float mask of each class of each map (1, H, W): (M, H, W)."""
    device = maps[0].device
    sizes = [len(names) for names in classes]
    names = torch.tensor([name for image in classes for name in image], dtype=maps[0].dtype).to(
        device, non_blocking=True
    )
    masks = [label_map == part.view(-1, 1, 1) for label_map, part in zip(maps, names.split(sizes))]
    return torch.cat(masks).float()
