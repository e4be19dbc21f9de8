"""Builds models without memory or initial values, which takes a fraction of a second at any size."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NumbersOnCpu(TorchFunctionMode):
    """Lets a constructor read the numbers that it computes with linspace, as Swin's does for its drop path."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {}, **({'device': 'cpu'} if function is torch.linspace else {}))
        return function(*args, **kwargs)


def build(config: Any) -> Any:
    """The model of a config on torch's meta device."""
    from recipe.engine import config as run_config

    with torch.device('meta'), _NumbersOnCpu():
        return run_config.build_model(config)
