"""Options that save memory, and options that watch a training: what they set in a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Tuple

from recipe.core import console
from recipe.core.run_options import Options
from recipe.engine import overrides

_BACKBONE = ['model', 'backbone']


def apply(config: Any, options: Options) -> None:
    """Set what the options ask for.

    Args:
        config: ``mmengine.Config``; changed in place. ``train_dataloader.batch_size`` is set already.
        options: The user's options.

    Raises:
        console.UserError: The config has no part that an option acts on.
    """
    if options.accumulate > 1:
        _set_accumulation(config, options.accumulate)
    if options.checkpoint_activations is not None:
        _set_checkpointed_activations(config, options.checkpoint_activations)
    if options.freeze is not None:
        _set_frozen(config, options.freeze)
    if options.ema is not None:
        momentum = round(1 - options.ema, 12)
        config.default_hooks['ema'] = {'type': 'ResumableEMAHook', 'momentum': momentum}
    if options.early_stop is not None:
        config.default_hooks['early_stop'] = {'type': 'ResumableEarlyStoppingHook', 'patience': options.early_stop}
    _set_trackers(config, options.log_to)


def _set_accumulation(config: Any, count: int) -> None:
    """Have each iteration compute ``count`` batches. The loader reads them as one."""
    if config.train_cfg.get('type') != 'ResumableIterBasedTrainLoop':
        raise console.UserError(
            '--accumulate: the config has no ResumableIterBasedTrainLoop, which would act on it',
            'leave out --engine=upstream, or give -- optim_wrapper.accumulative_counts=N, which counts batches',
        )
    config.train_cfg['accumulate'] = count
    config.train_dataloader['batch_size'] *= count


def require_accumulation(config: Any) -> None:
    """Check the settings of gradient accumulation, after the user's overrides.

    Raises:
        console.UserError: They contradict each other.
    """
    count, images = config.train_cfg.get('accumulate', 1), config.train_dataloader['batch_size']
    if count > 1 and config.optim_wrapper.get('accumulative_counts', 1) > 1:
        raise console.UserError(
            f'train_cfg.accumulate={count} and optim_wrapper.accumulative_counts both accumulate gradients',
            'leave out the override',
        )
    if images % count:
        raise console.UserError(
            f'train_dataloader.batch_size={images} cannot be split into train_cfg.accumulate={count} equal parts',
            'give --batch_size=N and --accumulate=N instead of overrides',
        )


def _set_checkpointed_activations(config: Any, on: bool) -> None:
    backbone = config.model['backbone']
    if not overrides.takes(config, _BACKBONE, 'with_cp'):
        if on:
            raise console.UserError(
                f'--checkpoint_activations=1: the backbone {backbone.get("type")} has no with_cp', 'leave it out'
            )
        return
    backbone['with_cp'] = on


def _set_frozen(config: Any, what: str) -> None:
    backbone = config.model['backbone']
    if what == 'backbone':
        config['freeze_backbone'] = True
        return
    count = int(what.partition(':')[2])
    if not overrides.takes(config, _BACKBONE, 'frozen_stages'):
        raise console.UserError(
            f'--freeze={what}: the backbone {backbone.get("type")} has no frozen_stages', 'give --freeze=backbone'
        )
    stages = len(backbone.get('depths') or ()) or backbone.get('num_stages', 4)
    if count > stages:
        raise console.UserError(
            f'--freeze={what}: the backbone has {stages} stages', f'give stages:0 to stages:{stages}'
        )
    backbone['frozen_stages'] = count


def _set_trackers(config: Any, asked: Tuple[str, ...]) -> None:
    groups = [group for group in (config.get('visualizer'), config) if group and group.get('vis_backends')]
    if asked and not groups:
        raise console.UserError('--log_to: the config has no visualizer with vis_backends', 'leave it out')
    for group in groups:
        kept = [one for one in group['vis_backends'] if one.get('type') != 'TrackerVisBackend']
        added = [
            {'type': 'TrackerVisBackend', 'name': tracker, 'tracker': tracker, 'online': how == 'online'}
            for tracker, _, how in (one.partition(':') for one in asked)
        ]
        group['vis_backends'] = [*kept, *added]


def run_name(save_dir: str) -> str:
    """Name of the run folder that holds ``TIMESTAMP/vis_data``."""
    return Path(save_dir).absolute().parents[1].name
