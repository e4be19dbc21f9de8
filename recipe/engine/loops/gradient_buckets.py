import copy
from contextlib import contextmanager
from typing import Any, ContextManager, Iterator

import torch
from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapper
from torch.nn.parallel import DistributedDataParallel

try:
    from mmdet.models.dense_heads.host_read import HOST_READ
except ModuleNotFoundError:
    HOST_READ = None


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

    That is done on CPUs only: no other device gives the same sum bit by bit
    each time. Of two ranks the sum does not depend on the order.

    A batch that leads to a loss or gradient that is not finite does so again
    in the iteration that follows, where NonFiniteGuardHook deals with it.

    Args:
        model (nn.Module): The model; nothing is done unless it is wrapped for
            distributed training, on CPUs, with three or more ranks.
        optim_wrapper (OptimWrapper): Its optimizer, which stays as it is.
        data_batch (Any): The batch, which stays as it is.
    """
    if (
        not isinstance(model, DistributedDataParallel)
        or get_world_size() < 3
        or next(model.parameters()).device.type != 'cpu'
    ):
        return
    buffers = [buffer.clone() for buffer in model.buffers()]
    with _bad_costs_ignored():
        model.train_step(copy.deepcopy(data_batch), _BackwardOnly(optim_wrapper))
    optim_wrapper.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), buffers):
            buffer.copy_(value)


@contextmanager
def _bad_costs_ignored() -> Iterator[None]:
    """Have the matching go on where its costs are not finite."""
    if HOST_READ is None:
        yield
        return
    before, HOST_READ.on_bad_costs = HOST_READ.on_bad_costs, lambda fault: None
    try:
        yield
    finally:
        HOST_READ.on_bad_costs = before
