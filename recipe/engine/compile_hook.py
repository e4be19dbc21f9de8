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

    Random numbers stay those of torch, in the order of a training without graphs.

    Args:
        mode: Of ``torch.compile``.
        backend: Of ``torch.compile``.
    """

    def __init__(self, mode: Optional[str] = None, backend: str = 'inductor') -> None:
        self.options: dict = dict(backend=backend)
        if mode is not None:
            self.options['mode'] = mode

    def before_train(self, runner: Runner) -> None:
        """Compile the parts; each becomes code when it first runs.

        Raises:
            ValueError: On an NPU, where no compiler of graphs was tried; and see
                :func:`~recipe.models.compiled_parts.compile_parts`.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        refuse_on(next(model.parameters()).device.type)
        _keep_random_numbers()
        compile_parts(model, **self.options)


def refuse_on(device_type: str) -> None:
    """Raise ValueError on devices whose graphs nobody has tried."""
    if device_type == 'npu':
        raise ValueError('torch.compile was not tried on an NPU; train without it (no CompileHook)')


def _keep_random_numbers() -> None:
    """Have graphs draw with torch's generators, too."""
    import torch._inductor.config

    torch._inductor.config.fallback_random = True
