"""The train loop that resumes exactly."""

import logging
import os.path as osp
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.utils import calc_dynamic_intervals
from mmseg.registry import LOOPS

from recipe.data import random_state
from recipe.data.position_seeded_dataset import PositionSeededDataset
from recipe.data.resumable_sampler import ResumableInfiniteSampler
from recipe.engine import accumulation
from recipe.engine.loops.data_faults import UnreadableImages, as_one_line_error
from recipe.engine.loops.loader_deaths import send_errors_in_place_of_batches
from recipe.engine.loops.running_statistics import share_running_statistics
from recipe.engine.loops.step_times import StepTimes
from recipe.engine.loops.stop_request import StopRequest
from recipe.engine.precision import make_sums_repeatable
from recipe.engine.step_graph import StepGraph


@LOOPS.register_module()
class ResumableIterBasedTrainLoop(IterBasedTrainLoop):
    """Iteration-based training that resumes exactly from its last checkpoint.

    Upstream resumes by loading and discarding every past batch, and it does not restore the random states. This loop

    - starts the sampler after the samples that were used, so that no past sample is read;
    - restores the random state of each rank just before the first iteration;
    - seeds the augmentation of a sample by its position in the stream alone;
    - keeps validation and the start of loader processes from changing the random state of the training;
    - runs the validation that was due when the run was stopped;
    - saves and exits after the current iteration on SIGTERM (exit status 143) and on SIGUSR1 (138);
    - ends with a one-line error if a loader process dies or more images than ``max_unreadable`` cannot be read;
    - computes losses and gradients by a CUDA graph, if asked to;
    - computes each batch in ``accumulate`` parts, if asked to, and takes one optimizer step for all of them;
    - writes the time of each iteration to ``vis_data/steps.csv`` of the log folder.

    On a CPU the resumed run is bit by bit equal to a run that was never stopped. The loop needs
    ``ResumableInfiniteSampler`` and ``AtomicCheckpointHook``.

    Args:
        runner (Runner): The runner of the training process.
        dataloader (dict): Config of the data loader.
        max_iters (int): Total training iterations.
        val_begin (int): First iteration after which validation may run. Defaults to 1.
        val_interval (int): Iterations between validations. Defaults to 1000.
        dynamic_intervals (List[Tuple[int, int]], optional): Pairs of a milestone and the validation interval that is
            used from this milestone on. Defaults to None.
        max_unreadable (int): Most different images that each rank may replace because they cannot be read. Defaults to
            0: the first one ends the training.
        accumulate (int): Parts into which each batch of a rank is split. Their gradients are summed before the
            optimizer step. Iterations, schedules, logs and checkpoints count optimizer steps. Defaults to 1.
        graph (bool): Whether losses and gradients are computed by a CUDA graph, see :class:`StepGraph`. Defaults to
            False.

    Attributes:
        resumed_state (dict, optional): State from :meth:`state_dict` in the checkpoint that this run resumes from.

    Raises:
        TypeError: ``dataloader`` is not a config, or has another sampler.
    """

    def __init__(
        self,
        runner,
        dataloader: Dict,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: Optional[List[Tuple[int, int]]] = None,
        max_unreadable: int = 0,
        accumulate: int = 1,
        graph: bool = False,
    ) -> None:
        if not isinstance(dataloader, dict):
            raise TypeError(f'{type(self).__name__} builds the data loader from a config, but got {type(dataloader)}')
        dataset = dict(type=PositionSeededDataset, dataset=dataloader['dataset'], replace_unreadable=max_unreadable > 0)
        # Skip IterBasedTrainLoop.__init__: it starts the loader processes, which would load batches before the first
        # iteration of a resumed run is known.
        BaseLoop.__init__(self, runner, dict(dataloader, dataset=dataset))
        if not isinstance(self.dataloader.sampler, ResumableInfiniteSampler):
            raise TypeError(
                f'{type(self).__name__} needs train_dataloader.sampler.type='
                "'ResumableInfiniteSampler', but got "
                f'{type(self.dataloader.sampler).__name__}'
            )
        # Otherwise each iterator draws the seed of its processes from the training's random state.
        self.dataloader.generator = torch.Generator()
        self.dataloader.generator.manual_seed(self.dataloader.sampler.seed)

        self._max_iters = int(max_iters)
        assert self._max_iters == max_iters, f'`max_iters` should be a integer number, but get {max_iters}'
        self._max_epochs = 1  # for compatibility with EpochBasedTrainLoop
        self._epoch = 0
        self._iter = 0
        self.val_begin = val_begin
        self.val_interval = val_interval
        # This attribute will be updated by `EarlyStoppingHook`
        # when it is enabled.
        self.stop_training = False
        if hasattr(self.dataloader.dataset, 'metainfo'):
            self.runner.visualizer.dataset_meta = self.dataloader.dataset.metainfo
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(self.val_interval, dynamic_intervals)

        self.resumed_state: Optional[dict] = None
        self.accumulate = accumulate
        self.graph = graph
        self._step_graph: Optional[StepGraph] = None
        self._unreadable = UnreadableImages(max_unreadable)
        self._first_iter = 0
        self._training_random_state: Optional[dict] = None
        self._step_times: StepTimes  # made by begin()

    @property
    def _device(self) -> torch.device:
        """The device that this rank trains on."""
        return next(self.runner.model.parameters()).device

    @property
    def _samples_per_iter(self) -> int:
        """Samples per iteration on all ranks together."""
        return self.dataloader.batch_size * get_world_size()

    def run(self) -> torch.nn.Module:
        """Launch training."""
        with as_one_line_error(self._where):
            return self._run()

    def _where(self) -> str:
        return f'rank {self.runner.rank}, iteration {self._iter + 1}'

    def _run(self) -> torch.nn.Module:
        self.begin()
        validation_is_due = self._take_up_state()
        try:
            # Loader processes inherit the signal handlers, so these are set before the fork.
            with StopRequest(self._device) as stop_request:
                send_errors_in_place_of_batches()
                self._start_val_workers()
                self.dataloader_iterator = iter(self.dataloader)
                self._decide_current_val_interval()
                if validation_is_due and self._validates_now():
                    self._validate()
                self._run_iters(stop_request)
        finally:
            self._step_times.flush()

        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def begin(self) -> None:
        """Do the work before the first iteration that needs no data."""
        self.runner.call_hook('before_train')
        # In iteration-based training loop, we treat the whole training process
        # as a big epoch and execute the corresponding hook.
        self.runner.call_hook('before_train_epoch')
        if self._device.type == 'cpu' and not torch.are_deterministic_algorithms_enabled():
            make_sums_repeatable()
        self._step_times = StepTimes(
            osp.join(self.runner.log_dir, 'vis_data', 'steps.csv') if is_main_process() else None
        )
        self.runner.model.train()

    def ensure_train_mode(self) -> None:
        """Set the model to training mode if it is not in it.

        Upstream sets all modules in every iteration. Testing the model's own flag is enough, because a validation
        changes the mode of the whole model.
        """
        if not self.runner.model.training:
            self.runner.model.train()

    def _run_iters(self, stop_request: StopRequest) -> None:
        """Train up to the last iteration or a request to stop."""
        while self._iter < self._max_iters and not self.stop_training:
            self.ensure_train_mode()
            self._step_times.start()
            data_batch = next(self.dataloader_iterator)
            self._unreadable.count(data_batch, self.runner.logger.warning)
            self._step_times.data_ready()
            self.run_iter(data_batch)
            self._step_times.stop(self._iter)

            asked = stop_request.asked_for(self._iter)
            if asked is not None:
                # Stop before a validation, which may outlast the scheduler's grace period. The resumed run does it.
                self.runner.call_hook('save_before_stop')
                self.runner.logger.warning(f'{asked.name}: stopped after iteration {self._iter}.')
                raise SystemExit(128 + asked)
            self._decide_current_val_interval()
            if self._validates_now():
                self._validate()

    def run_iter(self, data_batch: Any) -> None:
        """Run one iteration: forward and backward over the batch, and one optimizer step.

        Args:
            data_batch (Any): Batch from the data loader.
        """
        if self.accumulate == 1 and not self.graph:
            super().run_iter(data_batch)
            return
        runner, optim_wrapper = self.runner, self.runner.optim_wrapper
        runner.call_hook('before_train_iter', batch_idx=self._iter, data_batch=data_batch)
        if self.graph:
            if self._step_graph is None:
                self._step_graph = StepGraph(runner.model, optim_wrapper)
            outputs = self._step_graph(data_batch)
        else:
            outputs = accumulation.forward_and_backward(
                runner.model, optim_wrapper, data_batch, self.accumulate, lambda: runner.call_hook('after_train_part')
            )
        optim_wrapper.step()
        if not self.graph:  # whose gradients stay where they are
            optim_wrapper.zero_grad()
        runner.call_hook('after_train_iter', batch_idx=self._iter, data_batch=data_batch, outputs=outputs)
        self._iter += 1

    def _start_val_workers(self) -> None:
        """Fork the loader processes of the validation before the training.

        Upstream forks them at the first validation. By then gloo's threads enter and leave Python when they release
        tensors. A process that is forked at such a moment can wait forever for CPython's lock on the list of threads
        (seen with 3.11, right after a checkpoint).
        """
        if self.runner.val_loop is None:
            return
        loader = self.runner.val_loop.dataloader
        if loader.num_workers and loader.persistent_workers:
            with random_state.preserved(self._device):
                iter(loader)

    def _validates_now(self) -> bool:
        """Whether validation follows the iterations done so far."""
        return (
            self.runner.val_loop is not None
            and self._iter >= self.val_begin
            and (self._iter % self.val_interval == 0 or self._iter == self._max_iters)
        )

    def _validate(self) -> None:
        """Validate, and restore the training's random state afterwards."""
        self._step_times.flush()
        share_running_statistics(self.runner.model)
        self._training_random_state = random_state.capture(self._device)
        try:
            self.runner.val_loop.run()
        finally:
            random_state.restore(self._training_random_state, self._device)
            self._training_random_state = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block from the iteration times."""
        if self._device.type != 'cpu':
            # Kernels that were launched before the block count as part of the iteration.
            getattr(torch, self._device.type).synchronize()
        with self._step_times.paused():
            yield

    def state_dict(self, iteration: int, validated: bool) -> Dict[str, Any]:
        """State that a checkpoint needs for an exact resume.

        It is a collective: all ranks have to call it.

        Args:
            iteration (int): Iterations done so far.
            validated (bool): Whether a validation that is due after this iteration is done.

        Returns:
            dict: Position in the sample stream, the settings that the stream depends on, and for each rank the random
            state and the images that could not be read.
        """
        sampler = self.dataloader.sampler
        state = self._training_random_state or random_state.capture(self._device)
        return dict(
            iter=iteration,
            validated=validated,
            position=sampler.start + (iteration - self._first_iter) * self._samples_per_iter,
            **self._stream_settings(),
            random_states=all_gather_object(state),
            unreadable=all_gather_object(self._unreadable.faults),
        )

    def _stream_settings(self) -> Dict[str, Any]:
        """Settings that decide which samples a rank gets from a given position on, and in which parts."""
        sampler = self.dataloader.sampler
        return dict(
            seed=sampler.seed,
            shuffle=sampler.shuffle,
            dataset_size=sampler.size,
            batch_size=self.dataloader.batch_size,
            world_size=sampler.world_size,
            accumulate=self.accumulate,
        )

    def _take_up_state(self) -> bool:
        """Restore the position in the sample stream and the random state of a resumed run.

        Returns:
            bool: True if a validation may be due after the resumed iteration and was not done.
        """
        self._first_iter = self._iter
        if self._iter == 0:
            return False
        sampler = self.dataloader.sampler
        state = self.resumed_state
        if state is None or state['iter'] != self._iter:
            sampler.start = self._iter * self._samples_per_iter
            if not self.runner._randomness_cfg.get('diff_rank_seed', False):
                # Runner.resume read the seed from the checkpoint after the sampler had been built.
                sampler.seed = self.runner.seed
            self._warn('the checkpoint was not written by AtomicCheckpointHook and holds no random state')
            return False

        state = {'accumulate': 1, **state}  # earlier versions did not accumulate
        sampler.start = state['position']
        sampler.seed = state['seed']
        changed = [
            f'{name} {state[name]} -> {value}'
            for name, value in self._stream_settings().items()
            if state[name] != value
        ]
        if changed:
            self._warn(', '.join(changed))
        if len(state['random_states']) == sampler.world_size:
            random_state.restore(state['random_states'][sampler.rank], self._device)
            if 'unreadable' in state:
                self._unreadable.faults = list(state['unreadable'][sampler.rank])
        return not state['validated']

    def _warn(self, why: str) -> None:
        """Warn that the resumed run differs from one that was never stopped."""
        print_log(
            f'Training goes on at iteration {self._iter} with the next '
            'samples, but not bit by bit as if it had never been stopped: '
            f'{why}.',
            logger='current',
            level=logging.WARNING,
        )
