"""Under what a module runs: whoever has a faster way must know."""

import torch
from torch import nn


def autocasts(device_type: str) -> bool:
    """Say whether autocast is on for a kind of device, in torch 2.1 too."""
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # before torch 2.4
        if device_type == 'cpu':
            return torch.is_autocast_cpu_enabled()
        module = torch if device_type == 'cuda' else getattr(torch, device_type)
        return module.is_autocast_enabled()


def is_compiling() -> bool:
    """Say whether torch.compile is tracing, in torch 2.1 as well."""
    module = torch.compiler if hasattr(torch.compiler, 'is_compiling') else torch._dynamo
    return module.is_compiling()


def is_plain(module: nn.Module) -> bool:
    """Say whether nobody hooked into the forward pass of a module."""
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
