"""Fused operators of attention on an NPU: of the decoder with the torch 2.1 stack, and the softmax in Swin's windows.

Each is compared with torch's operators before its first use on a device, and not used there if it differs.
"""

import warnings
from functools import lru_cache
from typing import Any, Callable, Iterable, Optional

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


def window_softmax(scores: Tensor, bias: Tensor, mask: Optional[Tensor], scale: float) -> Tensor:
    """Compute softmax(scale * scores + mask + bias) of windows (Swin Transformer, arXiv:2103.14030, equation 4).

    Not for autograd.

    Args:
        scores: q k^T, (B, nW, heads, N, N).
        bias: (heads, N, N), of the same dtype.
        mask: (nW, 1, N, N), of the same dtype; None for windows without one.
        scale: Factor of the scores.

    Returns:
        Of the shape and dtype of ``scores``.
    """
    if device_kind(scores.device) == 'npu' and _takes_softmax(scores.device):
        return npu_window_softmax(scores, bias, mask, scale)
    return composed_window_softmax(scores, bias, mask, scale)


def composed_window_softmax(scores: Tensor, bias: Tensor, mask: Optional[Tensor], scale: float) -> Tensor:
    """As :func:`window_softmax`, by operators of torch."""
    return torch._softmax(torch.add(bias if mask is None else bias + mask, scores, alpha=scale), -1, False)


def npu_window_softmax(scores: Tensor, bias: Tensor, mask: Optional[Tensor], scale: float) -> Tensor:
    """As :func:`window_softmax`, by torch_npu's operator, which has no gradient."""
    import torch_npu

    return torch_npu.npu_masked_softmax_with_rel_pos_bias(scores, mask, bias, scale)


@lru_cache(maxsize=None)
def _takes_operator(device: torch.device) -> bool:
    """Return whether :func:`npu_attention` is used on a device: if it is right there, and torch's is composed."""
    if digit_version(torch.__version__) >= digit_version('2.7'):
        return False
    return _is_right(check, device, "the decoder's attention does without npu_fusion_attention")


@lru_cache(maxsize=None)
def _takes_softmax(device: torch.device) -> bool:
    """Return whether :func:`npu_window_softmax` is right on a device."""
    return _is_right(
        check_softmax, device, "the softmax in Swin's windows does without npu_masked_softmax_with_rel_pos_bias"
    )


def _is_right(check: Callable[[torch.device], None], device: torch.device, otherwise: str) -> bool:
    """Return whether a check passes; if not, warn that the model does without an operator."""
    if device.type == 'meta':
        return True
    try:
        check(device)
    except Exception as error:  # torch_npu and CANN raise exceptions of many kinds
        warnings.warn(f'{otherwise} on {device}: {type(error).__name__}: {error}', stacklevel=3)
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
    _compare(('result', 'gradient of query', 'gradient of key', 'gradient of value'), *found)


def check_softmax(device: torch.device) -> None:
    """Compare :func:`npu_window_softmax` with torch's operators in small cases.

    Args:
        device: An NPU.

    Raises:
        AssertionError: A result differs.
        Exception: The operator cannot run; the error may be of any kind.
    """
    draw = torch.Generator().manual_seed(0)
    # Two images of three windows, four heads, and rows of 9 scores, whose bytes are no multiple of 32.
    scores, bias = torch.randn(2, 3, 4, 9, 9, generator=draw), torch.randn(4, 9, 9, generator=draw)
    mask = torch.where(torch.rand(3, 1, 9, 9, generator=draw) < 0.3, -100.0, 0.0)
    for name, shown in (('result', None), ('result with a mask', mask)):
        found = npu_window_softmax(scores.to(device), bias.to(device), None if shown is None else shown.to(device), 0.5)
        _compare((name,), [found.cpu()], [composed_window_softmax(scores, bias, shown, 0.5)])


def _compare(names: Iterable[str], found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for name, ours, wanted in zip(names, found, expected):
        error = (ours - wanted).norm() / wanted.norm()
        # Written with "not" so that NaN fails too. Products may be in TF32's format, which torch_npu allows by default.
        if not error <= 1e-2:
            raise AssertionError(f'{name} is off by {error:.1e}, relatively')
