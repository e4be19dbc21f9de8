"""Products of half precision on CPUs without instructions for them."""

from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Callable, ContextManager, Sequence

import torch
from mmengine.model import is_model_wrapper
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from recipe.models.compiled_parts import parts_of

_aten = torch.ops.aten
_PRODUCTS = (
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten.convolution_backward.default,
)
_NAMES = {torch.bfloat16: 'bf16', torch.float16: 'fp16'}


def products_for(model: nn.Module, dtype: torch.dtype) -> ContextManager:
    """Choose how products of half precision are computed.

    Args:
        model (nn.Module): The model that is trained.
        dtype (torch.dtype): ``torch.bfloat16`` or ``torch.float16``.

    Returns:
        ContextManager: :class:`ProductsInFloat32` on a CPU that computes no
        products of ``dtype`` by itself. Nothing elsewhere, and for a model in
        graphs, which torch.compile would not enter under a dispatch mode.
    """
    if next(model.parameters()).device.type != 'cpu' or has_products(dtype):
        return nullcontext()
    inner = model.module if is_model_wrapper(model) else model
    return nullcontext() if parts_of(inner) else ProductsInFloat32(dtype)


@lru_cache(maxsize=None)
def has_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN has fast products of ``dtype`` for this CPU."""
    ask = getattr(torch.ops.mkldnn, f'_is_mkldnn_{_NAMES[dtype]}_supported', None)
    return ask is not None and bool(ask())


class ProductsInFloat32(TorchDispatchMode):
    """Compute matrix products and convolutions of a half type in float32.

    They are rounded once, at their end, as accelerators do it and as torch's
    own loops for such CPUs do it, which take ten to a hundred times as long.

    Args:
        dtype (torch.dtype): ``torch.bfloat16`` or ``torch.float16``; products
            of other types are left alone.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run one operator."""
        if func not in _PRODUCTS or args[1].dtype != self.dtype:
            return func(*args, **(kwargs or {}))
        out = func(*map(_up, args), **(kwargs or {}))
        if isinstance(out, tuple):
            return tuple(one if one is None else one.to(self.dtype) for one in out)
        return out.to(self.dtype)


def _up(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value
