"""Mixed precision in bfloat16."""

from contextlib import contextmanager
from typing import Iterator

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from recipe.engine.optimizers.float32_norms import keep_norms_in_float32


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16, on every device and without a gradient scaler.

    bfloat16 has the exponent range of float32, so gradients do not underflow and need no loss scaling. mmengine's
    ``AmpOptimWrapper`` makes a scaler nevertheless, and refuses to run on a CPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass of ``model`` under autocast to bfloat16."""
        device = next(model.parameters()).device.type
        keep_norms_in_float32(device)
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield
