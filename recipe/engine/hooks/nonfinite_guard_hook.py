"""Skips training steps whose loss or gradient is not finite, and ends the training."""

import math
import os.path as osp
from functools import partial
from typing import Any, Callable, NamedTuple, Optional

from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmseg.registry import HOOKS

from recipe.core.exit_status import NONFINITE
from recipe.data import random_state
from recipe.engine.late_values import LateValues
from recipe.engine.nonfinite import BadStep, GuardedStep, write_dump, write_weights
from recipe.engine.nonfinite.dump import weights_name
from recipe.engine.termination import TrainingEnded
from recipe.models.cost_faults import CostFaults, cost_faults_of
from recipe.models.upstream_matching import watch_matching

SKIPPED, OVERFLOWS = 'nonfinite_skipped', 'amp_overflows'


class _Pending(NamedTuple):
    """A step that was taken, or skipped by the device.

    Attributes:
        step: What a replay needs.
        norm: Norm of its gradient.
        outputs: Its loss terms by name, on the device.
        describe: Describes the matching costs that were not finite; None if all were.
    """

    step: BadStep
    norm: LateValues
    outputs: Optional[dict]
    describe: Optional[Callable[[], Optional[str]]]


@HOOKS.register_module()
class NonFiniteGuardHook(Hook):
    """Ends the training if a loss or the gradient is not finite.

    The step is skipped on all ranks: parameters and optimizer state stay as they were before it. Then the training ends
    with exit status 65. Each rank writes ``nonfinite/iter_<N>_rank_<R>.pth`` in the work directory, with the batch, the
    paths of its images, the losses and the random state. Rank 0 also writes the weights. With ``max_skips`` the first
    such steps of a run are skipped with a warning only.

    The host does not wait for the device. The gradient norm is the same on all ranks and decides on the device. It is
    copied to the host in the background. The host looks at it just before the step of the next iteration, or before a
    checkpoint or a validation. See :mod:`recipe.engine.nonfinite.guarded_step`.

    With a gradient scaler (fp16) a gradient that is not finite usually means that the scale is too large. The scaler
    skips the step and lowers the scale, and the hook counts these overflows. ``max_overflows`` in a row end the
    training.

    Args:
        max_skips (int): Steps to skip in the whole run, resumes included, before the training ends. Defaults to 0.
        max_overflows (int): Overflows in a row at which a training with a gradient scaler ends. Each halves the scale,
            which begins at 2^16. 40 of them bring it down to 2^-24. Defaults to 40.
    """

    # After RuntimeInfoHook, before the hooks that log and save.
    priority = 'HIGH'

    def __init__(self, max_skips: int = 0, max_overflows: int = 40) -> None:
        self.max_skips = max_skips
        self.max_overflows = max_overflows
        self._overflows_in_a_row = 0
        self._guard: Optional[GuardedStep] = None
        # None if the model matches nothing.
        self._cost_faults: Optional[CostFaults] = None
        # The iteration in progress.
        self._step: Optional[BadStep] = None
        # The last step, until the host has looked at its gradient norm.
        self._pending: Optional[_Pending] = None

    def before_train(self, runner) -> None:
        """Guard the optimizer.

        Args:
            runner (Runner): The runner of the training process.
        """
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            runner.logger.warning(f'{type(self).__name__} does nothing: it takes one optimizer, and there are several.')
            return
        if self._guard is None:
            self._guard = GuardedStep(runner.optim_wrapper, partial(self.settle, runner))
            self._cost_faults = cost_faults_of(runner.model) or watch_matching(runner.model)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the batch and the random state, which a replay needs.

        Args:
            runner (Runner): The runner of the training process.
            batch_idx (int): The iteration, counted from 0.
            data_batch (Any): Data from dataloader. Defaults to None.
        """
        if self._guard is not None:
            if self._cost_faults is not None:
                self._cost_faults.tolerates = True
            self._step = BadStep(
                batch_idx + 1, data_batch, random_state.capture(next(runner.model.parameters()).device)
            )

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None) -> None:
        """Send the gradient norm to the host.

        Args:
            runner (Runner): The runner of the training process.
            batch_idx (int): The iteration, counted from 0.
            data_batch (Any): Data from dataloader. Defaults to None.
            outputs (dict, optional): Loss terms. Defaults to None.
        """
        if self._guard is None:
            return
        describe = None
        if self._cost_faults is not None:  # outside an iteration, costs that are not finite raise an error
            self._cost_faults.tolerates = False
            describe = self._cost_faults.take()
        norm = self._guard.take_norm()
        step = self._step
        assert step is not None, 'before_train_iter notes the step'
        if norm is None:  # gradients are being accumulated
            return
        self.settle(runner)  # a gradient scaler without clipping calls nothing before its step
        self._pending = _Pending(step, LateValues(norm.reshape(1)), outputs, describe)
        if not (self._guard.on_device or self._guard.scales):
            self.settle(runner)  # the norm is on the host already

    def settle(self, runner) -> None:
        """Look at the last step's gradient norm, if it is pending, and act on it.

        Called before the next step, and before the parameters are saved or validated. The host waits until the device
        has computed the norm.

        Args:
            runner (Runner): The runner of the training process.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            (norm,) = pending.norm.read()
            self._judge(runner, pending, norm)

    def before_val_epoch(self, runner) -> None:
        """Settle the last step before the validation."""
        self.settle(runner)

    def after_train_epoch(self, runner, metrics: Any = None) -> None:
        """Settle the last step of the training."""
        self.settle(runner)

    def _judge(self, runner, pending: '_Pending', norm: float) -> None:
        """Skip the step or end the training if the norm is not finite; the same on all ranks."""
        if math.isfinite(norm):
            self._overflows_in_a_row = 0
            return
        guard = self._guard
        assert guard is not None, 'only a guarded step is judged'
        info = runner.message_hub
        step = pending.step
        if guard.scales:
            self._overflows_in_a_row += 1
            count = info.runtime_info.get(OVERFLOWS, 0) + 1
            info.update_info(OVERFLOWS, count)
            if self._overflows_in_a_row < self.max_overflows:
                runner.logger.info(
                    f'iteration {step.iteration}: overflow in fp16, the '
                    f'scaler leaves out the step and lowers the scale; {count}'
                    ' so far'
                )
                return
        guard.retract()
        step.grad_norm = norm
        step.losses = {name: float(value) for name, value in (pending.outputs or {}).items()}
        step.note = pending.describe() if pending.describe is not None else None
        what = self._describe(runner.rank, step)
        skipped = info.runtime_info.get(SKIPPED, 0)
        if skipped < self.max_skips and not guard.scales:
            info.update_info(SKIPPED, skipped + 1)
            if runner.rank == 0:
                runner.logger.warning(f'{what}. The step is skipped, {skipped + 1} of at most {self.max_skips}.')
            return
        self._end(runner, step, what)

    @staticmethod
    def _describe(rank: int, step: BadStep) -> str:
        """Name the ranks, loss terms and images that are not finite; a collective."""
        own = None
        if step.bad_terms() or step.note:
            terms = ', '.join(f'{name} {step.losses[name]}' for name in step.bad_terms()[:3])
            more = len(step.bad_terms()) - 3
            own = (
                f'rank {rank}: {terms or "the loss"}'
                + (f' and {more} more loss terms' if more > 0 else '')
                + (f' ({step.note})' if step.note else '')
                + ' with images '
                + (', '.join(step.images()) or 'unknown')
            )
        found = [one for one in all_gather_object(own) if one is not None]
        if not found:
            found = [
                f'all losses are finite, but the norm of the gradient is '
                f'{step.grad_norm}; images of rank {rank}: ' + (', '.join(step.images()) or 'unknown')
            ]
        return f'iteration {step.iteration} is not finite: ' + '; '.join(found)

    def _end(self, runner, step: BadStep, what: str) -> None:
        """Write the dumps and end the training; the same on all ranks."""
        folder = osp.join(runner.work_dir, 'nonfinite')
        try:
            if runner.rank == 0:
                write_weights(folder, step.iteration, runner)
            dump = write_dump(folder, step, runner.rank, get_world_size(), weights_name(step.iteration))
        except OSError as e:
            dump = f'not written ({e})'
        # A rank that ends makes the launcher end the others, so all ranks wait here until all have written.
        all_gather_object(dump)
        runner.logger.error(what)
        raise TrainingEnded(
            f'{what}; nothing was changed by that step. Dump for tools/replay_step.py: {dump}', NONFINITE
        )
