"""Index maps between the tokens of a batch and the rows of its windows; they are made once and kept."""

from typing import Any, Callable, Dict, NamedTuple, Tuple

import torch
from torch import Tensor

from recipe.models.execution import kept_constants
from recipe.models.window_maps import WindowMaps

# What belongs to window maps, by their id and what else it depends on; a dict as in window_maps.
_kept: Dict[tuple, Tuple[Any, WindowMaps]] = {}
_MAX_KEPT = 64


class Rows(NamedTuple):
    """Index maps of all images of a batch, between rows of tokens and rows of windows.

    Attributes:
        to_windows: Token row of each window row, shape (B * nW * N, ), int64. Padding has the row B * L, the last one.
        to_tokens: Window row of each token row, shape (B * L, ), int64.
    """

    to_windows: Tensor
    to_tokens: Tensor


def _keep(key: tuple, maps: WindowMaps, make: Callable[[], Any]) -> Any:
    """Return what was kept for a key; make it first if there is nothing."""
    if key not in _kept:
        if len(_kept) >= _MAX_KEPT:
            _kept.pop(next(iter(_kept)))
        with kept_constants():
            # The maps are kept too, so that no other tensor gets their id.
            _kept[key] = make(), maps
    return _kept[key][0]


def batch_rows(maps: WindowMaps, batch_size: int) -> Rows:
    """Return the maps of a batch; they are kept, and must not be changed in place."""
    return _keep((id(maps.to_windows), batch_size), maps, lambda: _make_rows(maps, batch_size))


def _make_rows(maps: WindowMaps, batch_size: int) -> Rows:
    L, n = maps.to_tokens.numel(), maps.to_windows.numel()
    image = torch.arange(batch_size, device=maps.to_windows.device)[:, None]
    rows = (maps.to_windows.flatten() + image * L).masked_fill(maps.is_padding.flatten(), batch_size * L)
    return Rows(rows.flatten(), (maps.to_tokens + image * n).flatten())


class HeadRows(NamedTuple):
    """Index maps of rows of D numbers, one for each head; int32.

    A token has 3 * heads such rows in qkv, and ``heads`` in the result of the attention.

    Attributes:
        qkv: Row of qkv for (3, G, heads, N), where G is the number of windows of the batch.
        out: Row of the result for (G, heads, N).
        qkv_tokens: Row of (3, G, heads, N) for each row of qkv, without padding.
        out_tokens: Row of (G, heads, N) for each row of the result, without padding.
    """

    qkv: Tensor
    out: Tensor
    qkv_tokens: Tensor
    out_tokens: Tensor


def head_rows(maps: WindowMaps, batch_size: int, heads: int) -> HeadRows:
    """Return the maps of the rows of heads; they are kept, and must not be changed in place."""
    return _keep((id(maps.to_windows), batch_size, heads), maps, lambda: _make_head_rows(maps, batch_size, heads))


def _make_head_rows(maps: WindowMaps, batch_size: int, heads: int) -> HeadRows:
    rows = batch_rows(maps, batch_size)
    N = maps.to_windows.shape[1]
    G = rows.to_windows.numel() // N
    head = torch.arange(heads, device=rows.to_windows.device)
    part = torch.arange(3, device=rows.to_windows.device)
    windows = rows.to_windows.view(G, 1, N)
    out = windows * heads + head[:, None]
    qkv = (windows * 3 + part[:, None, None, None]) * heads + head[:, None]
    window, offset = rows.to_tokens // N, rows.to_tokens % N
    out_tokens = (window[:, None] * heads + head) * N + offset[:, None]
    qkv_tokens = part[:, None] * (G * heads * N) + out_tokens[:, None]
    return HeadRows(*(one.flatten().int() for one in (qkv, out, qkv_tokens, out_tokens)))


def mask_of(maps: WindowMaps, dtype: torch.dtype) -> Tensor:
    """Return the mask of shifted windows for all heads, (nW, 1, N, N), in a dtype; kept, as the maps."""
    mask = maps.mask
    assert mask is not None, 'the windows are shifted'
    return _keep((id(maps.to_windows), dtype), maps, lambda: mask[:, None].to(dtype))
