"""Attention in Swin's windows from rows of tokens to rows of tokens, on CUDA: ``window_attention_triton``.

In float32, or if the kernels are missing or wrong in a small case, ``scaled_dot_product_attention`` does it on copies
of the windows.
"""

import math
import warnings
from functools import lru_cache
from typing import Any, NamedTuple, Tuple

import torch
from torch import Tensor

from recipe.models.execution import device_kind
from recipe.models.window_attention import window_attention
from recipe.models.window_maps import window_maps
from recipe.models.window_rows import batch_rows

TILE = 4096  # scores that a program of a kernel holds at a time
_MOST_POSITIONS = 256  # of a window, because a program holds whole rows of scores
# About so many programs sum over windows. Each writes a partial sum of the gradient of a part of the position bias.
_PROGRAMS = 512
# In float32 the products of a padded window take longer than the bytes that are saved (docs/performance.md).
DTYPES = (torch.bfloat16, torch.float16)
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
_CHECKED = (
    'the result', 'the gradient of qkv', 'the gradient of the qkv bias', 'the gradient of the position bias',
)  # fmt: skip


class TokenAttention:
    """Attention in the windows by Triton kernels, and its backward pass.

    Args:
        qkv: Rows of tokens and of a padding token, (B * L + 1, 3 * C), float32 or a half type.
        position_bias: (heads, N, N), of any floating dtype.
        branch: A ``swin_branches.Branch``, whose ``maps`` and ``scale`` are used.
        batch_size: B.

    Attributes:
        attended: Result, (B * L, C), in the dtype of ``qkv``.
    """

    def __init__(self, qkv: Tensor, position_bias: Tensor, branch: Any, batch_size: int) -> None:
        heads, N = position_bias.shape[:2]
        rows = batch_rows(branch.maps, batch_size).to_windows
        self.scale = branch.scale
        self.inputs = (qkv, position_bias.detach().contiguous(), rows, branch.maps.regions)
        self.attended = qkv.new_empty(len(qkv) - 1, qkv.shape[1] // 3)
        self.lse = qkv.new_empty(len(rows) // N, heads, N, dtype=torch.float32)
        _run('forward', self.inputs, (self.attended, self.lse), self.scale)

    def backward(self, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Compute gradients; once.

        Args:
            grad: Gradient of ``attended``, and a last row of zeros for padding, (B * L + 1, C).

        Returns:
            Gradients of the tokens' qkv, (B * L, 3 * C), of the qkv bias through padding and tokens, (3 * C, ), both in
            the dtype of qkv, and of the position bias, in float32.
        """
        C = grad.shape[1]
        windows, heads, N = self.lse.shape
        blocks = -(-N // block_sizes(N)[0])
        # At least two windows for each partial sum, so that a small case shows whether they are added.
        partial = min(-(-windows // 2), -(-_PROGRAMS // (heads * blocks)))
        qkv_grad = grad.new_empty(len(grad) - 1, 3 * C)
        delta = torch.empty_like(self.lse)
        bias_sums = self.lse.new_empty(partial, heads, N, N)
        column_sums = self.lse.new_empty(partial, blocks, 3 * C)
        inputs = (*self.inputs, self.lse, grad.contiguous())
        del self.inputs, self.lse
        _run('backward_queries', inputs, (qkv_grad[:, :C], delta, bias_sums, column_sums), self.scale)
        _run('backward_keys', (*inputs, delta), (qkv_grad[:, C:],), self.scale)
        return qkv_grad, column_sums.sum((0, 1)).to(grad.dtype), bias_sums.sum(0)


def block_sizes(positions: int) -> Tuple[int, int]:
    """Return how many queries (or keys) a program has, and how many keys (or queries) it meets; powers of two."""
    whole = max(16, 1 << (positions - 1).bit_length())
    return min(whole, max(16, TILE // whole)), whole


def _run(name: str, inputs: tuple, outputs: tuple, scale: float) -> None:
    from recipe.models import window_attention_triton

    getattr(window_attention_triton, f'run_{name}')(inputs, outputs, scale)


def takes_triton(qkv: Tensor, position_bias: Tensor) -> bool:
    """Whether the Triton kernels are used for rows of qkv, (B * L + 1, 3 * C), and a bias, (heads, N, N)."""
    heads, N = position_bias.shape[:2]
    return (
        device_kind(qkv.device) == 'cuda'
        and qkv.dtype in DTYPES
        and len(qkv) > 1
        and N <= _MOST_POSITIONS
        and _triton_works(qkv.device, qkv.dtype, math.isqrt(N), qkv.shape[1] // 3 // heads)
    )


@lru_cache(maxsize=None)
def _triton_works(device: torch.device, dtype: torch.dtype, window_size: int, dim: int) -> bool:
    """Whether the kernels are right in a small case. No model must be trained with wrong results."""
    try:
        check(device, dtype, window_size, dim)
    except Exception as error:  # Triton and its drivers raise exceptions of many kinds
        warnings.warn(
            f'Swin attends without its Triton kernels on {device}: {type(error).__name__}: {error}', stacklevel=2
        )
        return False
    return True


class Case(NamedTuple):
    """A small case, see :func:`small_case`.

    Attributes:
        qkv: (B, L, 3 * C).
        qkv_bias: (3 * C, ).
        position_bias: (heads, N, N).
        grad: Gradient of the result, (B, L, C).
        hw_shape: H and W, whose product is L.
        window_size: Height and width of a window.
        shift_size: Cyclic shift of the windows.
    """

    qkv: Tensor
    qkv_bias: Tensor
    position_bias: Tensor
    grad: Tensor
    hw_shape: Tuple[int, int]
    window_size: int
    shift_size: int


def small_case(
    device: torch.device,
    dtype: torch.dtype,
    window_size: int,
    shift_size: int,
    hw_shape: Tuple[int, int],
    images: int = 2,
    heads: int = 2,
    dim: int = 32,
) -> Case:
    """Draw a case. It is the same at each call, and torch's random state does not change.

    Args:
        device: Of the tensors.
        dtype: Of qkv, its bias and the gradient; the position bias is float32.
        window_size: Height and width of a window.
        shift_size: Cyclic shift of the windows.
        hw_shape: Height and width of the feature map.
        images: Number of images. Defaults to 2.
        heads: Number of heads. Defaults to 2.
        dim: Channels per head. Defaults to 32.
    """
    draw = torch.Generator().manual_seed(0)
    L, C, N = hw_shape[0] * hw_shape[1], heads * dim, window_size**2
    qkv, grad = torch.randn(images, L, 4 * C, generator=draw).split((3 * C, C), -1)
    qkv_bias, position_bias = torch.randn(3 * C, generator=draw), torch.randn(heads, N, N, generator=draw)
    half = [one.to(device, dtype) for one in (qkv, qkv_bias, grad)]
    return Case(half[0], half[1], position_bias.to(device), half[2], hw_shape, window_size, shift_size)


def by_kernels(case: Case) -> Tuple[Tensor, ...]:
    """Return the result, (B * L, C), and the gradients of qkv, of its bias and of the position bias of a case."""
    from recipe.models.swin_branches import Branch

    maps = window_maps(case.hw_shape, case.window_size, case.shift_size, case.qkv.device)
    B, _, C = case.grad.shape
    heads = len(case.position_bias)
    qkv = torch.cat((case.qkv.flatten(0, 1), case.qkv_bias[None]))
    branch = Branch(0.0, maps, (C // heads) ** -0.5, qkv.dtype)
    attention = TokenAttention(qkv, case.position_bias, branch, B)
    grad = torch.cat((case.grad.flatten(0, 1), case.grad.new_zeros(1, C)))
    return (attention.attended, *attention.backward(grad))


def by_autograd(case: Case) -> Tuple[Tensor, ...]:
    """Return the same from ``scaled_dot_product_attention`` in float64."""
    C = case.grad.shape[-1]
    with torch.enable_grad():
        qkv, qkv_bias, position_bias = (one.double().requires_grad_() for one in case[:3])
        scale = (C // len(position_bias)) ** -0.5
        # The numbers of qkv; the bias gets the gradients of all tokens, as in a projection.
        tokens = qkv + (qkv_bias - qkv_bias.detach())
        out = window_attention(tokens, qkv_bias, position_bias, *case[4:], scale)
        grads = torch.autograd.grad(out, (qkv, qkv_bias, position_bias), case.grad.double())
    return (out.detach().flatten(0, 1), grads[0].flatten(0, 1), *grads[1:])


def check(device: torch.device, dtype: torch.dtype, window_size: int, dim: int = 32) -> None:
    """Compare the kernels with ``scaled_dot_product_attention`` in float64, with and without a shift.

    Args:
        device: A GPU, or a CPU with ``TRITON_INTERPRET=1``.
        dtype: Of qkv: float32, bfloat16 or float16.
        window_size: Height and width of a window, at most 16.
        dim: Channels per head. Defaults to 32.

    Raises:
        AssertionError: A result or a gradient differs.
        Exception: Triton cannot run; the error may be of any kind.
    """
    hw_shape = (window_size + 1, window_size)
    for shift_size, images in ((window_size // 2, 2), (0, 1)):
        case = small_case(device, dtype, window_size, shift_size, hw_shape, images, dim=dim)
        for name, result, wanted in zip(_CHECKED, by_kernels(case), by_autograd(case)):
            # Written with "not" so that NaN fails too.
            if not (result.double() - wanted).norm() <= _ROUNDING[dtype] * wanted.norm():
                raise AssertionError(f'{name} is wrong')
