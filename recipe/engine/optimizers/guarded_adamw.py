"""torch_npu's fused AdamW with a flag on the device that skips a step, and gradients that are gathered at once."""

import math
from functools import lru_cache
from typing import Any, Dict, List, Optional, Union

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


@lru_cache(maxsize=None)
def guard_fused_adamw(base: type) -> type:
    """Make torch_npu's fused AdamW obey ``found_inf``, as torch's does.

    torch_npu keeps parameters, gradients and states of a group in one tensor each, and steps with a few plain operators
    on these tensors. If ``found_inf`` is 1, the factors in these operators become values that change nothing. If it is
    0, the step is bit by bit that of the base class. The host reads no value. The cost is one more operator over the
    gradients and a few on scalars.

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
            if self.found_inf is None:
                return super().step(closure)
            bad = self.found_inf.bool()
            for grads in combined:
                if grads is not None:
                    grads.masked_fill_(bad, 0)
            # 0, or infinity if the step is skipped.
            self._infinite = self.found_inf / (1 - self.found_inf)
            # Most groups use the same values, so each is computed once.
            self._factors: Dict[float, Tensor] = {}
            self._addends: Dict[float, Tensor] = {}
            return super().step(closure)

        def _factor(self, value: float) -> Union[float, Tensor]:
            """``value`` (at most 1), or 1 if the step is skipped."""
            if value == 1:
                return value
            if value not in self._factors:
                assert self.found_inf is not None, 'asked for only while a step is guarded'
                self._factors[value] = self.found_inf.clamp(min=value)
            return self._factors[value]

        def _addend(self, value: float) -> Tensor:
            """``value``, or infinity if the step is skipped."""
            if value not in self._addends:
                self._addends[value] = self._infinite.clamp(min=value)
            return self._addends[value]

        def _group_step(self, group_index: int) -> None:
            group = self.param_groups[group_index]
            if self.found_inf is None:
                super()._group_step(group_index)
                return
            for param in group['params']:
                if param.grad is not None:
                    self.state[param]['step'] += 1
            beta1, beta2 = group['betas']
            for params, grads, state in zip(
                self.combined_params_indexed_by_group[group_index],
                self.combined_grads_indexed_by_group[group_index],
                self.combined_param_states_indexed_by_group[group_index],
            ):
                if params is None or grads is None:
                    continue
                state['step'] += 1
                correction1 = 1 - beta1 ** state['step']
                correction2 = 1 - beta2 ** state['step']
                mean, square = state['exp_avg'], state['exp_avg_sq']
                params.mul_(self._factor(1 - group['lr'] * group['weight_decay']))
                mean.mul_(self._factor(beta1)).add_(grads, alpha=1 - beta1)
                square.mul_(self._factor(beta2)).addcmul_(grads, grads, value=1 - beta2)
                denominator = square.sqrt() / math.sqrt(correction2)
                denominator.add_(self._addend(group['eps']))
                params.addcdiv_(mean, denominator, value=-group['lr'] / correction1)

        def retract_step_count(self) -> None:
            """Take back the host's count of a step that was skipped."""
            for state in self.state.values():
                state['step'] -= 1
            for states in self.combined_param_states_indexed_by_group or ():
                for state in states or ():
                    state['step'] -= 1

    return GuardedNpuFusedAdamW
