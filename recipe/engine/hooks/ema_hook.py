"""A moving average of the weights that is part of an exact resume."""

from typing import Any, Dict

from mmengine.hooks import EMAHook
from mmseg.registry import HOOKS

_PREFIX = 'module.'  # of the averaged model's names in ``ema_state_dict``


@HOOKS.register_module()
class ResumableEMAHook(EMAHook):
    """Keeps an exponential moving average of the weights; validates and saves it.

    As with :class:`mmengine.hooks.EMAHook`, validation uses the average in place of the trained weights. A checkpoint
    holds the average as ``state_dict``, so that whatever reads it takes the weights that were validated, and the
    trained weights in ``ema_state_dict``. A resumed run takes both.

    Args:
        **kwargs: See :class:`mmengine.hooks.EMAHook`; ``momentum`` is 1 - decay.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Take up the average of a resumed run. A new run begins with a copy of its weights, after its first step.

        Args:
            runner (Runner): The runner of the training process.
            checkpoint (dict): The checkpoint that was read.
        """
        if runner._resume:
            super().after_load_checkpoint(runner, checkpoint)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the average, and the number of steps in it.

        Args:
            runner (Runner): The runner of the training process.
            checkpoint (dict): The checkpoint that will be written.
        """
        super().before_save_checkpoint(runner, checkpoint)
        # mmengine has copied the trained weights to the CPU before; the average goes there too.
        for name in ('state_dict', 'ema_state_dict'):
            for key, value in checkpoint[name].items():
                checkpoint[name][key] = value.cpu()


def take_trained_weights(checkpoint: Dict[str, Any]) -> None:
    """Put the trained weights into the ``state_dict`` of a checkpoint that holds their moving average there.

    Args:
        checkpoint: As read; changed in place. One without an average stays as it is.
    """
    average = checkpoint.pop('ema_state_dict', None)
    if isinstance(average, dict):
        trained = {name[len(_PREFIX) :]: value for name, value in average.items() if name.startswith(_PREFIX)}
        checkpoint['state_dict'].update(trained)
