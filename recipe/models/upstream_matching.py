"""Lets upstream's matching of queries go on if its costs are not finite, as the fast head's does (``--fast=0``)."""

import math
from typing import Any, Dict, Optional

import torch
from mmdet.models.task_modules.assigners import HungarianAssigner
from mmengine.structures import InstanceData
from torch import nn

from recipe.models.host_read import HostRead


def watch_matching(model: nn.Module) -> Optional[HostRead]:
    """Report costs that are not finite in the heads of upstream's own classes.

    SciPy raises an error for them. After this call, and as long as ``on_bad_costs`` is set, the step goes on with NaN
    losses, so that all ranks notice. Costs that are finite are matched as before.

    Args:
        model: The model; it may be wrapped for distributed training.

    Returns:
        The object with ``on_bad_costs``; None if no module of the model matches queries.
    """
    host_read = None
    for module in model.modules():
        if isinstance(getattr(module, 'assigner', None), HungarianAssigner) and hasattr(module, 'loss_by_feat'):
            host_read = host_read or HostRead()
            _Watch(module, host_read)
    return host_read


class _Watch:
    """Takes the place of two functions of one head: ``assigner.assign`` and ``loss_by_feat``."""

    def __init__(self, head: Any, host_read: HostRead) -> None:
        self._host_read = head.host_read = host_read
        self._assign, head.assigner.assign = head.assigner.assign, self.assign
        self._loss_by_feat, head.loss_by_feat = head.loss_by_feat, self.loss_by_feat
        self._usable = True

    def assign(self, pred_instances: InstanceData, gt_instances: InstanceData, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._assign(pred_instances, gt_instances, *args, **kwargs)
        except ValueError as error:
            if self._host_read.on_bad_costs is None:
                raise
            self._host_read.on_bad_costs(f'matching cost is not finite: {error}')
            self._usable = False
        # Any pairs will do, because the losses become NaN.
        zeros = InstanceData(**{name: torch.zeros_like(value) for name, value in pred_instances.items()})
        return self._assign(zeros, gt_instances, *args, **kwargs)

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> Dict[str, torch.Tensor]:
        self._usable = True
        losses = self._loss_by_feat(*args, **kwargs)
        return losses if self._usable else {name: loss * math.nan for name, loss in losses.items()}
