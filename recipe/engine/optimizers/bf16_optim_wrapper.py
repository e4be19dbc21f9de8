"""Mixed precision in bfloat16."""

from contextlib import contextmanager, nullcontext
from typing import Any, ContextManager, Iterator

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from recipe.engine.optimizers.float32_norms import keep_norms_in_float32
from recipe.engine.optimizers.half_products import products_for


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16, on every device and without a scaler.

    bfloat16 has the exponent range of float32, so gradients do not underflow
    and need no loss scaling. mmengine's ``AmpOptimWrapper`` makes a scaler
    for it all the same and refuses to run on a CPU.
    """

    products: ContextManager = nullcontext()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass of ``model`` under autocast to bfloat16."""
        device = next(model.parameters()).device.type
        keep_norms_in_float32(device)
        self.products = products_for(model, torch.bfloat16)
        with super().optim_context(model), self.products, torch.autocast(device, dtype=torch.bfloat16):
            yield

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Compute the gradients, with products as in the forward pass."""
        with self.products:
            super().backward(loss, **kwargs)
