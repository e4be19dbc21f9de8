"""AdamW with few parameter groups and a fused step that the device can skip."""

from typing import Any, Iterable, List

import torch
from mmengine.registry import OPTIMIZERS
from mmengine.utils import digit_version

from recipe.engine.optimizers.guarded_adamw import guarded
from recipe.engine.optimizers.merged_groups import merge_groups, remember_members
from recipe.models.execution import device_kind


@OPTIMIZERS.register_module()
class MergedAdamW:
    """AdamW with the device's fused step; merges parameter groups with equal settings.

    It builds ``torch_npu.optim.NpuFusedAdamW`` on NPU, guarded by
    :func:`~recipe.engine.optimizers.guarded_adamw.guarded`, and ``torch.optim.AdamW`` elsewhere, with ``fused=True`` on
    CUDA and, since torch 2.4, on CPU. All follow Algorithm 2 of `Decoupled Weight Decay Regularization
    <https://arxiv.org/abs/1711.05101>`_.

    A fused step works on one group at a time, and mmengine makes one group per parameter.
    :func:`~recipe.engine.optimizers.merged_groups.adopt_checkpoint` makes checkpoints with one group per parameter fit.

    Args:
        params: Parameters or parameter groups.
        kwargs: ``lr``, ``betas``, ``eps``, ``weight_decay``, ``amsgrad``.

    Returns:
        torch.optim.Optimizer: The optimizer; not an instance of this class.
    """

    def __new__(cls, params: Iterable, **kwargs: Any) -> Any:
        """Build the optimizer for the device of the parameters."""
        groups = list(params)
        if not groups or not isinstance(groups[0], dict):
            return _build(groups, **kwargs)
        for number, group in enumerate(groups):
            members = group['params']
            members = [members] if torch.is_tensor(members) else list(members)
            groups[number] = {**kwargs, **group, 'params': members}
        merged, members = merge_groups(groups)
        optimizer = _build(merged, **kwargs)
        remember_members(optimizer, groups, members)
        return optimizer


def _build(groups: List[Any], **kwargs: Any) -> torch.optim.Optimizer:
    device = _device_type(groups)
    if device == 'npu':
        from torch_npu.optim import NpuFusedAdamW

        return guarded(NpuFusedAdamW(groups, **kwargs))
    fused_on_cpu = digit_version(torch.__version__) >= digit_version('2.4')
    fused = device == 'cuda' or (device == 'cpu' and fused_on_cpu)
    return torch.optim.AdamW(groups, fused=fused, **kwargs)


def _device_type(groups: List[Any]) -> str:
    """Device type of the first parameter, ``cpu`` if there is none."""
    for group in groups:
        params = group['params'] if isinstance(group, dict) else group
        for param in [params] if torch.is_tensor(params) else params:
            return device_kind(param.device)
    return 'cpu'
