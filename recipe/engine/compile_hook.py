"""Training in graphs of torch.compile."""

from typing import Optional

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from recipe.models.compiled_parts import compile_parts


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles the parts of an accelerated model before the training.

    The random numbers are the same as without graphs, because torch's own generators draw them.

    Args:
        mode: ``mode`` of ``torch.compile``.
        backend: ``backend`` of ``torch.compile``.
    """

    def __init__(self, mode: Optional[str] = None, backend: str = 'inductor') -> None:
        self.options: dict = dict(backend=backend)
        if mode is not None:
            self.options['mode'] = mode

    def before_train(self, runner: Runner) -> None:
        """Prepare the parts; each is compiled when it first runs.

        Raises:
            ValueError: The device is an NPU, on which torch.compile was not tried; or see
                :func:`~recipe.models.compiled_parts.compile_parts`.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        refuse_on(next(model.parameters()).device.type)
        _keep_random_numbers()
        compile_parts(model, **self.options)


def refuse_on(device_type: str) -> None:
    """Raise ValueError on devices on which torch.compile was not tried."""
    if device_type == 'npu':
        raise ValueError('torch.compile was not tried on an NPU; train without it (no CompileHook)')


def _keep_random_numbers() -> None:
    """Make graphs draw with torch's own generators."""
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
