"""The sum of a residual branch and the LayerNorm after it: x + drawn * branch, then its norm in the dtype of products.

On CUDA, a Triton kernel each way computes it, see ``add_norm_triton``. Elsewhere, and if the kernels are missing or
wrong in a small case, single operators do.
"""

import warnings
from functools import lru_cache
from typing import Any, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from recipe.models.execution import device_kind

# Numbers of each tensor that a program of a kernel holds at a time, unless a row has more.
TILE = 4096
# Most programs of the backward kernel. Each writes a partial sum of the gradients of weight and bias.
_MOST_PROGRAMS = 256
_CHECKED = (
    'the sum', 'the norm', 'the mean', '1 / deviation', 'the gradient of x', 'the gradient of the branch',
    'the gradient of the weight', 'the gradient of the bias',
)  # fmt: skip


class Norm(NamedTuple):
    """A LayerNorm.

    Attributes:
        weight: (C, ).
        bias: (C, ).
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    eps: float


class Added(NamedTuple):
    """A sum and its norm.

    Attributes:
        total: x + drawn * branch, (B, L, C), dtype of x. x itself without a branch.
        normed: Norm of ``total``, (B * L, C), in the dtype of products.
        mean: Of each row of ``total``, (B * L, 1).
        rstd: 1 / sqrt(variance + eps) of each row, (B * L, 1).
    """

    total: Tensor
    normed: Tensor
    mean: Tensor
    rstd: Tensor


# Gradients of x, of the branch if there was one, and of weight and bias of the norm.
Grads = Tuple[Tensor, Optional[Tensor], Tensor, Tensor]


def add_norm(x: Tensor, branch: Optional[Tensor], drawn: Optional[Tensor], norm: Norm, dtype: torch.dtype) -> Added:
    """Add a branch, and normalize (Layer Normalization, arXiv:1607.06450, equation 4). Not for autograd.

    Args:
        x: Tokens, (B, L, C).
        branch: Result of the branch, (B * L, C) in any floating dtype; None to add nothing.
        drawn: Factor of each image, (B, 1, 1); None for 1.
        norm: The norm.
        dtype: Of the norm's result.
    """
    kind = _triton if _takes_triton(x) else _plain
    return kind(x, branch, drawn, norm, dtype)


def add_norm_backward(
    grad: Tensor, grad_total: Tensor, added: Added, norm: Norm, drawn: Optional[Tensor], dtype: Optional[torch.dtype]
) -> Grads:
    """Compute the gradients of :func:`add_norm`.

    Args:
        grad: Gradient of ``normed``, (B * L, C) in its dtype.
        grad_total: Gradient of ``total``, (B, L, C) in its dtype.
        added: Result of :func:`add_norm`; ``normed`` is not read.
        norm: As in :func:`add_norm`.
        drawn: As in :func:`add_norm`.
        dtype: Of the branch; None if there was none.

    Returns:
        Gradients of x, (B, L, C); of the branch, (B * L, C), or None; of weight and of bias, (C, ).
    """
    kind = _triton_backward if _takes_triton(grad_total) else _plain_backward
    return kind(grad, grad_total, added, norm, drawn, dtype)


def add_scaled(x: Tensor, branch: Tensor, drawn: Optional[Tensor]) -> Tensor:
    """Compute x + drawn * branch, in the shape and dtype of x."""
    branch = branch.view_as(x)
    return x + branch if drawn is None else torch.addcmul(x, branch, drawn)


def scaled(grad: Tensor, drawn: Optional[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the gradient of a branch as rows, in its dtype."""
    if drawn is not None:
        # One kernel multiplies and rounds.
        grad = (
            torch.mul(grad, drawn, out=grad.new_empty(grad.shape, dtype=dtype)) if dtype != grad.dtype else grad * drawn
        )
    return grad.reshape(-1, grad.shape[-1]).to(dtype)


def _plain(x: Tensor, branch: Optional[Tensor], drawn: Optional[Tensor], norm: Norm, dtype: torch.dtype) -> Added:
    total = x if branch is None else add_scaled(x, branch, drawn)
    rows = total.reshape(-1, total.shape[-1])
    normed, mean, rstd = torch.native_layer_norm(rows, norm.weight.shape, *norm)
    return Added(total, normed.to(dtype), mean, rstd)


