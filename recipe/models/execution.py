"""Queries that decide whether a fast path is allowed, and how one is called."""

import threading
from contextlib import contextmanager
from typing import Callable, Iterator, Optional

import torch
from torch import Tensor, nn

# The kind of device whose path tensors on ``meta`` take.
_meta = threading.local()


def device_kind(device: torch.device) -> str:
    """Return the type of a device. For ``meta`` it is the one that :func:`meta_stands_for` names, if any."""
    return getattr(_meta, 'kind', device.type) if device.type == 'meta' else device.type


@contextmanager
def meta_stands_for(kind: str) -> Iterator[None]:
    """Context in which models on ``meta`` take the path of a kind of device, ``cuda`` or ``npu``.

    A step on ``meta`` computes nothing. It shows which operators an accelerator would run.
    """
    before = dict(_meta.__dict__)
    _meta.kind = kind
    try:
        yield
    finally:
        _meta.__dict__.clear()
        _meta.__dict__.update(before)


def autocasts(device_type: str) -> bool:
    """Return whether autocast is on for a kind of device, also in torch 2.1."""
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # before torch 2.4
        if device_type == 'cpu':
            return torch.is_autocast_cpu_enabled()
        module = torch if device_type == 'cuda' else getattr(torch, device_type)
        return module.is_autocast_enabled()


def autocast_dtype(device_type: str) -> Optional[torch.dtype]:
    """Return the half type of autocast for a kind of device, also in torch 2.1; None if autocast is off."""
    if not autocasts(device_type):
        return None
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(device_type)
    if device_type == 'cpu':
        return torch.get_autocast_cpu_dtype()
    return torch.get_autocast_gpu_dtype() if device_type == 'cuda' else getattr(torch, device_type).get_autocast_dtype()


def is_compiling() -> bool:
    """Return whether torch.compile is tracing, also in torch 2.1."""
    module = torch.compiler if hasattr(torch.compiler, 'is_compiling') else torch._dynamo
    return module.is_compiling()


def is_plain(module: nn.Module) -> bool:
    """Return whether a module has no hooks of its own, so that its parts may be called without it."""
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


@contextmanager
def kept_constants() -> Iterator[None]:
    """Context in which tensors are made that are kept between calls.

    They have no gradient. Inference mode is off, because tensors made in it cannot be used in training.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device. The host goes on meanwhile, which takes pinned memory."""
    if device.type not in ('cpu', 'meta'):
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def as_operator(name: str) -> Callable:
    """Make a function an operator ``recipe::name``, so that torch.compile does not trace it."""
    if hasattr(torch.library, 'custom_op'):  # since torch 2.4
        return torch.library.custom_op(f'recipe::{name}', mutates_args=())
    return torch._dynamo.disable
