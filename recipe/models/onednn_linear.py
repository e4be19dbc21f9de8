"""Linear layers by oneDNN, without gradients. On an AMD processor with AVX-512 they beat oneMKL's by a fifth."""

import platform
from typing import Optional

import torch
from torch import Tensor, nn

from recipe.models.execution import autocasts, is_compiling, is_plain


def takes_onednn(x: Tensor, training: bool) -> bool:
    """Return whether :func:`onednn_linear` takes a tensor of a module: on an x86-64 processor, without gradients.

    A training whose activations are computed twice needs the same numbers with and without gradients. So it must not
    take it.

    Args:
        x: The tensor.
        training: Whether the module is in training mode.
    """
    return not (training or torch.is_grad_enabled() or is_compiling() or autocasts('cpu')) and (
        x.device.type == 'cpu'
        and x.dtype == torch.float32
        and platform.machine() == 'x86_64'
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, '_linear_pointwise')
    )


def onednn_linear(x: Tensor, weight: Tensor, bias: Optional[Tensor], activation: str = 'none') -> Tensor:
    """Compute x W^T + b and an activation. This is the operator that torch.compile uses on a CPU.

    Args:
        x: (..., C), float32.
        weight: (C', C).
        bias: (C', ).
        activation: ``none`` or ``relu``.

    Returns:
        (..., C').
    """
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], '')
    return out


def run_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Run a linear layer, by oneDNN if it takes the tensor: (..., C) -> (..., C')."""
    if type(layer) is nn.Linear and is_plain(layer) and takes_onednn(x, layer.training):
        return onednn_linear(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out
