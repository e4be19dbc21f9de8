"""The runner of the recipe's trainings. Import it (``custom_imports``) to register what the recipe adds to mmseg."""

from typing import Any

from mmengine.runner import Runner
from mmseg.registry import RUNNERS
from torch import nn

from recipe.engine import compile_hook, metric
from recipe.models import accelerate

__all__ = ['RecipeRunner', 'compile_hook', 'metric']


@RUNNERS.register_module()
class RecipeRunner(Runner):
    """mmengine's runner, which accelerates the model before anything is made of it.

    The config's ``fast = False`` leaves the model as upstream has it.
    """

    def build_model(self, model: Any) -> nn.Module:
        """Build the model and put the fast modules into it.

        Args:
            model: A config, or a module.
        """
        built = super().build_model(model)
        if self.cfg.get('fast', True):
            replaced = accelerate(built)
            parts = ', '.join(f'{count} {name}' for name, count in replaced.items())
            self.logger.info(f'fast modules (--fast=0 leaves them out): {parts or "none fits this model"}')
        return built
