"""Lets upstream's matching of queries go on if its costs are not finite, as the fast head's does (``--fast=0``)."""

import math
from typing import Any, Dict, Optional

import torch
from mmdet.models.task_modules.assigners import HungarianAssigner
from mmengine.structures import InstanceData
from torch import nn

from recipe.models.cost_faults import CostFaults


def watch_matching(model: nn.Module) -> Optional[CostFaults]:
    """Report costs that are not finite in the heads of upstream's own classes.

    SciPy raises an error for them. After this call, and as long as they are tolerated, the step goes on with NaN
    losses, so that all ranks notice. Costs that are finite are matched as before.

    Args:
        model: The model; it may be wrapped for distributed training.

    Returns:
        Decides whether they are tolerated; None if no module of the model matches queries.
    """
    cost_faults = None
    for module in model.modules():
        if isinstance(getattr(module, 'assigner', None), HungarianAssigner) and hasattr(module, 'loss_by_feat'):
            cost_faults = cost_faults or CostFaults()
            _Watch(module, cost_faults)
    return cost_faults


class _Watch:
    """Takes the place of two functions of one head: ``assigner.assign`` and ``loss_by_feat``."""

    def __init__(self, head: Any, cost_faults: CostFaults) -> None:
        self._cost_faults = head.cost_faults = cost_faults
        self._assign, head.assigner.assign = head.assigner.assign, self.assign
        self._loss_by_feat, head.loss_by_feat = head.loss_by_feat, self.loss_by_feat
        self._usable = True

    def assign(self, pred_instances: InstanceData, gt_instances: InstanceData, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._assign(pred_instances, gt_instances, *args, **kwargs)
        except ValueError as error:
            if not self._cost_faults.tolerates:
                raise
            fault = f'matching cost is not finite: {error}'
            self._cost_faults.judge(False, lambda: fault)
            self._usable = False
        # Any pairs will do, because the losses become NaN.
        zeros = InstanceData(**{name: torch.zeros_like(value) for name, value in pred_instances.items()})
        return self._assign(zeros, gt_instances, *args, **kwargs)

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> Dict[str, torch.Tensor]:
        self._usable = True
        losses = self._loss_by_feat(*args, **kwargs)
        return losses if self._usable else {name: loss * math.nan for name, loss in losses.items()}
