"""Casts the parameters of a part of a model for autocast, all at once.

Autocast casts one parameter at a time, and so do the backward passes of the casts: two kernels for each parameter. Here
one foreach operator casts a group of parameters, and one casts their gradients.
"""

import threading
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from recipe.models.execution import autocast_dtype, device_kind, is_compiling

# The casts of the current forward pass, by the id of the parameter.
_cast = threading.local()


class _CastAll(Function):
    """Casts tensors to a dtype, and their gradients back; the values are those of single casts."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> Tuple[Tensor, ...]:
        ctx.dtypes = [one.dtype for one in parameters]
        return tuple(_copies(parameters, [dtype] * len(parameters)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
        given = [number for number, grad in enumerate(grads) if grad is not None]
        copies = iter(_copies([grads[number] for number in given], [ctx.dtypes[number] for number in given]))
        return (None, *(None if grad is None else next(copies) for grad in grads))


def _copies(tensors: Sequence[Any], dtypes: Sequence[torch.dtype]) -> List[Tensor]:
    copies = [torch.empty(x.shape, dtype=dtype, device=x.device) for x, dtype in zip(tensors, dtypes)]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


@contextmanager
def parameters_cast(groups: Iterable[Sequence[nn.Parameter]], dtype: Optional[torch.dtype]) -> Iterator[None]:
    """Context in which :func:`in_dtype` has the casts of these parameters.

    Args:
        groups: Each is cast by one operator. DDP sums the gradients of a group over the ranks when all are computed, so
            a group should not reach across the whole model.
        dtype: Half type; None makes no casts.
    """
    before: Dict[int, Tensor] = getattr(_cast, 'by_id', {})
    made = dict(before)
    for group in groups if dtype is not None else ():
        made.update(zip(map(id, group), _CastAll.apply(dtype, *group)))
    _cast.by_id = made
    try:
        yield
    finally:
        _cast.by_id = before


def half_type(device: torch.device) -> Optional[torch.dtype]:
    """Return the half type in which the functions for accelerators compute products in training; None if in none."""
    if device_kind(device) == 'cpu' or is_compiling() or not torch.is_grad_enabled():
        return None
    return autocast_dtype(device.type)


def in_dtype(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a parameter in a dtype: the cast of :func:`parameters_cast`, or one of its own."""
    if parameter.dtype == dtype:
        return parameter
    cast = getattr(_cast, 'by_id', {}).get(id(parameter))
    return parameter.to(dtype) if cast is None or cast.dtype != dtype else cast


def linear_parameters(module: nn.Module) -> List[nn.Parameter]:
    """Return weights and biases of the linear layers of a module."""
    layers: Any = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    return [one for layer in layers for one in (layer.weight, layer.bias) if one is not None]
