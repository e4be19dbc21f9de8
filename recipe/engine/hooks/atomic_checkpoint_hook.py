"""Checkpoints that survive a kill and a full disk."""

import os
import os.path as osp
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import is_model_wrapper
from mmseg.registry import HOOKS

from recipe.core import files
from recipe.engine.checkpoint import (
    CheckpointError,
    check_file,
    contents,
    link_or_copy,
    misfit,
)
from recipe.engine.hooks.ema_hook import take_trained_weights
from recipe.engine.loops.resumable_loop import ResumableIterBasedTrainLoop
from recipe.engine.loops.running_statistics import share_running_statistics


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """Checkpoints that survive a kill and a full disk, and resume exactly.

    Upstream deletes an old checkpoint and then writes the new one in place. It saves no random states, and its best
    checkpoint holds no optimizer. This hook

    - writes to a temporary file, checks it, syncs it to the disk and renames it. Only then it deletes old checkpoints.
      At least two are always kept;
    - saves the state of :class:`ResumableIterBasedTrainLoop` and the random state of each rank;
    - saves the best checkpoint with all its content. It is a hard link to ``iter_N.pth`` if the file system has hard
      links;
    - saves again after a validation, so that the newest checkpoint holds its result and the best score;
    - logs an error and goes on training if a checkpoint cannot be written, unless it is the last one.

    Args:
        interval (int): Iterations between checkpoints. Defaults to -1, never.
        by_epoch (bool): Has to be False. Defaults to False.
        **kwargs: See :class:`mmengine.hooks.CheckpointHook`. Checkpoints are local files: ``backend_args`` and
            ``file_client_args`` are refused.

    Raises:
        ValueError: ``by_epoch`` is True, or the checkpoints would not be local files.
    """

    last_ckpt: Optional[str]
    max_keep_ckpts: int

    def __init__(self, interval: int = -1, by_epoch: bool = False, **kwargs) -> None:
        super().__init__(interval=interval, by_epoch=by_epoch, **kwargs)
        if by_epoch:
            raise ValueError(f'{type(self).__name__} saves by iteration, set by_epoch=False')
        if self.backend_args or self.file_client_args:
            raise ValueError(f'{type(self).__name__} writes local files only')
        if 0 < self.max_keep_ckpts < 2:
            self.max_keep_ckpts = 2
        # The last iteration whose checkpoint was due, and the last one whose checkpoint was written.
        self._due_step: Optional[int] = None
        self._saved_step: Optional[int] = None
        self._loop_state: Optional[dict] = None

    def before_train(self, runner) -> None:
        """Make the checkpoint folder and remove what a killed run left there.

        Args:
            runner (Runner): The runner of the training process.

        Raises:
            TypeError: The train loop is not a :class:`ResumableIterBasedTrainLoop`.
        """
        if not isinstance(runner.train_loop, ResumableIterBasedTrainLoop):
            raise TypeError(
                f'{type(self).__name__} needs train_cfg.type='
                f"'{ResumableIterBasedTrainLoop.__name__}', but got "
                f'{type(runner.train_loop).__name__}'
            )
        super().before_train(runner)
        info = runner.message_hub.runtime_info
        # A list, because upstream's deque drops the oldest checkpoint before the new one is written.
        self.keep_ckpt_ids: List[int] = [number for number in info.get('keep_ckpt_ids', []) if isinstance(number, int)]
        resumed = runner.train_loop.resumed_state
        if resumed is not None and resumed['iter'] == runner.iter and not resumed['validated']:
            # The pending validation runs first; then this checkpoint is saved again.
            self._due_step = self._saved_step = runner.iter
        if is_main_process():
            os.makedirs(self.out_dir, exist_ok=True)
            self._file_system = os.stat(self.out_dir).st_dev
            files.sweep(Path(self.out_dir), is_mine=True)
            self._remove(runner, info.get('superseded_ckpts', []))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the state of the train loop.

        Args:
            runner (Runner): The runner of the training process.
            checkpoint (dict): The checkpoint that will be written.
        """
        if self._loop_state is not None:
            checkpoint['train_loop'] = self._loop_state

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Give a resumed run's train loop its saved state.

        The saved optimizer state is changed to fit the parameter groups of this run. If this run keeps no moving
        average, the trained weights take the place of the average in the checkpoint.

        Args:
            runner (Runner): The runner of the training process.
            checkpoint (dict): The checkpoint that was read.

        Raises:
            CheckpointError: The checkpoint does not fit the run that resumes from it.
        """
        if not runner._resume:
            return  # load_from takes the weights only
        if not any(isinstance(hook, EMAHook) for hook in runner.hooks):
            take_trained_weights(checkpoint)
        if isinstance(runner._train_loop, ResumableIterBasedTrainLoop):
            self._require_fit(runner, checkpoint)
            runner._train_loop.resumed_state = checkpoint.get('train_loop')
        # Runner.resume loads onto the accelerator, but torch's optimizers keep their step counts on the CPU. A count on
        # the accelerator would cost one transfer per iteration. A fused optimizer moves the counts by itself.
        optimizer = checkpoint.get('optimizer') or {}
        for state in optimizer.get('state', {}).values():
            if isinstance(state.get('step'), torch.Tensor):
                state['step'] = state['step'].cpu()

    @staticmethod
    def _require_fit(runner, checkpoint: dict) -> None:
        """Check the checkpoint here as well, since a run can start without the launcher."""
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        wrong = contents.fault(checkpoint) or misfit(checkpoint, model, runner.optim_wrapper, runner.param_schedulers)
        if wrong is not None:
            raise CheckpointError(str(runner._load_from), wrong)

    def after_val_epoch(self, runner, metrics: Dict[str, float]) -> None:
        """Save the result of the validation, and the best checkpoint.

        Args:
            runner (Runner): The runner of the training process.
            metrics (dict): Evaluation results of all metrics.
        """
        if not isinstance(runner._train_loop, ResumableIterBasedTrainLoop):
            return
        if not metrics:
            runner.logger.warning('The validation has no result: there is no best checkpoint to choose.')
        improved = self._improved(runner, metrics) if metrics else []
        step = runner.iter
        if improved or self._due_step == step:
            self._save(runner, step, dict(epoch=runner.epoch, iter=step), improved=improved, validated=True)

    def save_before_stop(self, runner) -> None:
        """Save when training ends early on request.

        Args:
            runner (Runner): The runner of the training process.
        """
        if self._saved_step != runner.iter:
            self._save_checkpoint_with_step(runner, runner.iter, dict(epoch=runner.epoch, iter=runner.iter))

    def after_train(self, runner) -> None:
        """Make sure that the end of the training is saved.

        Args:
            runner (Runner): The runner of the training process.

        Raises:
            RuntimeError: The last checkpoint was due and could not be written.
        """
        if self._due_step == runner.iter and self._saved_step != self._due_step:
            raise RuntimeError(
                f'the last checkpoint, after iteration {runner.iter}, could '
                f'not be written to {self.out_dir}: make room there and '
                f'resume from {self.last_ckpt or "the start"}'
            )
        super().after_train(runner)

    def _improved(self, runner, metrics: dict) -> List[Tuple[str, float]]:
        """Key indicators with a new best score, and these scores."""
        if not self.save_best:
            return []
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        info = runner.message_hub.runtime_info
        improved = []
        for key, rule in zip(self.key_indicators, self.rules):
            best = info.get(self._best_key('best_score', key), self.init_value_map[rule])
            score = metrics[key]
            if score is not None and self.is_better_than[key](score, best):
                improved.append((key, float(score)))
        return improved

    def _best_key(self, name: str, key_indicator: str) -> str:
        """Upstream's name of a best score or checkpoint in the message hub."""
        if len(self.key_indicators) == 1:
            return name
        return f'{name}_{key_indicator}'

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        """Save a checkpoint that is due after an iteration."""
        self._due_step = step
        self._save(runner, step, meta)

    def _save(
        self, runner, step: int, meta: dict, improved: Sequence[Tuple[str, float]] = (), validated: bool = False
    ) -> None:
        """Save ``iter_<step>.pth`` and the best checkpoints on rank 0.

        Args:
            runner (Runner): The runner of the training process.
            step (int): Iterations done so far.
            meta (dict): ``epoch`` and ``iter`` of the checkpoint.
            improved (Sequence[Tuple[str, float]]): Key indicators for which this is the best checkpoint, and their
                scores. Defaults to ().
            validated (bool): Whether the validation after this iteration is done. Defaults to False.
        """
        # NonFiniteGuardHook reads here whether the last step was finite.
        runner.call_hook('settle')
        hub = runner.message_hub
        before = dict(hub.runtime_info)
        path = osp.join(self.out_dir, self.filename_tmpl.format(step))
        with runner.train_loop.paused():
            share_running_statistics(runner.model)
            hub.update_info('last_ckpt', path)
            best_paths = self._note_best(hub, path, improved)
            kept, expired = self._note_kept(hub, step)
            # A collective: all ranks have to call it.
            self._loop_state = runner.train_loop.state_dict(step, validated)
            failure: List[Optional[str]] = [None]
            if is_main_process():
                try:
                    # The best checkpoint is written first. If the process is killed before iter_N.pth is replaced, the
                    # old iter_N.pth makes the resumed run validate again.
                    self._write(runner, [*best_paths, path], meta)
                except (OSError, CheckpointError) as e:
                    failure = [str(e)]
            self._loop_state = None
            # Without this the other ranks would record a checkpoint and a best score that rank 0 does not have.
            broadcast_object_list(failure)
            if failure[0] is not None:
                hub.runtime_info.clear()
                hub.runtime_info.update(before)
                if is_main_process():
                    runner.logger.error(
                        f'{path} could not be written ({failure[0]}). The newest whole checkpoint is {self.last_ckpt}.'
                    )
                return

            self.last_ckpt = path
            self._saved_step = step
            self.keep_ckpt_ids = kept
            if is_main_process():
                self._point_to(runner, path)
                self._remove(
                    runner, [self.filename_tmpl.format(old) for old in expired] + hub.get_info('superseded_ckpts')
                )

        for (key, score), best_path in zip(improved, best_paths):
            self._set_best_path(key, best_path)
            runner.logger.info(
                f'The best checkpoint with {score:0.4f} {key} at {step} iter is saved to {osp.basename(best_path)}.'
            )

    def _note_best(self, hub, path: str, improved: Sequence[Tuple[str, float]]) -> List[str]:
        """Enter best scores and checkpoints into the message hub.

        Returns:
            List[str]: Path of the best checkpoint for each of ``improved``.
        """
        best_paths = []
        superseded = []
        for key, score in improved:
            name = f'best_{key}_{osp.basename(path)}'.replace('/', '_')
            old = hub.runtime_info.get(self._best_key('best_ckpt', key))
            # Compare names, because the folder may have been moved.
            if old and osp.basename(old) != name:
                superseded.append(osp.basename(old))
            best_paths.append(osp.join(self.out_dir, name))
            hub.update_info(self._best_key('best_score', key), score)
            hub.update_info(self._best_key('best_ckpt', key), best_paths[-1])
        # If the process is killed before it has removed these, the resumed run removes them.
        hub.update_info('superseded_ckpts', superseded)
        return best_paths

    def _note_kept(self, hub, step: int) -> Tuple[List[int], List[int]]:
        """Enter the kept checkpoints into the message hub.

        Returns:
            Tuple[List[int], List[int]]: Iterations whose checkpoints are kept, and iterations whose checkpoints are
            removed once the new one is written. Both are entered: if this process is killed before the removal, a
            resumed run removes them.
        """
        if self.max_keep_ckpts <= 0:
            return [], []
        known = list(self.keep_ckpt_ids)
        if step not in known:
            known.append(step)
        hub.update_info('keep_ckpt_ids', known)
        return known[-self.max_keep_ckpts :], known[: -self.max_keep_ckpts]

    def _set_best_path(self, key: str, path: str) -> None:
        """Set the attributes from which upstream publishes the best checkpoint."""
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[key] = path

    def _write(self, runner, paths: List[str], meta: dict) -> None:
        """Write a checkpoint to the first path, then link or copy it to the others."""
        # If the mount has gone, mmengine would make the folder again on another disk.
        if os.stat(self.out_dir).st_dev != self._file_system:
            raise OSError(f'{self.out_dir} is on another file system than when the training began: a mount has gone')
        with files.whole(Path(paths[0]), check_file, to_disk=True) as partial:
            runner.save_checkpoint(
                *osp.split(partial),
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=False,
                **self.args,
            )
        for path in paths[1:]:
            link_or_copy(paths[0], path)

    def _point_to(self, runner, path: str) -> None:
        """Write the newest checkpoint's path into ``last_checkpoint``, which mmengine reads to resume."""
        try:
            with files.whole(Path(runner.work_dir, 'last_checkpoint'), to_disk=True) as partial:
                partial.write_text(path)
        except OSError as e:
            runner.logger.warning(f'last_checkpoint could not be written: {e}')

    def _remove(self, runner, names: List[str]) -> None:
        """Remove checkpoints of this run that are no longer needed.

        The names come from a checkpoint file, which may be of unknown origin: names outside the folder are ignored.
        """
        for name in contents.own_checkpoints(names):
            try:
                os.remove(osp.join(self.out_dir, name))
            except FileNotFoundError:
                pass
            except OSError as e:
                runner.logger.warning(f'{name} could not be removed: {e}')
