"""Ends a training whose validations do not improve, also across resumes."""

from typing import Any, Dict, Optional

from mmengine.hooks import EarlyStoppingHook
from mmseg.registry import HOOKS

_STATE = 'early_stopping'
# Less than the last digit of a logged score, in percent. An equal score is no improvement.
_LEAST = 1e-9


@HOOKS.register_module()
class ResumableEarlyStoppingHook(EarlyStoppingHook):
    """Ends the training after ``patience`` validations in a row without a better score.

    Unlike :class:`mmengine.hooks.EarlyStoppingHook`, its state is part of the checkpoints. So a resumed run counts on,
    and a run that has ended so trains no further when it is resumed with the same patience.

    Args:
        patience (int): Validations without a better score.
        monitor (str): Name of the score. Defaults to ``mIoU``.
        **kwargs: See :class:`mmengine.hooks.EarlyStoppingHook`.
    """

    # Before the checkpoint is written, which holds the state.
    priority = 'LOW'

    def __init__(self, patience: int, monitor: str = 'mIoU', **kwargs: Any) -> None:
        super().__init__(monitor, patience=patience, check_finite=False, **{'min_delta': _LEAST, **kwargs})

    def before_train(self, runner) -> None:
        """Take up the state of a resumed run.

        Args:
            runner (Runner): The runner of the training process.
        """
        state = runner.message_hub.runtime_info.get(_STATE)
        if state is None:
            return
        self.best_score, self.wait_count = state
        if self.wait_count >= self.patience:
            self._stop(runner)

    def after_val_epoch(self, runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Count the validation, and end the training if it is one too many.

        Args:
            runner (Runner): The runner of the training process.
            metrics (dict, optional): Results of the validation. Defaults to None.
        """
        # A float32 would swallow min_delta, so an equal score would count as a better one.
        super().after_val_epoch(runner, {name: float(value) for name, value in (metrics or {}).items()})
        runner.message_hub.update_info(_STATE, [float(self.best_score), self.wait_count])
        if self.wait_count >= self.patience:
            self._stop(runner)

    def _stop(self, runner) -> None:
        runner.train_loop.stop_training = True
        runner.logger.info(
            f'Early stop at iteration {runner.iter}: {self.wait_count} validations in a row without more than '
            f'{self.best_score:.2f} {self.monitor}.'
        )
