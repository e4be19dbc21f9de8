"""Finds the host read of a model, with which a value reaches the host without a wait of its own."""

from typing import Any, Optional

from torch import nn


def host_read_of(model: nn.Module) -> Optional[Any]:
    """The ``HostRead`` of an accelerated Mask2Former head; None for a model without one.

    Args:
        model: The model, also wrapped for distributed training.

    Returns:
        ``recipe.models.host_read.HostRead``, in which the matching reads its costs in each iteration.
    """
    found = next((module.host_read for module in model.modules() if hasattr(module, 'host_read')), None)
    if found is None:  # to go with the patch of mmdet, whose head reads through one for the whole process
        try:
            from mmdet.models.dense_heads.host_read import HOST_READ
        except ModuleNotFoundError:
            return None
        return HOST_READ
    return found
