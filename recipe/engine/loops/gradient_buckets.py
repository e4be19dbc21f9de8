"""Gives a resumed run the order in which DDP sums gradients after its first iteration."""

import copy
from contextlib import nullcontext
from typing import Any, ContextManager

import torch
from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapper
from torch.nn.parallel import DistributedDataParallel

from recipe.models.cost_faults import cost_faults_of


class _BackwardOnly:
    """Stands in for an optimizer wrapper; runs backward and changes no parameter."""

    def __init__(self, optim_wrapper: OptimWrapper) -> None:
        self._optim_wrapper = optim_wrapper

    def optim_context(self, model: torch.nn.Module) -> ContextManager:
        return self._optim_wrapper.optim_context(model)

    def update_params(self, loss: torch.Tensor, **kwargs: Any) -> None:
        loss.backward()


def settle_gradient_buckets(model: torch.nn.Module, optim_wrapper: OptimWrapper, data_batch: Any) -> None:
    """Give DDP the gradient order that it has after its first iteration.

    In the first iteration DDP lays out the gradients in the order of the parameters. From the second iteration on it
    uses the order in which the first backward pass computed them. With three or more ranks this layout decides the
    order of the sum over ranks, and so its rounding. A resumed run passes its first batch through the model once
    without an update, so that it sums in the same order as the stopped run.

    Only CPUs need it, because sums on other devices are not reproducible bit by bit. The sum of two ranks does not
    depend on the order.

    A loss or gradient that is not finite is ignored here. It occurs again in the iteration that follows, and
    NonFiniteGuardHook handles it there.

    Args:
        model: The model. Nothing is done unless it is wrapped for distributed training on CPUs with three or more
            ranks.
        optim_wrapper: Its optimizer wrapper; not changed.
        data_batch: The batch; not changed.
    """
    on_cpu = next(model.parameters()).device.type == 'cpu'
    if not isinstance(model, DistributedDataParallel) or get_world_size() < 3 or not on_cpu:
        return
    buffers = [buffer.clone() for buffer in model.buffers()]
    faults = cost_faults_of(model)
    with faults.tolerated() if faults else nullcontext():
        model.train_step(copy.deepcopy(data_batch), _BackwardOnly(optim_wrapper))
    optim_wrapper.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), buffers):
            buffer.copy_(value)
