"""Queries that decide whether a fast path is allowed, and how one is called."""

from contextlib import contextmanager
from typing import Callable, Iterator

import torch
from torch import nn


def autocasts(device_type: str) -> bool:
    """Return whether autocast is on for a kind of device, also in torch 2.1."""
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # before torch 2.4
        if device_type == 'cpu':
            return torch.is_autocast_cpu_enabled()
        module = torch if device_type == 'cuda' else getattr(torch, device_type)
        return module.is_autocast_enabled()


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


def as_operator(name: str) -> Callable:
    """Make a function an operator ``recipe::name``, so that torch.compile does not trace it."""
    if hasattr(torch.library, 'custom_op'):  # since torch 2.4
        return torch.library.custom_op(f'recipe::{name}', mutates_args=())
    return torch._dynamo.disable
