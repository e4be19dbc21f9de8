"""Swin's window attention, from the qkv of the tokens to the output of the attention.

The qkv projection runs before the padding, and the output projection after the crop. So the projections do not work on
padding. A padding token is zero, so its qkv is the bias of the projection.
"""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from recipe.models.execution import device_kind
from recipe.models.window_maps import WindowMaps, window_maps


def window_attention(
    qkv: Tensor,
    qkv_bias: Optional[Tensor],
    position_bias: Tensor,
    hw_shape: Tuple[int, int],
    window_size: int,
    shift_size: int,
    scale: float,
) -> Tensor:
    """Compute softmax(scale * q k^T + position bias + shift mask) v in each window.

    Swin Transformer (arXiv:2103.14030), equation 4, with the shifted windows of section 3.2. An NPU runs the operators
    of upstream; other devices run ``scaled_dot_product_attention``. A CPU uses this function only if
    :class:`CPUWindowMSA` does not fit.

    Args:
        qkv: Projected tokens, shape (B, H*W, 3 * C); the last axis holds q, k and v, each as (num_heads, C //
            num_heads).
        qkv_bias: Bias of that projection, shape (3 * C, ).
        position_bias: Shape (num_heads, N, N), where N is ``window_size ** 2``.
        hw_shape: H and W.
        window_size: Height and width of a window.
        shift_size: Cyclic shift of the windows.
        scale: Scale of q k^T.

    Returns:
        Shape (B, H*W, C), dtype of ``qkv`` or of autocast.
    """
    hw_shape = (int(hw_shape[0]), int(hw_shape[1]))
    maps = window_maps(hw_shape, window_size, shift_size, qkv.device)
    B, _, C3 = qkv.shape
    num_heads, N = position_bias.shape[:2]
    windows = _to_windows(qkv, qkv_bias, maps)
    # (3, B * nW, num_heads, N, head_dim)
    q, k, v = windows.view(B * len(maps.to_windows), N, 3, num_heads, C3 // 3 // num_heads).permute(2, 0, 3, 1, 4)
    bias = position_bias.unsqueeze(0)
    if maps.mask is not None:
        bias = bias + maps.mask.unsqueeze(1)
    if device_kind(qkv.device) == 'npu':
        out = _composed(q, k, v, bias, scale)
    else:
        bias = (
            bias.repeat(q.shape[0] // bias.shape[0], 1, 1, 1)
            if maps.mask is not None
            else bias.expand(q.shape[0], -1, -1, -1)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=scale)
    out = out.transpose(1, 2).reshape(B, maps.to_windows.numel(), C3 // 3)
    return _Gather.apply(out, maps.to_tokens, maps.to_windows.flatten(), maps.is_padding.flatten())


class _Gather(Function):
    """``index_select`` along axis 1, whose backward pass is an ``index_select`` too.

    ``inverse`` is the position of each element in the result. If ``is_missing``, the element is not in the result and
    its gradient is 0.
    """

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, inverse: Tensor, is_missing: Optional[Tensor]) -> Tensor:
        """(B, R, C) -> (B, len(index), C)."""
        ctx.save_for_backward(inverse, is_missing)
        return x.index_select(1, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        """(B, len(index), C) -> (B, R, C)."""
        inverse, is_missing = ctx.saved_tensors
        grad = grad.index_select(1, inverse)
        if is_missing is not None:
            grad = grad.masked_fill(is_missing[:, None], 0.0)
        return grad, None, None, None


def _to_windows(qkv: Tensor, qkv_bias: Optional[Tensor], maps: WindowMaps) -> Tensor:
    """(B, L, 3 * C) -> (B, nW * N, 3 * C), padding included."""
    windows = _Gather.apply(qkv, maps.to_windows.flatten(), maps.to_tokens, None)
    if not maps.has_padding:
        return windows
    padding = maps.is_padding.flatten()[:, None]
    if qkv_bias is None:
        return windows.masked_fill(padding, 0.0)
    return torch.where(padding, qkv_bias.to(windows.dtype), windows)


def _composed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Compute the attention with upstream's operators."""
    attn = (q * scale) @ k.transpose(-2, -1)
    attn = attn.view(-1, *bias.shape) + bias
    attn = attn.softmax(-1).view(q.shape[0], *bias.shape[1:])
    return attn.to(v.dtype) @ v
