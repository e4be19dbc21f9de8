"""Skips a residual branch for the samples that DropPath drops."""

import threading
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn

from recipe.models.execution import autocasts, is_compiling, kept_constants

# The draws for the current forward pass, by DropPath module.
_drawn = threading.local()


@contextmanager
def paths_drawn(drops: Sequence[nn.Module], x: Tensor) -> Iterator[None]:
    """Draw for all DropPaths of a forward pass before it begins.

    Each DropPath draws one number per sample and computes a factor from it. Here all numbers are drawn at once, in the
    same order from the same generator, and so are the factors computed. On a CPU the numbers are those of single draws;
    the generator of an accelerator gives others of the same distribution.

    Args:
        drops: Modules in the order of their use, each used once within the context. Modules that drop nothing are
            ignored.
        x: A tensor with the batch size, dtype and device of the branches, (B, ...).
    """
    active = [drop for drop in drops if drops_paths(drop)]
    if not active or is_compiling():
        yield
        return
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    shape = len(active), x.shape[0]
    if _computes_kept_samples(x):
        rows: Sequence[Any] = torch.rand(shape, dtype=dtype).tolist()
    else:
        draws = torch.rand(shape, dtype=dtype, device=x.device)
        keep_probs = _keep_probs(tuple(drop.drop_prob for drop in active), dtype, x.device)
        draws.add_(keep_probs).floor_().div_(keep_probs)
        rows = draws.view(*shape, 1, 1).unbind()
    _drawn.by_module = dict(zip(active, rows))
    try:
        yield
    finally:
        _drawn.by_module = {}


def has_drawn(drop: nn.Module) -> bool:
    """Return whether :func:`paths_drawn` drew for a DropPath, and its factors were not taken yet."""
    return drop in getattr(_drawn, 'by_module', {})


def drops_paths(module: nn.Module) -> bool:
    """Return whether a module is a DropPath that drops in its present mode."""
    return bool(type(module) is DropPath and module.training and module.drop_prob > 0)


def drawn_for(drop: nn.Module) -> Any:
    """Take the factors of a DropPath that :func:`paths_drawn` drew, (B, 1, 1); None if it drew none."""
    return getattr(_drawn, 'by_module', {}).pop(drop, None)


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], drop: nn.Module) -> Tensor:
    """Compute x + drop(branch(x)); on a CPU run the branch on the kept samples only.

    DropPath (stochastic depth, arXiv:1603.09382) draws one number per sample. On a CPU the host can read the numbers
    without waiting. So they are drawn first, and the branch runs on the kept samples only. If the branch draws no
    numbers, the random numbers are the same as DropPath's. If no sample is kept, the branch runs on an empty batch, so
    that the gradients of its parameters are 0, as with DropPath.

    Args:
        x: Shape (B, L, C).
        branch: Takes and returns a tensor of the shape of ``x`` with any batch size. It must not draw random numbers.
        drop: DropPath, or any module that is applied to the result of the branch.

    Returns:
        Shape of ``x``.
    """
    drawn = drawn_for(drop)
    if not _computes_kept_samples(x):
        if drawn is None:
            return x + drop(branch(x))
        result = branch(x)
        if result.dtype != x.dtype:  # autocast
            return x + result * drawn
        return torch.addcmul(x, result, drawn.to(x.dtype))
    if not drops_paths(drop):
        return x + drop(branch(x))
    kept, scale = _kept(drop, drawn, x)
    if len(kept) == x.shape[0]:
        return torch.add(x, branch(x), alpha=scale)
    index = torch.tensor(kept, dtype=torch.long)
    return x.index_add(0, index, branch(x.index_select(0, index)), alpha=scale)


def _computes_kept_samples(x: Tensor) -> bool:
    """Return whether the branch is computed for the kept samples only: on a CPU without autocast or torch.compile."""
    return (
        x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.float64)
        and not autocasts('cpu')
        and not is_compiling()
    )


def _kept(drop: DropPath, draws: Optional[List[float]], x: Tensor) -> Tuple[List[int], float]:
    """Return the indices of the samples that a DropPath keeps, and their factor."""
    if draws is None:
        draws = torch.rand(x.shape[0], dtype=x.dtype).tolist()
    keep_prob = 1 - drop.drop_prob
    # DropPath adds in the precision of x.
    number = np.float32 if x.dtype == torch.float32 else np.float64
    return [i for i, draw in enumerate(draws) if number(draw) + number(keep_prob) >= 1], 1 / keep_prob


@lru_cache(maxsize=16)
def _keep_probs(drop_probs: Tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return 1 - p of each, (N, 1). They are kept, because the host could wait for another copy to the device."""
    with kept_constants():
        return torch.tensor([[1 - p] for p in drop_probs], dtype=dtype, device=device)
