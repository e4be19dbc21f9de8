import copy
from typing import Any, ContextManager

import torch
from mmengine.optim import OptimWrapper
from torch.nn.parallel import DistributedDataParallel


class _BackwardOnly:
    """Stands in for an optimizer wrapper that changes no parameter."""

    def __init__(self, optim_wrapper: OptimWrapper) -> None:
        self._optim_wrapper = optim_wrapper

    def optim_context(self, model: torch.nn.Module) -> ContextManager:
        return self._optim_wrapper.optim_context(model)

    def update_params(self, loss: torch.Tensor, **kwargs: Any) -> None:
        loss.backward()


def settle_gradient_buckets(model: torch.nn.Module, optim_wrapper: OptimWrapper, data_batch: Any) -> None:
    """Give DDP the order of gradients that it has after its first iteration.

    DDP first lays out the gradients by the order of the parameters, and from
    the second iteration on by the order in which the first backward pass
    brought them. Where a gradient lies decides in which order the values of
    three or more ranks are added up, and thus their rounding. A resumed run
    passes through its first batch once without an update, and so adds up as
    the run did that was stopped.

    Args:
        model (nn.Module): The model; nothing is done unless it is wrapped for
            distributed training.
        optim_wrapper (OptimWrapper): Its optimizer, which stays as it is.
        data_batch (Any): The batch, which stays as it is.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    buffers = [buffer.clone() for buffer in model.buffers()]
    model.train_step(copy.deepcopy(data_batch), _BackwardOnly(optim_wrapper))
    optim_wrapper.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), buffers):
            buffer.copy_(value)
