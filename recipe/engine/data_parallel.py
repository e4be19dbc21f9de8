"""Averages gradients over the ranks, with one operator a bucket where DDP needs one a parameter."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, Iterator, List, Set

import torch
from mmengine.dist import all_gather_object
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import Variable

# Of DDP: a smaller first bucket lets communication begin earlier.
FIRST_BUCKET_BYTES, BUCKET_BYTES = 1024**2, 25 * 1024**2


@dataclass
class _Bucket:
    """Gradients that are summed over the ranks together.

    Attributes:
        params: Parameters of one dtype.
        flat: Their gradients one after the other, 1-D.
        places: The gradient of each parameter, a view of ``flat`` in its shape.
        missing: Parameters that the current backward pass has not reached yet.
    """

    params: List[nn.Parameter]
    flat: Tensor
    places: List[Tensor]
    missing: Set[nn.Parameter] = field(default_factory=set)


@MODEL_WRAPPERS.register_module()
class BucketedDataParallel(nn.Module):
    """Trains copies of a model on several ranks, with the average of their gradients.

    It does what ``MMDistributedDataParallel`` does with ``gradient_as_bucket_view=True`` and
    ``broadcast_buffers=False``, with two differences:

    - DDP copies each gradient into its bucket by an operator of its own. Here one operator copies all gradients of a
      bucket: a Swin-B Mask2Former has 625 of them in 16 buckets.
    - DDP lays out the buckets anew after its first iteration, which changes the rounding of sums over three and more
      ranks. Here the layout is that of the parameters, so a resumed run sums as one that was never stopped.

    As in DDP a bucket is summed while the backward pass computes the next ones, and the gradients of the parameters
    are views of the buckets after it. A parameter that takes part without getting a gradient gets zeros.

    Args:
        module: The model, on its device. All ranks get the weights and buffers of rank 0.

    Raises:
        RuntimeError: The ranks have different parameters. Or, in a forward pass: parameters took no part in the loss
            before it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module
        self._world_size = dist.get_world_size()
        # NCCL is asked for averages; gloo only sums.
        self._has_average = dist.get_backend() == 'nccl'
        self._names = {param: name for name, param in module.named_parameters() if param.requires_grad}
        self._require_equal_parameters()
        for value in (*module.parameters(), *module.buffers()):
            dist.broadcast(value.detach(), 0)
        self._buckets: List[_Bucket] = []
        self._nodes: List[Any] = []  # autograd forgets a node, and its hooks, if nothing refers to it
        self._syncs = True  # of forward passes from now on
        self._expects = False  # a backward pass whose gradients are averaged
        self._next = 0  # bucket to be averaged next
        self._works: List[Any] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        if torch.is_grad_enabled():
            if not self._buckets:
                self._lay_out()
            if self._expects and any(len(bucket.missing) < len(bucket.params) for bucket in self._buckets):
                names = [self._names[param] for bucket in self._buckets for param in bucket.missing]
                raise RuntimeError(
                    f'{len(names)} parameters took no part in the last loss, {names[0]} among them; '
                    'find_unused_parameters=True in the config allows this'
                )
            self._expects, self._next, self._works = self._syncs, 0, []
            for bucket in self._buckets:
                bucket.missing = set(bucket.params)
        return self.module(*args, **kwargs)

    def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Tensor]:
        """Take a step, as ``MMDistributedDataParallel.train_step``."""
        with optim_wrapper.optim_context(self):
            data = self.module.data_preprocessor(data, training=True)
            losses = self(**data, mode='loss') if isinstance(data, dict) else self(*data, mode='loss')
        loss, scalars = self.module.parse_losses(losses)
        optim_wrapper.update_params(loss)
        return scalars

    def val_step(self, data: Any) -> list:
        """Predict, on each rank by itself."""
        return self.module.val_step(data)

    def test_step(self, data: Any) -> list:
        """Predict, on each rank by itself."""
        return self.module.test_step(data)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Context of forward passes whose gradients stay on their rank and are added to those before."""
        before, self._syncs = self._syncs, False
        try:
            yield
        finally:
            self._syncs = before

    def _require_equal_parameters(self) -> None:
        own = {(name, tuple(param.shape), str(param.dtype)) for param, name in self._names.items()}
        first, *others = all_gather_object(own)
        for rank, theirs in enumerate(others, 1):
            if theirs != first:
                raise RuntimeError(f'rank {rank} trains other parameters than rank 0: {sorted(theirs ^ first)[0]}')

    def _lay_out(self) -> None:
        """Make the buckets. An evaluation needs none; a CUDA graph needs nodes of autograd made on its stream."""
        self._buckets = _buckets_of(list(self._names))
        for bucket in self._buckets:
            for param in bucket.params:
                view: Any = param.expand_as(param)
                node = view.grad_fn.next_functions[0][0]  # which adds to the gradient
                node.register_hook(partial(self._note, bucket, param))
                self._nodes.append(node)

    def _note(self, bucket: _Bucket, param: nn.Parameter, *_: Any) -> None:
        """Note that the gradient of a parameter is computed, and average the buckets that are complete."""
        if not self._expects:
            return
        bucket.missing.discard(param)
        # All ranks average the buckets in one order, whichever gradients they compute first.
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._average(self._buckets[self._next])
            self._next += 1
            if self._next == len(self._buckets):
                Variable._execution_engine.queue_callback(self._finish)

    @torch.no_grad()
    def _average(self, bucket: _Bucket) -> None:
        """Move the gradients of a bucket there, and begin to average them."""
        grads = [param.grad for param in bucket.params]
        moved = [(place, grad) for place, grad in zip(bucket.places, grads) if grad is not place]
        if len(moved) == len(grads):
            parts = [torch.zeros_like(place) if grad is None else grad for place, grad in moved]
            torch.cat([part.reshape(-1) for part in parts], out=bucket.flat)
        else:  # gradients were set to zero, not to None
            for place, grad in moved:
                place.zero_() if grad is None else place.copy_(grad)
        for param, place in zip(bucket.params, bucket.places):
            param.grad = place
        if self._world_size == 1:
            return
        if not self._has_average:
            bucket.flat.mul_(1 / self._world_size)
        operation = dist.ReduceOp.AVG if self._has_average else dist.ReduceOp.SUM
        self._works.append(dist.all_reduce(bucket.flat, operation, async_op=True))

    def _finish(self) -> None:
        """Wait for the sums at the end of the backward pass."""
        for work in self._works:
            work.wait()
        self._expects = False


def _buckets_of(params: List[nn.Parameter]) -> List[_Bucket]:
    """Lay out gradients in the order in which a backward pass computes most of them, the reverse of the parameters'."""
    groups: List[List[nn.Parameter]] = []
    size, limit = 0, FIRST_BUCKET_BYTES
    for param in reversed(params):
        if not groups or size >= limit or groups[-1][0].dtype != param.dtype:
            limit = BUCKET_BYTES if groups else FIRST_BUCKET_BYTES
            groups.append([])
            size = 0
        groups[-1].append(param)
        size += param.numel() * param.element_size()
    buckets = []
    for group in groups:
        flat = torch.empty(sum(param.numel() for param in group), dtype=group[0].dtype, device=group[0].device)
        parts = flat.split([param.numel() for param in group])
        buckets.append(_Bucket(group, flat, [part.view(param.shape) for part, param in zip(parts, group)]))
    return buckets
