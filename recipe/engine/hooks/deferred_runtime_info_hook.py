"""Losses and gradient norms for the log, read from the device only when they are logged."""

from typing import Any, Callable, Optional

import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper
from mmseg.registry import HOOKS

from recipe.engine.deferred_scalars import DeferredHistoryBuffer, DeferredScalars


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """Records losses and gradient norms without reading them from the device.

    The log is the same as with :class:`mmengine.hooks.RuntimeInfoHook`, but the host waits for the device only when a
    line is logged. Set it as ``default_hooks.runtime_info``.
    """

    def before_train(self, runner) -> None:
        """Take over the histories of a resumed run.

        Args:
            runner (Runner): The runner of the training process.
        """
        super().before_train(runner)
        self._scalars = DeferredScalars(runner.message_hub)
        self._adopt_histories(runner)
        wrapper = runner.optim_wrapper
        for one in [wrapper] if isinstance(wrapper, OptimWrapper) else dict(wrapper.items()).values():
            if hasattr(one, 'clip_func'):
                one.clip_func = _DeferredClip(one.clip_func, self._scalars, f'train/{one.grad_name}')

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None) -> None:
        """Record the model's outputs for the log.

        Args:
            runner (Runner): The runner of the training process.
            batch_idx (int): The index of the current batch in the train loop.
            data_batch (Any): Data from dataloader. Defaults to None.
            outputs (dict, optional): Outputs from model. Defaults to None.
        """
        if outputs:
            self._scalars.update(
                {f'train/{name}': value for name, value in outputs.items()}, getattr(outputs, 'stacked', None)
            )
        if len(runner.message_hub.log_scalars) != self._known_histories:
            self._adopt_histories(runner)

    def _adopt_histories(self, runner) -> None:
        """Replace the histories of plain numbers, such as times, by ones that append in constant time."""
        histories = runner.message_hub.log_scalars
        self._known_histories = len(histories)
        for name, history in histories.items():
            if name.startswith('train/') and type(history) is HistoryBuffer:
                histories[name] = DeferredHistoryBuffer(history)


class _DeferredClip:
    """Clips the gradient and returns None, so that mmengine does not read the norm.

    Args:
        clip (Callable): ``torch.nn.utils.clip_grad_norm_`` or the like; returns the norm.
        scalars (DeferredScalars): Receives the norm.
        name (str): Name of the norm's history.

    Attributes:
        clip (Callable): The function that clips.
    """

    def __init__(self, clip: Callable, scalars: DeferredScalars, name: str) -> None:
        self.clip = clip
        self._scalars = scalars
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        norm = self.clip(*args, **kwargs)
        if norm is not None:
            self._scalars.update({self._name: torch.as_tensor(norm)})