def _plain_backward(
    grad: Tensor, grad_total: Tensor, added: Added, norm: Norm, drawn: Optional[Tensor], dtype: Optional[torch.dtype]
) -> Grads:
    rows = added.total.reshape(-1, norm.weight.numel())
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad.to(rows.dtype), rows, norm.weight.shape, added.mean, added.rstd, norm.weight, norm.bias, [True, True, True]
    )
    grad_x = grad_x.view_as(grad_total).add_(grad_total)
    return grad_x, None if dtype is None else scaled(grad_x, drawn, dtype), grad_weight, grad_bias


def _triton(x: Tensor, branch: Optional[Tensor], drawn: Optional[Tensor], norm: Norm, dtype: torch.dtype) -> Added:
    x = x.contiguous()
    total = x if branch is None else torch.empty_like(x)
    rows = total.view(-1, x.shape[-1])
    normed = torch.empty_like(rows, dtype=dtype)
    mean, rstd = x.new_empty(2, len(rows), 1)
    outputs = (None if branch is None else rows, normed, mean, rstd)
    _run_forward((x.view_as(rows), branch, drawn, norm.weight, norm.bias), outputs, x.shape[1], norm.eps)
    return Added(total, normed, mean, rstd)


def _triton_backward(
    grad: Tensor, grad_total: Tensor, added: Added, norm: Norm, drawn: Optional[Tensor], dtype: Optional[torch.dtype]
) -> Grads:
    rows = added.total.view_as(grad)
    grad_x = torch.empty_like(added.total)
    grad_branch = None if dtype is None else torch.empty_like(rows, dtype=dtype)
    sums = rows.new_empty(min(1 + rows.numel() // TILE, _MOST_PROGRAMS), 2, norm.weight.numel())
    _run_backward(
        (grad.contiguous(), grad_total.contiguous(), rows, added.mean, added.rstd, norm.weight, drawn),
        (grad_x, grad_branch, sums),
        grad_total.shape[1],
    )
    return (grad_x, grad_branch, *sums.sum(0))


def _run_forward(*args: Any) -> None:
    from recipe.models.add_norm_triton import run_forward

    run_forward(*args)


def _run_backward(*args: Any) -> None:
    from recipe.models.add_norm_triton import run_backward

    run_backward(*args)


def _takes_triton(x: Tensor) -> bool:
    """Whether the Triton kernels are used for these tokens."""
    return device_kind(x.device) == 'cuda' and x.dtype == torch.float32 and x.numel() > 0 and _triton_works(x.device)


@lru_cache(maxsize=None)
def _triton_works(device: torch.device) -> bool:
    """Whether the kernels are right in a small case. No model must be trained with wrong results."""
    try:
        check(device)
    except Exception as error:  # Triton and its drivers raise exceptions of many kinds
        warnings.warn(
            f'Swin does without its Triton kernels on {device}: {type(error).__name__}: {error}', stacklevel=2
        )
        return False
    return True


def check(device: torch.device) -> None:
    """Compare the kernels with single operators in float64.

    Args:
        device: A GPU, or a CPU with ``TRITON_INTERPRET=1``.

    Raises:
        AssertionError: A result or a gradient differs.
        Exception: Triton cannot run; the error may be of any kind.
    """
    draw = torch.Generator().manual_seed(0)
    images, length, channels = 2, 37, 96
    x, grad_total = torch.randn(2, images, length, channels, generator=draw).to(device)
    branch, grad = torch.randn(2, images * length, channels, generator=draw).to(device)
    weight, bias = torch.randn(2, channels, generator=draw).to(device)
    drawn = torch.tensor([1.5, 0.0]).view(images, 1, 1).to(device)
    cases = ((torch.bfloat16, True, 2e-2), (torch.bfloat16, False, 2e-2), (torch.float32, True, 1e-4))
    for dtype, has_branch, rounding in cases:
        found = []
        for run, run_backward, sums, products in (
            (_triton, _triton_backward, torch.float32, dtype),
            (_plain, _plain_backward, torch.float64, torch.float64),
        ):
            tokens, gamma, beta, factors, given = (one.to(sums) for one in (x, weight, bias, drawn, grad_total))
            result, direction = (one.to(dtype).to(products) for one in (branch, grad))
            norm = Norm(gamma, beta, 1e-5)
            added = run(tokens, result if has_branch else None, factors, norm, products)
            grads = run_backward(direction, given, added, norm, factors, products if has_branch else None)
            found.append((*added, *grads))
        for name, result, wanted in zip(_CHECKED, *found):
            # Written with "not" so that NaN fails too.
            if wanted is not None and not (result.double() - wanted).norm() <= rounding * wanted.norm():
                raise AssertionError(f'{name} is wrong')
