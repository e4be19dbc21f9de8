"""Imports and so registers all classes that ``equip()`` may put into a config.

An equipped config names this module in ``custom_imports``. So plain mmengine can build from the config of a run folder
if the package can be imported.
"""

from recipe.data import file_dataset, position_seeded_dataset, resumable_sampler
from recipe.data.transforms import coded_labels, fast_augment, fast_loading
from recipe.engine import compile_hook, data_parallel, metric, runner, sturdy_vis_backend, trackers
from recipe.engine.hooks import (
    atomic_checkpoint_hook,
    deferred_runtime_info_hook,
    early_stopping_hook,
    ema_hook,
    loader_pace_hook,
    nonfinite_guard_hook,
)
from recipe.engine.loops import resumable_loop
from recipe.engine.optimizers import bf16_optim_wrapper, fp16_optim_wrapper, merged_adamw

__all__ = [
    'atomic_checkpoint_hook',
    'bf16_optim_wrapper',
    'coded_labels',
    'compile_hook',
    'data_parallel',
    'deferred_runtime_info_hook',
    'early_stopping_hook',
    'ema_hook',
    'fast_augment',
    'fast_loading',
    'file_dataset',
    'fp16_optim_wrapper',
    'loader_pace_hook',
    'merged_adamw',
    'metric',
    'nonfinite_guard_hook',
    'position_seeded_dataset',
    'resumable_loop',
    'resumable_sampler',
    'runner',
    'sturdy_vis_backend',
    'trackers',
]
