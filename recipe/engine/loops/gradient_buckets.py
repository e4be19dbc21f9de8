"""The order in which DDP adds up gradients, which a resumed run has to take over."""

import copy
from contextlib import contextmanager
from typing import Any, ContextManager, Iterator

import torch
from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapper
from torch.nn.parallel import DistributedDataParallel

from recipe.engine.host_read import host_read_of


class _BackwardOnly:
    """Takes the place of an optimizer wrapper, and changes no parameter."""

    def __init__(self, optim_wrapper: OptimWrapper) -> None:
        self._optim_wrapper = optim_wrapper

    def optim_context(self, model: torch.nn.Module) -> ContextManager:
        return self._optim_wrapper.optim_context(model)

    def update_params(self, loss: torch.Tensor, **kwargs: Any) -> None:
        loss.backward()


def settle_gradient_buckets(model: torch.nn.Module, optim_wrapper: OptimWrapper, data_batch: Any) -> None:
    """Give DDP the order of gradients that it has after its first iteration.

    DDP first lays out the gradients by the order of the parameters, and from the second iteration on by the order in
    which the first backward pass brought them. This layout decides in which order the values of three or more ranks are
    added up, and so their rounding. A resumed run passes through its first batch once without an update, so that it
    adds up as the stopped run did.

    Only CPUs need it: no other device gives the same sum bit by bit each time. The sum of two ranks does not depend on
    the order.

    A batch with a loss or gradient that is not finite gives the same again in the iteration that follows, where
    NonFiniteGuardHook handles it.

    Args:
        model: The model; nothing is done unless it is wrapped for distributed training, on CPUs, with three or more
            ranks.
        optim_wrapper: Its optimizer wrapper, which stays as it is.
        data_batch: The batch, which stays as it is.
    """
    on_cpu = next(model.parameters()).device.type == 'cpu'
    if not isinstance(model, DistributedDataParallel) or get_world_size() < 3 or not on_cpu:
        return
    buffers = [buffer.clone() for buffer in model.buffers()]
    with _bad_costs_ignored(model):
        model.train_step(copy.deepcopy(data_batch), _BackwardOnly(optim_wrapper))
    optim_wrapper.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), buffers):
            buffer.copy_(value)


@contextmanager
def _bad_costs_ignored(model: torch.nn.Module) -> Iterator[None]:
    """Have the matching go on if its costs are not finite."""
    host_read = host_read_of(model)
    if host_read is None:
        yield
        return
    before, host_read.on_bad_costs = host_read.on_bad_costs, lambda fault: None
    try:
        yield
    finally:
        host_read.on_bad_costs = before
