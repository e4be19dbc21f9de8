"""Residual branches that do not compute what DropPath throws away."""

import threading
from contextlib import contextmanager
from functools import lru_cache
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, nn

from recipe.models.execution import autocasts, is_compiling
from recipe.models.kept_samples import KeptSamples

# What paths_drawn has drawn, by the module that will ask for it.
_drawn = threading.local()


@contextmanager
def paths_drawn(drops: Sequence[nn.Module], x: Tensor) -> Iterator[None]:
    """Draw at once for all DropPaths of a forward pass.

    Each draws a few numbers, with several operators each. On CPU the random
    stream is that of separate draws in this order; on an accelerator it is
    another one of the same distribution.

    Args:
        drops (sequence[nn.Module]): In the order of their use, each used once
            within; those that drop nothing are left out.
        x (Tensor): Has the batch size, the dtype and the device, (B, ...).
    """
    active = [d for d in drops if drops_paths(d)]
    if not active or is_compiling():
        yield
        return
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    shape = len(active), x.shape[0]
    if _computes_kept_samples(x):
        rows = torch.rand(shape, dtype=dtype).tolist()
    else:
        draws = torch.rand(shape, dtype=dtype, device=x.device)
        keep_probs = _keep_probs(tuple(d.drop_prob for d in active), dtype, x.device)
        rows = draws.add_(keep_probs).floor_().div_(keep_probs)
        rows = rows.view(*rows.shape, *(1,) * (x.dim() - 1)).unbind()
    _drawn.by_module = dict(zip(active, rows))
    try:
        yield
    finally:
        _drawn.by_module = {}


def drops_paths(module: nn.Module) -> bool:
    """Say whether a module is a DropPath that drops in its present mode."""
    return type(module) is DropPath and module.training and module.drop_prob > 0


def add_branch(
    x: Tensor, branch: Callable[[Tensor, Optional[KeptSamples]], Optional[Tensor]], drop: nn.Module
) -> Tensor:
    """Add drop(branch(x)) to x, computing it for the kept samples only.

    DropPath (stochastic depth, arXiv:1603.09382) draws one number a sample.
    Where the host can read the draws without waiting, which is on CPU, they
    are drawn first and the branch runs on the samples that are kept. The
    random stream is that of DropPath, provided that the branch draws
    nothing. If no sample is kept, the branch runs on an empty batch, so that
    its parameters have gradients, which are 0, as with DropPath.

    Args:
        x (Tensor): Shape (B, ...).
        branch (Callable): Takes a tensor of the shape of ``x`` with any batch
            size and None, and returns such a tensor; or takes ``x`` and
            samples to which it adds its result, and returns the sum, or None
            where it cannot. Draws no random number.
        drop (nn.Module): DropPath, or any module applied to the result of
            the branch.

    Returns:
        Tensor: Shape of ``x``.
    """
    drawn = getattr(_drawn, 'by_module', {}).pop(drop, None)
    if not _computes_kept_samples(x):
        if drawn is None:
            return x + drop(branch(x, None))
        result = branch(x, None)
        if result.dtype != x.dtype:  # autocast
            return x + result * drawn
        return torch.addcmul(x, result, drawn.to(x.dtype))
    if not drops_paths(drop):
        if type(drop) not in (DropPath, nn.Identity):
            return x + drop(branch(x, None))
        kept, scale = list(range(x.shape[0])), 1
    else:
        kept, scale = _kept(drop, drawn, x)
    if not kept or kept[-1] - kept[0] == len(kept) - 1:
        first = kept[0] if kept else 0
        total = branch(x, KeptSamples(first, first + len(kept), scale))
        if total is not None:
            return total
    if len(kept) == x.shape[0]:
        return torch.add(x, branch(x, None), alpha=scale)
    kept = torch.tensor(kept, dtype=torch.long)
    return x.index_add(0, kept, branch(x.index_select(0, kept), None), alpha=scale)


def _computes_kept_samples(x: Tensor) -> bool:
    """Say whether the host may choose what to compute."""
    return (
        x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.float64)
        and not autocasts('cpu')
        and not is_compiling()
    )


def _kept(drop: DropPath, draws: Optional[List[float]], x: Tensor) -> Tuple[List[int], float]:
    """Which samples a DropPath keeps, and what it multiplies them with."""
    if draws is None:
        draws = torch.rand(x.shape[0], dtype=x.dtype).tolist()
    keep_prob = 1 - drop.drop_prob
    # DropPath adds in the precision of x.
    number = np.float32 if x.dtype == torch.float32 else np.float64
    return [i for i, draw in enumerate(draws) if number(draw) + number(keep_prob) >= 1], 1 / keep_prob


@lru_cache(maxsize=16)
def _keep_probs(drop_probs: Tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """-> (N, 1); kept, since bringing it to a device can wait for it."""
    # Tensors made in inference mode could not be used in training.
    with torch.inference_mode(False):
        return torch.tensor([[1 - p] for p in drop_probs], dtype=dtype, device=device)
