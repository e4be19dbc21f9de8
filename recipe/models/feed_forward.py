"""Two linear layers with an activation between them, as one function.

Autograd keeps three tensors of a feed-forward network: the input and both
sides of the activation, and with a norm in front a fourth. One of them is
enough: the others are cheap to compute again, while memory and the number of
operators bound a step on every device.
"""

from typing import Optional, Tuple

import torch
from mmcv.cnn.bricks.wrappers import Linear
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from recipe.models.execution import autocasts, is_compiling, is_plain
from recipe.models.kept_samples import KeptSamples, add_gradient, add_product, as_rows, product_backward


def feed_forward(layers: nn.Sequential, x: Tensor, norm: Optional[nn.Module] = None) -> Tensor:
    """Run the layers of an :class:`FFN`, with a norm before them if given.

    Where they are two linear layers around a ReLU or GELU that drop nothing,
    and nobody listens to them, the backward pass computes the activation and
    the norm again. There is then no second derivative. Under autocast and
    torch.compile, and without gradients, the modules run one by one.

    Args:
        layers (nn.Sequential): ``FFN.layers``.
        x (Tensor): Shape (..., C).
        norm (nn.Module, optional): Applied to ``x`` first. Defaults to None.

    Returns:
        Tensor: Shape (..., C).
    """
    parts = _fitting_layers(layers, x, norm)
    if parts is None:
        return layers(x if norm is None else norm(x))
    return _apply(parts, x, norm, None)


def add_feed_forward(
    layers: nn.Sequential, x: Tensor, norm: Optional[nn.Module], kept: KeptSamples
) -> Optional[Tensor]:
    """Add what :func:`feed_forward` returns to x, for some samples.

    Args:
        layers (nn.Sequential): ``FFN.layers``.
        x (Tensor): Shape (B, ..., C).
        norm (nn.Module, optional): Applied to ``x`` first.
        kept (KeptSamples): Which samples, and by which factor.

    Returns:
        Tensor | None: Shape of ``x``; None where the layers have to run one
        by one.
    """
    parts = _fitting_layers(layers, x, norm)
    return None if parts is None else _apply(parts, x, norm, kept)


def _fitting_layers(
    layers: nn.Sequential, x: Tensor, norm: Optional[nn.Module]
) -> Optional[Tuple[nn.Linear, nn.Linear, bool]]:
    """``_two_layers`` where they may run as one function."""
    parts = _two_layers(layers)
    if (
        parts is None
        or not torch.is_grad_enabled()
        or is_compiling()
        or autocasts(x.device.type)
        or not (norm is None or is_layer_norm(norm, x))
        or x.dtype != parts[0].weight.dtype
    ):
        return None
    return parts


def _apply(
    parts: Tuple[nn.Linear, nn.Linear, bool], x: Tensor, norm: Optional[nn.Module], kept: Optional[KeptSamples]
) -> Tensor:
    first, second, is_gelu = parts
    return _FeedForward.apply(
        x,
        first.weight,
        first.bias,
        second.weight,
        second.bias,
        is_gelu,
        kept,
        *((None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)),
    )


def _two_layers(layers: nn.Sequential) -> Optional[Tuple[nn.Linear, nn.Linear, bool]]:
    """Return both linear layers and whether GELU is between, if they fit."""
    if len(layers) != 3 or not isinstance(layers[0], nn.Sequential) or len(layers[0]) != 3:
        return None
    (first, activation, dropout), second, last_dropout = layers
    modules = (layers, layers[0], *layers[0], second, last_dropout)
    linear = (nn.Linear, Linear)
    is_gelu = type(activation) is nn.GELU and activation.approximate == 'none'
    drops = any(type(drop) is not nn.Dropout or (drop.training and drop.p > 0) for drop in (dropout, last_dropout))
    if (
        drops
        or type(first) not in linear
        or type(second) not in linear
        or first.bias is None
        or second.bias is None
        or not (is_gelu or type(activation) is nn.ReLU)
        or not all(map(is_plain, modules))
    ):
        return None
    return first, second, is_gelu


def is_layer_norm(norm: nn.Module, x: Tensor) -> bool:
    """Say whether a norm is a LayerNorm over the last axis, with weights."""
    return (
        type(norm) is nn.LayerNorm
        and norm.weight is not None
        and norm.bias is not None
        and norm.normalized_shape == x.shape[-1:]
        and is_plain(norm)
    )


class _FeedForward(Function):
    """(..., C) -> (..., C); no second derivative."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        is_gelu: bool,
        kept: Optional[KeptSamples],
        norm_weight: Optional[Tensor],
        norm_bias: Optional[Tensor],
        eps: float,
    ) -> Tensor:
        """Compute act(norm(x) W1^T + b1) W2^T + b2, added to x if kept."""
        ctx.is_gelu, ctx.kept, ctx.eps = is_gelu, kept, eps
        mean = rstd = None
        rows = as_rows(x) if kept is None else kept.rows(x)
        inner = rows
        if norm_weight is not None:
            inner, mean, rstd = torch.native_layer_norm(rows, rows.shape[-1:], norm_weight, norm_bias, eps)
        hidden = torch.addmm(bias1, inner, weight1.t())
        # The gradient of ReLU needs its result alone.
        active = torch.nn.functional.gelu(hidden) if is_gelu else hidden.relu_()
        out = add_product(x, bias2, active, weight2, kept)
        ctx.save_for_backward(rows, hidden, weight1, weight2, mean, rstd, norm_weight, norm_bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        """Gradients of the input and all parameters."""
        (rows, hidden, weight1, weight2, mean, rstd, norm_weight, norm_bias) = ctx.saved_tensors
        above = grad
        active = torch.nn.functional.gelu(hidden) if ctx.is_gelu else hidden
        grad, grad_weight2, grad_bias2 = product_backward(above, active, weight2, ctx.kept)
        grad = (
            torch.ops.aten.gelu_backward(grad, hidden)
            if ctx.is_gelu
            else torch.ops.aten.threshold_backward(grad, hidden, 0)
        )
        grad_bias1 = grad.sum(0)
        inner = rows
        if norm_weight is not None:
            inner = torch.native_layer_norm(rows, rows.shape[-1:], norm_weight, norm_bias, ctx.eps)[0]
        grad_weight1 = grad.t() @ inner
        grad = grad @ weight1
        grad_norm_weight = grad_norm_bias = None
        if norm_weight is not None:
            grad, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
                grad, rows, rows.shape[-1:], mean, rstd, norm_weight, norm_bias, [True, True, True]
            )
        grad = add_gradient(above, grad, ctx.kept)
        return (
            grad,
            grad_weight1,
            grad_bias1,
            grad_weight2,
            grad_bias2,
            None,
            None,
            grad_norm_weight,
            grad_norm_bias,
            None,
        )
