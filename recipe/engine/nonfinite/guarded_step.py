"""An optimizer step that leaves everything as it was if the gradient is bad.

The norm of the gradient decides. It is the same on all ranks, since gradients
are added up before; a loss that is not finite makes it so too, see
:class:`SpreadNonFinite`.

Reading the norm before each step would have the host wait for the device.
Instead the device is told to do nothing where the norm is not finite: fused
optimizers take a flag for that, which torch's gradient scaler uses
(``found_inf``). The host learns of it later, and nothing is lost by then.
"""

import math
from typing import Any, Callable, List, Optional

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor


class GuardedStep:
    """Stands between an optimizer wrapper and its optimizer.

    Where the optimizer knows no ``found_inf``, the norm is read before each
    step, for which the host waits. A wrapper with a gradient scaler is only
    listened to, where it clips by norm: the scaler leaves out steps by itself.

    Args:
        wrapper (OptimWrapper): Its ``backward`` and ``clip_func``, and its
            optimizer's ``step``, are wrapped.
        before_step (Callable): Called before each step; may raise.

    Attributes:
        scales (bool): Whether a gradient scaler leaves out bad steps.
        on_device (bool): Whether the device leaves them out by itself.
    """

    def __init__(self, wrapper: OptimWrapper, before_step: Callable[[], None]) -> None:
        self._before_step = before_step
        self._wrapper = wrapper
        self._optimizer = wrapper.optimizer
        self._norm: Optional[Tensor] = None
        self.scales = hasattr(wrapper, 'loss_scaler')
        self.on_device = takes_found_inf(self._optimizer)
        if self._clips_by_norm():
            holder = wrapper.clip_func
            # DeferredRuntimeInfoHook's hands on nothing; the norm is inside
            if hasattr(holder, 'clip'):
                holder.clip = self._noting(holder.clip)
            else:
                wrapper.clip_func = self._noting(holder)
        wrapper.backward = _spreading(wrapper.backward)
        self._step = self._optimizer.step
        if not self.scales:
            self._optimizer.step = self._guarded

    def _clips_by_norm(self) -> bool:
        return bool(self._wrapper.clip_grad_kwargs) and self._wrapper.grad_name == 'grad_norm'

    def _noting(self, clip: Callable) -> Callable:
        """``clip``, with the norm that it returns noted."""

        def noting(*args: Any, **kwargs: Any) -> Tensor:
            self._norm = torch.as_tensor(clip(*args, **kwargs)).detach()
            return self._norm

        return noting

    def take_norm(self) -> Optional[Tensor]:
        """The norm of the last step, once; None where there was no step."""
        norm, self._norm = self._norm, None
        return norm

    def retract(self) -> None:
        """Called when the host learns that the device left out a step."""
        if not self.scales and hasattr(self._optimizer, 'retract_step_count'):
            self._optimizer.retract_step_count()

    @torch.no_grad()
    def _guarded(self, *args: Any, **kwargs: Any) -> Any:
        self._before_step()
        if self._norm is None:
            self._norm = total_norm(self._parameters())
        if not self.on_device:
            norm = float(self._norm)
            self._norm = torch.tensor(norm)  # on the host, no second read
            if not math.isfinite(norm):
                return None
            return self._step(*args, **kwargs)
        # 0 or, where 0 * norm is NaN, 1
        self._optimizer.found_inf = torch.nan_to_num(self._norm.to(torch.float32) * 0, nan=1.0)
        try:
            return self._step(*args, **kwargs)
        finally:
            self._optimizer.found_inf = None

    def _parameters(self) -> List[Tensor]:
        return [param for group in self._optimizer.param_groups for param in group['params'] if param.grad is not None]


class SpreadNonFinite(torch.autograd.Function):
    """The identity, whose gradient is NaN if the value is not finite.

    The gradient of a loss that is infinite may be finite. Here it is not, so that all ranks, which share their
    gradients, notice the loss of one.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        ctx.save_for_backward(loss)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Pass the gradient on: bit by bit the same if the loss is finite."""
        (loss,) = ctx.saved_tensors
        return grad + loss * 0


def _spreading(backward: Callable) -> Callable:
    def spread_and_go_back(loss: Tensor, **kwargs: Any) -> None:
        backward(SpreadNonFinite.apply(loss), **kwargs)

    return spread_and_go_back


def takes_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether a step can be left out by a flag on the device."""
    return bool(getattr(optimizer, 'takes_found_inf', False) or getattr(optimizer, '_step_supports_amp_scaling', False))


def total_norm(params: List[Tensor]) -> Tensor:
    """Norm of the gradients of all parameters, as clipping computes it."""
    if not params:
        return torch.zeros(())
    grads: List[Any] = [param.grad for param in params]
    norms = torch._foreach_norm(grads)
    return torch.linalg.vector_norm(torch.stack(norms))
