"""An optimizer step that changes nothing if the gradient is not finite.

The norm of the gradient decides. It is the same on all ranks, because the gradients are summed over the ranks first. A
loss that is not finite makes the norm not finite as well, see :class:`SpreadNonFinite`.

If the host read the norm before each step, it would wait for the device. Instead a flag on the device (``found_inf``)
makes the fused optimizer skip the step. torch's gradient scaler uses the same flag. The host reads the norm later.

On CUDA the fused step also clips: it divides the gradients by a number, which is meant for the scale of a gradient
scaler. So clipping needs no pass over the gradients.
"""

import math
from typing import Any, Callable, List, Optional

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from recipe.models.execution import device_kind


class GuardedStep:
    """Guards the steps between an optimizer wrapper and its optimizer.

    If the optimizer does not take ``found_inf``, the host waits for the norm before each step. A gradient scaler skips
    steps by itself: then the guard only records the norm, if the wrapper clips by norm.

    Args:
        wrapper (OptimWrapper): Its ``backward`` and ``clip_func`` and its optimizer's ``step`` are wrapped.
        before_step (Callable): Called before each guarded step; may raise.

    Attributes:
        clips_in_step (bool): Whether the optimizer's step clips the gradients.
        scales (bool): Whether a gradient scaler skips bad steps.
        on_device (bool): Whether the optimizer takes ``found_inf``, so that the device skips bad steps.
    """

    def __init__(self, wrapper: OptimWrapper, before_step: Callable[[], None]) -> None:
        self._before_step = before_step
        self._wrapper = wrapper
        self._optimizer = wrapper.optimizer
        self._norm: Optional[Tensor] = None
        self.scales = hasattr(wrapper, 'loss_scaler')
        self.on_device = takes_found_inf(self._optimizer)
        self._divisor: Optional[Tensor] = None
        self.clips_in_step = False
        if self._clips_by_norm():
            holder = wrapper.clip_func
            # The clip function of DeferredRuntimeInfoHook returns None; the one inside it returns the norm.
            clip = getattr(holder, 'clip', holder)
            self.clips_in_step = self._can_clip_in_step(clip)
            noting = self._noting(self._note_divisor if self.clips_in_step else clip)
            if hasattr(holder, 'clip'):
                holder.clip = noting
            else:
                wrapper.clip_func = noting
        wrapper.backward = _spreading(wrapper.backward)
        self._step = self._optimizer.step
        if not self.scales:
            self._optimizer.step = self._guarded

    def _clips_by_norm(self) -> bool:
        return bool(self._wrapper.clip_grad_kwargs) and self._wrapper.grad_name == 'grad_norm'

    def _can_clip_in_step(self, clip: Callable) -> bool:
        device = self._optimizer.param_groups[0]['params'][0].device
        options = dict(self._wrapper.clip_grad_kwargs)
        return (
            device_kind(device) == 'cuda'
            and clip is torch.nn.utils.clip_grad_norm_
            and options.pop('norm_type', 2) == 2
            and set(options) == {'max_norm'}
            and bool(getattr(self._optimizer, '_step_supports_amp_scaling', False))
            and not self.scales  # it divides by its own number
        )

    @torch.no_grad()
    def _note_divisor(self, params: List[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
        """In place of ``clip_grad_norm_``, which multiplies the gradients by the inverse of this divisor."""
        norm = total_norm([param for param in params if param.grad is not None])
        self._divisor = ((norm + 1e-6) / max_norm).clamp(min=1.0).to(torch.float32)
        return norm

    def _noting(self, clip: Callable) -> Callable:
        """``clip`` that also records the norm that it returns."""

        def noting(*args: Any, **kwargs: Any) -> Tensor:
            if self.scales:  # its optimizer's step is not wrapped
                self._before_step()
            self._norm = torch.as_tensor(clip(*args, **kwargs)).detach()
            return self._norm

        return noting

    def take_norm(self) -> Optional[Tensor]:
        """Return the norm of the last step and forget it; None if there was no step since the last call."""
        norm, self._norm = self._norm, None
        return norm

    def retract(self) -> None:
        """Take back the step count of a step that the device skipped, once the host knows of it."""
        if not self.scales and hasattr(self._optimizer, 'retract_step_count'):
            self._optimizer.retract_step_count()

    @torch.no_grad()
    def _guarded(self, *args: Any, **kwargs: Any) -> Any:
        self._before_step()
        if self._norm is None:
            self._norm = total_norm(self._parameters())
        if not self.on_device:
            norm = float(self._norm)
            self._norm = torch.tensor(norm)  # on the host, so reading it again is free
            if not math.isfinite(norm):
                return None
            return self._step(*args, **kwargs)
        # 0 if the norm is finite, else 1: 0 times infinity or NaN is NaN.
        self._optimizer.found_inf = torch.nan_to_num(self._norm.to(torch.float32) * 0, nan=1.0)
        if self._divisor is not None:
            self._optimizer.grad_scale, self._divisor = self._divisor, None
        try:
            return self._step(*args, **kwargs)
        finally:
            self._optimizer.found_inf = self._optimizer.grad_scale = None

    def _parameters(self) -> List[Tensor]:
        return [param for group in self._optimizer.param_groups for param in group['params'] if param.grad is not None]


class SpreadNonFinite(torch.autograd.Function):
    """The identity with a gradient that is NaN if the value is not finite.

    An infinite loss may have a finite gradient. This function makes the gradient NaN. The gradients are summed over the
    ranks, so all ranks notice the loss of one.
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
    """Whether the optimizer skips a step if a flag on the device (``found_inf``) is set."""
    return bool(getattr(optimizer, 'takes_found_inf', False) or getattr(optimizer, '_step_supports_amp_scaling', False))


def total_norm(params: List[Tensor]) -> Tensor:
    """2-norm of all gradients together, a scalar; the same computation as in gradient clipping."""
    if not params:
        return torch.zeros(())
    grads: List[Any] = [param.grad for param in params]
    norms = torch._foreach_norm(grads)
    return torch.linalg.vector_norm(torch.stack(norms))
