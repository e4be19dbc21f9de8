"""Mixed precision in float16."""

from contextlib import contextmanager
from typing import Any, Iterator, Union

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from recipe.engine.optimizers.float32_norms import keep_norms_in_float32


@OPTIM_WRAPPERS.register_module()
class Fp16OptimWrapper(AmpOptimWrapper):
    """Mixed precision in float16 with a gradient scaler, on every device.

    float16 ends at 65504, and small gradients underflow, so the loss is scaled. If the gradients overflow, the step is
    skipped and the scale is halved. The scale is part of checkpoints.

    Args:
        loss_scale (str | float | dict): ``dynamic``, a fixed scale, or arguments of torch's ``GradScaler``. Defaults to
            ``dynamic``.
        kwargs: Arguments of :class:`mmengine.optim.OptimWrapper`.

    Raises:
        RuntimeError: On a CPU, if torch is older than 2.3.
    """

    def __init__(self, loss_scale: Union[str, float, dict] = 'dynamic', **kwargs: Any) -> None:
        first = kwargs['optimizer'].param_groups[0]['params'][0]
        if first.device.type != 'cpu':
            super().__init__(loss_scale, dtype=torch.float16, **kwargs)
            return
        # mmengine's own constructor requires an accelerator.
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = torch.float16
        fixed = isinstance(loss_scale, float)
        self._scale_update_param = loss_scale if fixed else None
        settings: Any = loss_scale
        if fixed:
            settings = dict(init_scale=loss_scale)
        elif loss_scale == 'dynamic':
            settings = {}
        self.loss_scaler = _cpu_scaler(**settings)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass of ``model`` under autocast to float16."""
        device = next(model.parameters()).device.type
        keep_norms_in_float32(device)
        with OptimWrapper.optim_context(self, model), torch.autocast(device, dtype=self.cast_dtype):
            yield


def _cpu_scaler(**kwargs: Any) -> Any:
    """Make a gradient scaler for CPUs."""
    if not hasattr(torch.amp, 'GradScaler'):
        raise RuntimeError(
            'float16 on a CPU needs torch 2.3 or newer, which '
            f'has a gradient scaler for it, but this is torch '
            f'{torch.__version__}; bfloat16 needs none'
        )
    return torch.amp.GradScaler('cpu', **kwargs)
