"""Finds the host read of a model, with which a value reaches the host without a wait of its own."""

from typing import Any, Iterable, Optional

from torch import nn

from recipe.models.host_read import HostRead


def host_read_of(model: nn.Module) -> Optional[HostRead]:
    """The read of the matching costs in each iteration, which other values can join.

    Args:
        model: The model, also wrapped for distributed training.

    Returns:
        That of an accelerated Mask2Former head; None for a model without one.
    """
    modules: Iterable[Any] = model.modules()
    return next((module.host_read for module in modules if hasattr(module, 'host_read')), None)
