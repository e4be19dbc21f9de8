"""Two linear layers with an activation between them, as one function.

For a feed-forward network autograd keeps the input and both sides of the activation, and one more tensor if there is a
norm before it. This function keeps the input and one side of the activation. The others are cheap to compute again,
while memory and the number of operators limit a step on every device.
"""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmcv.cnn.bricks.wrappers import Linear
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from recipe.models.execution import autocast_dtype, device_kind, is_compiling, is_plain
from recipe.models.half_parameters import in_dtype
from recipe.models.onednn_linear import onednn_linear, takes_onednn


class FastFFN(FFN):
    """mmcv's feed-forward network; runs its layers with :func:`feed_forward`."""

    def forward(self, x: Tensor, identity: Optional[Tensor] = None) -> Tensor:
        """Compute the same as :meth:`FFN.forward`.

        Args:
            x: Shape (..., C).
            identity: Added to the result, of the same shape. Default: ``x``.

        Returns:
            Shape (..., C).
        """
        out = self.gamma2(feed_forward(self.layers, x))
        if not self.add_identity:
            return self.dropout_layer(out)
        return (x if identity is None else identity) + self.dropout_layer(out)


def feed_forward(layers: nn.Sequential, x: Tensor, norm: Optional[nn.Module] = None) -> Tensor:
    """Run the layers of an :class:`FFN`, after a norm if one is given.

    Two linear layers with a ReLU or GELU between them run as one function if nothing is dropped and there are no hooks.
    Its backward pass computes the activation and the norm again. It has no second derivative. Without gradients
    oneDNN's layers run in eval mode on a CPU, and else the modules one by one, as they do under torch.compile, and
    under autocast on a CPU.

    Args:
        layers: ``FFN.layers``.
        x: Shape (..., C).
        norm: Applied to ``x`` first.

    Returns:
        Shape (..., C).
    """
    parts = two_layers(layers)
    half = autocast_dtype(x.device.type)
    if (
        parts is None
        or is_compiling()
        or (half is not None and device_kind(x.device) == 'cpu')
        or not (norm is None or is_layer_norm(norm, x))
        or x.dtype != parts[0].weight.dtype
        or not (torch.is_grad_enabled() or takes_onednn(x, layers.training))
    ):
        return layers(x if norm is None else norm(x))
    first, second, is_gelu = parts
    if not torch.is_grad_enabled():
        hidden = onednn_linear(x if norm is None else norm(x), first.weight, first.bias, 'none' if is_gelu else 'relu')
        if is_gelu:  # without AVX-512 the operator's own GELU takes twice as long
            torch.ops.aten.gelu_(hidden)
        return onednn_linear(hidden, second.weight, second.bias)
    of_norm = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
    weights = (in_dtype(one, half or x.dtype) for one in (first.weight, first.bias, second.weight, second.bias))
    return _FeedForward.apply(x, *weights, is_gelu, *of_norm)


def two_layers(layers: nn.Sequential) -> Optional[Tuple[nn.Linear, nn.Linear, bool]]:
    """Return both linear layers and whether the activation is GELU; None if the layers are of other kinds."""
    if len(layers) != 3 or not isinstance(layers[0], nn.Sequential) or len(layers[0]) != 3:
        return None
    inner: Any = layers[0]
    first, activation, dropout = inner
    second: Any = layers[1]
    last_dropout = layers[2]
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
    """Return whether a norm is a LayerNorm with weights over the last axis of x."""
    return (
        type(norm) is nn.LayerNorm
        and norm.weight is not None
        and norm.bias is not None
        and norm.normalized_shape == x.shape[-1:]
        and is_plain(norm)
    )


def _as_rows(x: Tensor) -> Tensor:
    """Return (..., C) as (N, C). A matrix is returned itself, without a view."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _in_shape(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return (N, C) as (..., C), the inverse of ``_as_rows``."""
    return rows if len(shape) == 2 else rows.view(shape)


class _FeedForward(Function):
    """Two linear layers and their activation, after a norm if given, (..., C) -> (..., C); no second derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        is_gelu: bool,
        norm_weight: Optional[Tensor],
        norm_bias: Optional[Tensor],
        eps: float,
    ) -> Tensor:
        """Compute act(norm(x) W1^T + b1) W2^T + b2 in the dtype of the weights."""
        ctx.is_gelu, ctx.eps, ctx.dtype = is_gelu, eps, x.dtype
        mean = rstd = None
        rows = _as_rows(x)
        if norm_weight is None:
            rows = rows.to(weight1.dtype)
        inner = rows
        if norm_weight is not None:
            inner, mean, rstd = torch.native_layer_norm(rows, rows.shape[-1:], norm_weight, norm_bias, eps)
            inner = inner.to(weight1.dtype)
        # The gradient of ReLU needs only its result, so the input can be overwritten. On CUDA the product applies it.
        if not is_gelu and device_kind(x.device) == 'cuda':
            hidden = active = torch.ops.aten._addmm_activation(bias1, inner, weight1.t())
        else:
            hidden = torch.addmm(bias1, inner, weight1.t())
            active = F.gelu(hidden) if is_gelu else hidden.relu_()
        out = torch.addmm(bias2, active, weight2.t())
        ctx.save_for_backward(rows, hidden, weight1, weight2, mean, rstd, norm_weight, norm_bias)
        return _in_shape(out, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        """Return the gradients of the input and of all parameters."""
        rows, hidden, weight1, weight2, mean, rstd, norm_weight, norm_bias = ctx.saved_tensors
        shape = grad.shape
        grad = _as_rows(grad).to(weight1.dtype)
        active = F.gelu(hidden) if ctx.is_gelu else hidden
        grad_weight2, grad_bias2 = grad.t() @ active, grad.sum(0)
        grad = grad @ weight2
        if ctx.is_gelu:
            grad = torch.ops.aten.gelu_backward(grad, hidden)
        else:
            grad = torch.ops.aten.threshold_backward(grad, hidden, 0)
        grad_bias1 = grad.sum(0)
        inner = rows
        if norm_weight is not None:
            inner = torch.native_layer_norm(rows, rows.shape[-1:], norm_weight, norm_bias, ctx.eps)[0]
            inner = inner.to(weight1.dtype)
        grad_weight1 = grad.t() @ inner
        grad = (grad @ weight1).to(ctx.dtype)
        grad_norm_weight = grad_norm_bias = None
        if norm_weight is not None:
            grad, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
                grad, rows, rows.shape[-1:], mean, rstd, norm_weight, norm_bias, [True, True, True]
            )
        return (
            _in_shape(grad, shape),
            grad_weight1,
            grad_bias1,
            grad_weight2,
            grad_bias2,
            None,
            grad_norm_weight,
            grad_norm_bias,
            None,
        )
