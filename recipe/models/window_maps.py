"""Index maps from the tokens of a feature map to its windows and back."""

from typing import Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from recipe.models.execution import kept_constants


class WindowMaps(NamedTuple):
    """Index maps between a feature map and its (shifted) windows.

    The map has L tokens in row-major order. They fill nW windows of N positions. Positions without a token are padding.

    Attributes:
        to_windows: Token of each position, shape (nW, N), int64; 0 if the position is padding.
        is_padding: Whether each position is padding, shape (nW, N), bool.
        has_padding: Whether any position is padding.
        to_tokens: Position of each token as window * N + offset, shape (L, ), int64.
        mask: Added to the attention logits: 0 within a region, -100 between regions, shape (nW, N, N), float32. None
            without a shift.
        regions: Region of each position, shape (nW, N), int32. None without a shift.
    """

    to_windows: Tensor
    is_padding: Tensor
    has_padding: bool
    to_tokens: Tensor
    mask: Optional[Tensor]
    regions: Optional[Tensor]


# A dict, because torch.compile ignores functools.lru_cache.
_kept: Dict[tuple, WindowMaps] = {}
_MAX_KEPT = 64


def window_maps(hw_shape: Tuple[int, int], window_size: int, shift_size: int, device: torch.device) -> WindowMaps:
    """Return the maps for padding to whole windows, a cyclic shift, and the partition into windows.

    They do not depend on learned values, so they are made once and kept. Swin Transformer (arXiv:2103.14030), section
    3.2 and figure 4.

    Args:
        hw_shape: Height and width of the feature map.
        window_size: Height and width of a window.
        shift_size: Cyclic shift to the upper left; 0 for none.
        device: Device of the maps.

    Returns:
        The maps. They are shared: do not change them in place.
    """
    key = (hw_shape, window_size, shift_size, device.type, device.index)
    if key not in _kept:
        if len(_kept) >= _MAX_KEPT:
            _kept.pop(next(iter(_kept)))
        with kept_constants():
            _kept[key] = _make_maps(hw_shape, window_size, shift_size, device)
    return _kept[key]


def _make_maps(hw_shape: Tuple[int, int], window_size: int, shift_size: int, device: torch.device) -> WindowMaps:
    """Make the maps of :func:`window_maps`."""
    H, W = hw_shape
    rows = -(-H // window_size)
    cols = -(-W // window_size)
    H_pad, W_pad = rows * window_size, cols * window_size
    y = (torch.arange(H_pad, device=device) + shift_size) % H_pad
    x = (torch.arange(W_pad, device=device) + shift_size) % W_pad
    token = _partition(y[:, None] * W + x[None, :], window_size)
    is_padding = _partition((y >= H)[:, None] | (x >= W)[None, :], window_size)
    to_windows = token.masked_fill(is_padding, 0)

    # The inverse map, from tokens to positions.
    y = (torch.arange(H, device=device) - shift_size) % H_pad
    x = (torch.arange(W, device=device) - shift_size) % W_pad
    window = ((y // window_size) * cols)[:, None] + (x // window_size)[None, :]
    offset = ((y % window_size) * window_size)[:, None] + (x % window_size)[None]
    to_tokens = (window * window_size**2 + offset).flatten()

    mask = regions = None
    if shift_size > 0:
        region = _partition(
            _regions(H_pad, window_size, shift_size, device)[:, None] * 3
            + _regions(W_pad, window_size, shift_size, device)[None, :],
            window_size,
        )
        differs = region[:, None, :] != region[:, :, None]
        mask = torch.zeros(differs.shape, dtype=torch.float32, device=device).masked_fill(differs, -100.0)
        regions = region.int()
    return WindowMaps(to_windows, is_padding, (H_pad, W_pad) != (H, W), to_tokens, mask, regions)


def _partition(grid: Tensor, window_size: int) -> Tensor:
    """Split (H, W) into whole windows, (nW, N)."""
    H, W = grid.shape
    grid = grid.view(H // window_size, window_size, W // window_size, window_size)
    return grid.transpose(1, 2).reshape(-1, window_size**2)


def _regions(length: int, window_size: int, shift_size: int, device: torch.device) -> Tensor:
    """Number (0, 1 or 2) of the part of a shifted axis that each position belongs to, shape (length, )."""
    at = torch.arange(length, device=device)
    return (at >= length - window_size).long() + (at >= length - shift_size)
