"""Normalization layers in float32 under autocast on CPU, as on accelerators."""

from functools import lru_cache
from typing import Any, Callable, List

import torch

_HALF = (torch.bfloat16, torch.float16)
_NORMS = ('layer_norm', 'group_norm')


@lru_cache(maxsize=None)
def keep_norms_in_float32(device_type: str) -> None:
    """Make layer norm and group norm read and write float32 under autocast.

    On CUDA and NPU autocast runs them in float32. On CPU it leaves them in half precision, and so also the tokens to
    which Swin adds its residual branches. This makes them run in float32 on CPU, for the whole process.

    Args:
        device_type (str): ``torch.device.type`` of the model; nothing is done unless it is ``cpu``.
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
    """The operator with its half-precision arguments cast to float32."""

    def cast(value: Any) -> Any:
        is_half = isinstance(value, torch.Tensor) and value.dtype in _HALF
        return value.float() if is_half else value

    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.autocast('cpu', enabled=False):
            return operator(*map(cast, args), **{name: cast(arg) for name, arg in kwargs.items()})

    return run
