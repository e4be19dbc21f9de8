"""Attention by one fused operator, also on an NPU with the torch 2.1 stack, whose torch_npu composes torch's."""

import warnings
from functools import lru_cache
from typing import Any, Optional

import torch
import torch.nn.functional as F
from mmengine.utils import digit_version
from torch import Tensor

from recipe.models.execution import device_kind


def attention(query: Tensor, key: Tensor, value: Tensor, allowed: Optional[Tensor] = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v in each head (Attention Is All You Need, arXiv:1706.03762, equation 1).

    Args:
        query: (B, heads, Q, D).
        key: (B, heads, K, D), of the same dtype.
        value: (B, heads, K, D), of the same dtype.
        allowed: Bool, (B, 1, Q, K); True if a query sees a key. Each query sees at least one. None: each sees all.

    Returns:
        (B, heads, Q, D).
    """
    if device_kind(query.device) == 'npu' and _takes_operator(query.device):
        return npu_attention(query, key, value, allowed)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


def npu_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Optional[Tensor] = None) -> Tensor:
    """As :func:`attention`, by torch_npu's operator, which takes float32 and half types."""
    import torch_npu

    # In its layout BSND the projected rows of a batch are as they come from the product.
    rows = (x.transpose(1, 2).contiguous() for x in (query, key, value))
    out = torch_npu.npu_fusion_attention(
        *rows,
        query.shape[1],
        'BSND',
        atten_mask=None if allowed is None else ~allowed,
        scale=query.shape[-1] ** -0.5,
    )[0]
    return out.transpose(1, 2)


@lru_cache(maxsize=None)
def _takes_operator(device: torch.device) -> bool:
    """Return whether :func:`npu_attention` is used on a device: if it is right there, and torch's is composed."""
    if digit_version(torch.__version__) >= digit_version('2.7'):
        return False
    if device.type == 'meta':
        return True
    try:
        check(device)
    except Exception as error:  # torch_npu and CANN raise exceptions of many kinds
        warnings.warn(
            f"the decoder's attention does without npu_fusion_attention on {device}: {type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


def check(device: torch.device) -> None:
    """Compare :func:`npu_attention` with torch's attention in a small case, gradients included.

    Args:
        device: An NPU.

    Raises:
        AssertionError: A result or gradient differs.
        Exception: The operator cannot run; the error may be of any kind.
    """
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 5, 32), (2, 4, 19, 32), (2, 4, 19, 32))
    drawn = [torch.randn(shape, generator=draw) for shape in shapes]
    allowed = torch.rand((2, 1, 5, 19), generator=draw) < 0.5
    allowed[..., 0] = True
    found = []
    sides: Any = ((npu_attention, device), (F.scaled_dot_product_attention, torch.device('cpu')))
    for function, place in sides:
        with torch.enable_grad():
            leaves = [x.to(place).requires_grad_() for x in drawn]
            out = function(*leaves, allowed.to(place))
            found.append([x.cpu() for x in (out.detach(), *torch.autograd.grad(out.pow(2).sum(), leaves))])
    names = ('result', 'gradient of query', 'gradient of key', 'gradient of value')
    for name, ours, wanted in zip(names, *found):
        error = (ours - wanted).norm() / wanted.norm()
        # Written with "not" so that NaN fails too. Products may be in TF32's format, which torch_npu allows by default.
        if not error <= 1e-2:
            raise AssertionError(f'{name} is off by {error:.1e}, relatively')
