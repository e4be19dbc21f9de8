"""torch_npu's fused AdamW with a flag on the device that skips a step, and gradients that are gathered at once."""

import math
from functools import lru_cache
from typing import Any, Callable, Dict, List, Optional, Union

import torch
from torch import Tensor


def guarded(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Make an optimizer of torch_npu skip steps by a flag.

    Args:
        optimizer (torch_npu.optim.NpuFusedAdamW): Its class is replaced by the subclass from
            :func:`guard_fused_adamw`.

    Returns:
        torch.optim.Optimizer: The same object.
    """
    base: Any = type(optimizer)
    optimizer.__class__ = guard_fused_adamw(base)
    return optimizer


def _factor(found_inf: Tensor, value: float) -> Tensor:
    """``value`` (at most 1), or 1 if the step is skipped."""
    return found_inf.clamp(min=value)


def _weight(found_inf: Tensor, value: float) -> Tensor:
    """``value``, or 0 if the step is skipped."""
    return (1 - found_inf) * value


def _addend(found_inf: Tensor, value: float) -> Tensor:
    """``value``, or infinity if the step is skipped."""
    return (found_inf / (1 - found_inf)).clamp(min=value)


@lru_cache(maxsize=None)
def guard_fused_adamw(base: type) -> type:
    """Make torch_npu's fused AdamW obey ``found_inf``, as torch's does.

    torch_npu keeps parameters, gradients and states of a group in one tensor each, and steps with a few plain operators
    on these tensors. Here fewer operators compute the same up to rounding. If ``found_inf`` is 1, the factors in them
    become values that change nothing. The host reads no value. The cost is one more operator over the gradients and a
    few on scalars. The fused operators (torch_npu's ``_fused_adamw_``, ``mx_driving.fused_adamw_custom``) take no such
    flag: with them the host would have to wait for it, or all states be copied before each step.

    The base class has the backward pass add each gradient to its place in the tensor of its group, which had been set
    to 0. Here the backward pass makes gradients, which may be views of the buckets that are summed over the ranks, and
    one operator copies all of them to their places before they are read.

    The formula is Algorithm 2 of `Decoupled Weight Decay Regularization <https://arxiv.org/abs/1711.05101>`_.

    Args:
        base (type): ``torch_npu.optim.NpuFusedAdamW``.

    Returns:
        type: A subclass with the attributes ``found_inf`` (Tensor, optional: 0. or 1., scalar, float32, on the device)
        and ``takes_found_inf``.
    """

    class GuardedNpuFusedAdamW(base):
        """See :func:`guard_fused_adamw`."""

        found_inf: Optional[Tensor] = None
        _places: Optional[Dict[Tensor, Tensor]] = None  # of gradients in the tensors of their groups, by parameter

        def _maybe_init_combined_params_and_grads(self) -> None:
            if self.is_params_grads_combined:
                return
            params = [param for group in self.param_groups for param in group['params'] if param.grad is not None]
            for param in params:
                # The base class reserves the storage of each gradient. That of a view of a bucket is the bucket.
                param.grad = param.grad.clone()
            super()._maybe_init_combined_params_and_grads()
            if self.is_params_grads_combined:
                self._places = {param: param.grad for param in params}

        @property
        def grads_all_group_combined(self) -> List[Optional[Tensor]]:
            """Gradients by dtype, gathered from the parameters."""
            if self._places:
                self._gather(self._places)
            return self.__dict__['grads_all_group_combined']

        @grads_all_group_combined.setter
        def grads_all_group_combined(self, value: List[Optional[Tensor]]) -> None:
            self.__dict__['grads_all_group_combined'] = value

        @torch.no_grad()
        def _gather(self, places: Dict[Tensor, Tensor]) -> None:
            moved = {}
            for param, place in places.items():
                if param.grad is None:
                    place.zero_()
                elif param.grad is not place:
                    moved[place] = param.grad
                param.grad = place
            if moved:
                torch._foreach_copy_(list(moved), list(moved.values()))

        def zero_grad(self, set_to_none: bool = True) -> None:
            """Forget the gradients."""
            torch.optim.Optimizer.zero_grad(self, set_to_none=True)

        @property
        def takes_found_inf(self) -> bool:
            """Whether ``found_inf`` is obeyed; False with ``amsgrad``."""
            return not any(group['amsgrad'] for group in self.param_groups)

        def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
            """Load a state, also one of torch's AdamW, from a training on another kind of device.

            torch's AdamW counts its steps in tensors, and the base class adds to the tensor of a group's first
            parameter twice a step. So the counts become numbers, which the base class copies.
            """
            super().load_state_dict(state_dict)
            for state in self.state.values():
                state['step'] = int(state['step'])

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            """Take a step, unless ``found_inf`` is 1."""
            self._maybe_init_combined_params_and_grads()
            combined = self.grads_all_group_combined
            if self.found_inf is not None:
                bad = self.found_inf.bool()
                for grads in combined:
                    if grads is not None:
                        grads.masked_fill_(bad, 0)
            # Most groups use the same values, so each is computed once.
            self._scalars: Dict[tuple, Tensor] = {}
            return super().step(closure)

        def _scalar(self, value: float, or_skip: Callable[[Tensor, float], Tensor]) -> Union[float, Tensor]:
            """``value``; while a step is guarded, a scalar on the device that ``or_skip`` makes of it."""
            if self.found_inf is None:
                return value
            if (value, or_skip) not in self._scalars:
                self._scalars[value, or_skip] = or_skip(self.found_inf, value)
            return self._scalars[value, or_skip]

        def _group_step(self, group_index: int) -> None:
            group = self.param_groups[group_index]
            if group['amsgrad']:
                super()._group_step(group_index)
                return
            for param in group['params']:
                if param.grad is not None:
                    self.state[param]['step'] += 1
            beta1, beta2 = group['betas']
            decay = group['lr'] * group['weight_decay']
            for params, grads, state in zip(
                self.combined_params_indexed_by_group[group_index],
                self.combined_grads_indexed_by_group[group_index],
                self.combined_param_states_indexed_by_group[group_index],
            ):
                if params is None or grads is None:
                    continue
                state['step'] += 1
                root = math.sqrt(1 - beta2 ** state['step'])
                mean, square = state['exp_avg'], state['exp_avg_sq']
                if decay:
                    params.mul_(self._scalar(1 - decay, _factor))
                mean.lerp_(grads, self._scalar(1 - beta1, _weight))
                square.mul_(self._scalar(beta2, _factor)).addcmul_(grads, grads, value=1 - beta2)
                # mean / (sqrt(square) / root + eps), with the root in the two scalars.
                denominator = square.sqrt().add_(self._scalar(group['eps'] * root, _addend))
                params.addcdiv_(mean, denominator, value=-group['lr'] * root / (1 - beta1 ** state['step']))

        def retract_step_count(self) -> None:
            """Take back the host's count of a step that was skipped."""
            for state in self.state.values():
                state['step'] -= 1
            for states in self.combined_param_states_indexed_by_group or ():
                for state in states or ():
                    state['step'] -= 1

    return GuardedNpuFusedAdamW
