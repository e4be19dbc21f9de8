"""Window attention on a CPU without gradients: a few windows at a time, gathered as rows of q, k and v of all heads."""

from typing import Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from recipe.models.onednn_linear import onednn_linear
from recipe.models.window_maps import window_maps

# Pairs of a window and a head at a time: their biases, 83 KB each, stay in the processor's caches.
_PAIRS = 128


def window_msa_without_gradients(
    x: Tensor,
    qkv: nn.Linear,
    proj: nn.Linear,
    position_bias: Tensor,
    windows: Tuple[Tuple[int, int], int, int],
    scale: float,
    norm: Optional[nn.Module],
) -> Tensor:
    """Compute the same as ``CPUWindowMSA``, up to float rounding.

    Args:
        x: Tokens, (B, H*W, C), float32.
        qkv: Projects tokens to q, k and v, each as (num_heads, C // num_heads).
        proj: Output projection.
        position_bias: (num_heads, N, N), where N is the number of positions in a window.
        windows: (H, W), the size of a window, and its cyclic shift.
        scale: Scale of q k^T.
        norm: Norm before ``qkv``, or None.

    Returns:
        Shape (B, H*W, C).
    """
    B, _, C = x.shape
    heads = len(position_bias)
    maps = window_maps(*windows, x.device)
    nW, N = maps.to_windows.shape
    tokens = onednn_linear(x if norm is None else norm(x), qkv.weight, qkv.bias)
    attended = x.new_empty(B, nW, N, heads, C // heads)
    step = max(1, _PAIRS // heads)
    for image in range(B):
        for first in range(0, nW, step):
            part = slice(first, first + step)
            inside = tokens[image].index_select(0, maps.to_windows[part].flatten())
            if maps.has_padding:  # a padding token is zero
                inside[maps.is_padding[part].flatten()] = 0.0 if qkv.bias is None else qkv.bias
            q, k, v = inside.view(-1, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4)
            bias = position_bias if maps.mask is None else position_bias + maps.mask[part, None]
            bias = bias.expand(len(q), heads, N, N)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
            attended[image, part] = out.transpose(1, 2)
    return onednn_linear(attended.view(B, nW * N, C).index_select(1, maps.to_tokens), proj.weight, proj.bias)
