"""Steps that are not finite are left out, and end the training."""

import math
import os.path as osp
from functools import partial
from typing import Any, Callable, Optional

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmseg.registry import HOOKS

from recipe.core.exit_status import NONFINITE
from recipe.data import random_state
from recipe.engine.host_read import host_read_of
from recipe.engine.nonfinite import BadStep, GuardedStep, write_dump, write_weights
from recipe.engine.nonfinite.dump import weights_name
from recipe.engine.termination import TrainingEnded

SKIPPED, OVERFLOWS = 'nonfinite_skipped', 'amp_overflows'


@HOOKS.register_module()
class NonFiniteGuardHook(Hook):
    """Ends the training where a loss or the gradient is not finite.

    The step is left out on all ranks: parameters and the optimizer's state
    stay as they were before it. Then the training ends with exit status 65,
    and each rank leaves ``nonfinite/iter_<N>_rank_<R>.pth`` in the work
    directory, with the batch, its images, the losses and the random state;
    rank 0 writes the weights beside. Or, if that is asked for, so many steps
    of a run are skipped with a warning.

    It costs no host synchronisation: the norm of the gradient, which says it
    for all ranks, decides on the device, and comes to the host with the
    matching costs of the next iteration, or before a checkpoint or a
    validation. See :mod:`recipe.engine.nonfinite.guarded_step`.

    With a gradient scaler (fp16) a gradient that is not finite is a matter of
    the scale: the scaler leaves out the step and lowers the scale, and the
    hook counts. Only many in a row end the training.

    Args:
        max_skips (int): Steps to leave out in the whole run, over resumes,
            before the training ends. Defaults to 0.
        max_overflows (int): Overflows in a row that a gradient scaler is
            given. Each halves the scale, which begins at 2^16 and has left
            the range of normal numbers after 40. Defaults to 40.
    """

    # behind RuntimeInfoHook, before what logs and saves
    priority = 'HIGH'

    def __init__(self, max_skips: int = 0, max_overflows: int = 40) -> None:
        self.max_skips = max_skips
        self.max_overflows = max_overflows
        self._overflows_in_a_row = 0
        self._guard: Optional[GuardedStep] = None
        # the model's own read of an iteration, None if it has none
        self._host_read: Optional[Any] = None
        # the iteration in progress
        self._step: Optional[BadStep] = None
        self._bad_costs: Optional[str] = None
        # the last step, as long as it is not known how it went
        self._pending: Optional[Callable] = None
        self._pending_norm: Optional[torch.Tensor] = None

    def before_train(self, runner) -> None:
        """Guard the optimizer.

        Args:
            runner (Runner): The runner of the training process.
        """
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            runner.logger.warning(f'{type(self).__name__} does nothing: it takes one optimizer, and there are several.')
            return
        if self._guard is None:
            # Without a matching nothing has read meanwhile how the step before
            # went.
            self._guard = GuardedStep(runner.optim_wrapper, partial(self.settle, runner))
            self._host_read = host_read_of(runner.model)

    def _note_bad_costs(self, fault: str) -> None:
        if self._bad_costs is None:
            self._bad_costs = fault

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep what a replay would need.

        Args:
            runner (Runner): The runner of the training process.
            batch_idx (int): The iteration, counted from 0.
            data_batch (Any): Data from dataloader. Defaults to None.
        """
        self._bad_costs = None
        if self._guard is not None:
            if self._host_read is not None:
                self._host_read.on_bad_costs = self._note_bad_costs
            self._step = BadStep(
                batch_idx + 1, data_batch, random_state.capture(next(runner.model.parameters()).device)
            )

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None) -> None:
        """Send the norm of the gradient on its way to the host.

        Args:
            runner (Runner): The runner of the training process.
            batch_idx (int): The iteration, counted from 0.
            data_batch (Any): Data from dataloader. Defaults to None.
            outputs (dict, optional): Loss terms. Defaults to None.
        """
        if self._guard is None:
            return
        if self._host_read is not None:  # outside an iteration it is an error
            self._host_read.on_bad_costs = None
        norm = self._guard.take_norm()
        step = self._step
        assert step is not None, 'before_train_iter notes the step'
        step.note = self._bad_costs
        if norm is None:  # gradients are being accumulated
            return
        self.settle(runner)  # with a gradient scaler, which does not ask

        def arrived(values) -> None:
            self._pending = None
            self._judge(runner, step, outputs, float(values[0]))

        self._pending, self._pending_norm = arrived, norm.reshape(1)
        if self._host_read is not None and norm.device == next(runner.model.parameters()).device:
            self._host_read.join(self._pending_norm, arrived)
        if not (self._guard.on_device or self._guard.scales):
            self.settle(runner)  # it has been read before the step anyway

    def settle(self, runner) -> None:
        """Find out how the last step went; the host waits for the device.

        Called before anything is made of the parameters.

        Args:
            runner (Runner): The runner of the training process.
        """
        arrived, norm = self._pending, self._pending_norm
        if arrived is None:
            return
        assert norm is not None, 'a step is pending together with its norm'
        if self._host_read is not None:
            self._host_read.leave(arrived)
        arrived(norm.tolist())

    def before_val_epoch(self, runner) -> None:
        """Find out how the last step went."""
        self.settle(runner)

    def after_train_epoch(self, runner, metrics: Any = None) -> None:
        """Find out how the last step went."""
        self.settle(runner)

    def _judge(self, runner, step: BadStep, outputs: Any, norm: float) -> None:
        """Do what is to be done after a step; the same on all ranks."""
        if math.isfinite(norm):
            self._overflows_in_a_row = 0
            return
        guard = self._guard
        assert guard is not None, 'only a guarded step is judged'
        info = runner.message_hub
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
        step.losses = {name: float(value) for name, value in (outputs or {}).items()}
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
        """Say on which rank, and in which loss term, it began."""
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
        """Leave dumps and end the training; the same on all ranks."""
        folder = osp.join(runner.work_dir, 'nonfinite')
        try:
            if runner.rank == 0:
                write_weights(folder, step.iteration, runner)
            dump = write_dump(folder, step, runner.rank, get_world_size(), weights_name(step.iteration))
        except OSError as e:
            dump = f'not written ({e})'
        # nobody leaves, and has the others ended, before all have written
        all_gather_object(dump)
        runner.logger.error(what)
        raise TrainingEnded(
            f'{what}; nothing was changed by that step. Dump for tools/replay_step.py: {dump}', NONFINITE
        )
