"""Finds the host read of a model, with which other values reach the host without another wait."""

from typing import Any, Iterable, Optional

from torch import nn

from recipe.models.host_read import HostRead


def host_read_of(model: nn.Module) -> Optional[HostRead]:
    """The host read of the matching costs, which other values can join.

    Args:
        model: The model; it may be wrapped for distributed training.

    Returns:
        The host read of its accelerated Mask2Former head; None if it has no such head.
    """
    modules: Iterable[Any] = model.modules()
    return next((module.host_read for module in modules if hasattr(module, 'host_read')), None)
