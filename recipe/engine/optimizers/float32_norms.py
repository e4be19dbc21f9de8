"""Norms in float32 under autocast on CPU, as on accelerators."""

from functools import lru_cache
from typing import Any, Callable, List

import torch

_HALF = (torch.bfloat16, torch.float16)
_NORMS = ('layer_norm', 'group_norm')


@lru_cache(maxsize=None)
def keep_norms_in_float32(device_type: str) -> None:
    """Have norms read and write float32 under autocast.

    On CUDA and NPU autocast lists them among the operators that run in
    float32; on CPU it leaves them in half precision, and with them the sum of
    the residual branches that Swin adds to its tokens. This puts them on the
    list there, for this process.

    Args:
        device_type (str): ``torch.device.type`` of the model.
    """
    if device_type != 'cpu':
        return
    library = torch.library.Library('aten', 'IMPL')
    for name in _NORMS:
        library.impl(name, _in_float32(getattr(torch.ops.aten, name).default), 'AutocastCPU')
    _libraries.append(library)


# A registration lives as long as its library.
_libraries: List[Any] = []


def _in_float32(operator: Callable) -> Callable:
    """Cast the floating-point arguments of an operator up."""

    def cast(value: Any) -> Any:
        is_half = isinstance(value, torch.Tensor) and value.dtype in _HALF
        return value.float() if is_half else value

    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.autocast('cpu', enabled=False):
            return operator(*map(cast, args), **{name: cast(arg) for name, arg in kwargs.items()})

    return run
