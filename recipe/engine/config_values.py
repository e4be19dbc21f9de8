"""Checks the values of a config before a rank starts, and names the key of the first one that no training can have."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any, Callable, Iterator, NamedTuple, Optional, Tuple

from recipe.core import console
from recipe.engine import overrides

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Groups without which there is no training, or no mIoU.
_GROUPS = (
    'model',
    'train_cfg',
    'train_dataloader',
    'val_dataloader',
    'val_evaluator',
    'optim_wrapper',
    'default_hooks',
)
_LARGEST_SEED = 2**32 - 1  # numpy's
_FIX = 'set it in the config, or with an override after a lone --'


class _Kind(NamedTuple):
    """What a value has to be.

    Attributes:
        wanted: In words.
        fits: Whether a value is so.
    """

    wanted: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _whole(least: int, most: float = math.inf, also: Tuple[Any, ...] = ()) -> _Kind:
    words = f'a whole number from {least}' + (f' to {most}' if most < math.inf else ' on')
    words += ''.join(f', or {other}' for other in also)
    return _Kind(words, lambda value: value in also or (type(value) is int and least <= value <= most))


def _number(least: float, most: float = math.inf, above: bool = False, also: Tuple[Any, ...] = ()) -> _Kind:
    """A finite number, or with ``above`` one that is greater than ``least`` and may be infinite."""
    words = f'a number above {least:g}' if above else f'a number from {least:g}'
    words += f' to {most:g}' if most < math.inf else '' if above else ' on'

    def fits(value: Any) -> bool:
        if value in also:
            return True
        if not _is_number(value) or value > most:
            return False
        return value > least if above else value >= least and math.isfinite(value)

    return _Kind(words, fits)


def _several(kind: _Kind) -> _Kind:
    return _Kind(
        f'two values or more, each {kind.wanted}',
        lambda value: isinstance(value, (list, tuple)) and len(value) > 1 and all(map(kind.fits, value)),
    )


_STEPS = _Kind(
    'a list of at least one group of settings',
    lambda value: isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(step, dict) for step in value),
)
# A key is compared with the expressions in this order; the first that matches counts.
_RULES: Tuple[Tuple[str, _Kind], ...] = (
    (r'\w+_dataloader\.batch_size', _whole(1)),
    (r'\w+_dataloader\.num_workers', _whole(0)),
    (r'\w+_dataloader\.prefetch_factor', _whole(1, also=(None,))),
    (r'\w+_dataloader\.(.+\.)?pipeline', _STEPS),
    (r'train_cfg\.(max_iters|val_interval|accumulate)', _whole(1)),
    (r'train_cfg\.(val_begin|max_unreadable)', _whole(0)),
    (r'default_hooks\.logger\.interval', _whole(1)),
    (r'default_hooks\.checkpoint\.interval', _whole(1, also=(-1,))),
    (r'default_hooks\.checkpoint\.max_keep_ckpts', _whole(1, also=(-1,))),
    (r'default_hooks\.nonfinite_guard\.max_skips', _whole(0)),
    (r'default_hooks\.nonfinite_guard\.max_overflows', _whole(1)),
    (r'default_hooks\.early_stop\.patience', _whole(1)),
    (r'default_hooks\.ema\.momentum', _number(0, 0.5, above=True)),
    (r'optim_wrapper\.accumulative_counts', _whole(1)),
    (r'optim_wrapper\.clip_grad\.(max_norm|clip_value)', _number(0, above=True)),
    (r'optim_wrapper\.optimizer\.betas', _several(_number(0, 1))),
    (r'optim_wrapper\.(.+\.)?(weight_decay|momentum|\w*lr_mult|\w*decay_mult)', _number(0)),
    (r'optim_wrapper\.(.+\.)?lr', _number(0, also=(None,))),  # some optimizers choose it themselves
    (r'param_scheduler\.(\d+\.)?(begin|end)', _whole(0)),
    (r'param_scheduler\.(\d+\.)?(start_factor|end_factor|factor|power|gamma|eta_min)', _number(0)),
    (r'auto_scale_lr\.base_batch_size', _whole(1)),
    (r'randomness\.seed', _whole(0, _LARGEST_SEED, also=(None,))),
    (r'model\.data_preprocessor\.size', _several(_whole(1))),
    (r'model\.(.+\.)?(num_classes|num_queries|num_points)', _whole(1)),
    (r'model\.(.+\.)?oversample_ratio', _number(1)),
    (r'model\.(.+\.)?(importance_sample_ratio|drop_path_rate|drop_rate|attn_drop_rate)', _number(0, 1)),
    (r'model\.(.+\.)?loss_weight', _number(0)),
)
_COMPILED = [(re.compile(expression), kind) for expression, kind in _RULES]


def require(config: Any) -> None:
    """Check a whole config.

    Args:
        config: ``mmengine.Config``, with the user's overrides.

    Raises:
        console.UserError: A value cannot be meant, a class does not exist or does not take a setting, a step of a
            pipeline cannot be built, or the weights of labels are not as many as the labels. Names the key.
    """
    for name in _GROUPS:
        if not config.get(name):
            raise console.UserError(f'{name}={config.get(name)}: a training needs this group of settings', _FIX)
    wrapper = config['optim_wrapper']
    if 'optimizer' in wrapper and not isinstance(wrapper['optimizer'], dict):
        raise console.UserError(
            f'optim_wrapper.optimizer={wrapper["optimizer"]}: it has to be a group of settings', _FIX
        )
    for key, value in _nodes(config):
        _require_value(key, value)
    interval, iterations = (
        (config['default_hooks'].get('logger') or {}).get('interval', 10),
        config.train_cfg['max_iters'],
    )
    if interval > iterations:
        raise console.UserError(
            f'default_hooks.logger.interval={interval}: no loss would be logged in {iterations} iterations',
            'give a smaller one',
        )
    read = overrides.read_settings(config)
    for key, group in _nodes({name: config[name] for name in config if name in read}):
        # The steps of a pipeline are built below; some hold classes of other libraries.
        if isinstance(group, dict) and 'type' in group and '.pipeline.' not in key:
            _require_class(key, group)
    _require_label_weights(config['model'], 'model')
    _require_pipelines(config)


def _nodes(node: Any, prefix: str = '') -> Iterator[Tuple[str, Any]]:
    """All groups, lists and settings of a config, as (dotted key, value)."""
    children = node.items() if hasattr(node, 'items') else enumerate(node)
    for name, child in children:
        yield f'{prefix}{name}', child
        if isinstance(child, (dict, list, tuple)):
            yield from _nodes(child, f'{prefix}{name}.')


def _require_value(key: str, value: Any) -> None:
    kind = next((kind for expression, kind in _COMPILED if expression.fullmatch(key)), None)
    if kind is not None and not kind.fits(value):
        raise console.UserError(f'{key}={value!r} is not {kind.wanted}', _FIX)
    if isinstance(value, float) and math.isnan(value):
        raise console.UserError(f'{key}={value} is not a number', _FIX)


def _require_class(key: str, group: Any) -> None:
    """Check that the class of a group exists, and takes the group's settings if nothing else reads them."""
    name = group['type']
    found = find_class(name) if isinstance(name, str) else name if callable(name) else None
    if found is None:
        raise console.UserError(f'{key}.type={name!r}: there is no such class', 'see whether it is spelt right')
    if re.match(r'(default|custom)_hooks\.', key):
        try:
            inspect.signature(found).bind_partial(
                **{setting: value for setting, value in group.items() if setting not in ('type', '_scope_', 'priority')}
            )
        except TypeError as error:
            raise console.UserError(f'{key}: {name}: {error}', _FIX) from None
        except ValueError:
            pass  # a class without a signature


def find_class(name: str) -> Optional[Callable[..., Any]]:
    """The class or function that the registries of OpenMMLab know under a name, None if there is none."""
    from mmengine import registry as engine_registry
    from mmseg import registry as mmseg_registry

    for module in (mmseg_registry, engine_registry):
        for registry in vars(module).values():
            if type(registry).__name__ == 'Registry':
                found = registry.get(name)
                if found is not None:
                    return found
    return None


def _require_label_weights(group: Any, key: str, num_classes: Optional[int] = None) -> None:
    """Check the ``class_weight`` of the losses in a head, or in the heads of a model."""
    if isinstance(group, (list, tuple)):
        for number, item in enumerate(group):
            _require_label_weights(item, f'{key}.{number}', num_classes)
    if not isinstance(group, dict):
        return
    num_classes = group.get('num_classes', num_classes)
    weights = group.get('class_weight')
    if isinstance(weights, (list, tuple)) and num_classes is not None:
        # Losses of queries have one class more: no object.
        background = str(group.get('loss_name', key.rpartition('.')[2])).startswith('loss_cls')
        wanted = num_classes + background
        if len(weights) != wanted:
            why = f'num_classes={num_classes}' + (' and one for no object' if background else '')
            raise console.UserError(f'{key}.class_weight has {len(weights)} weights, and {wanted} are needed: {why}')
        if not all(_is_number(weight) and 0 <= weight < math.inf for weight in weights) or not any(weights):
            raise console.UserError(f'{key}.class_weight={weights}: give numbers from 0 on, not all of them 0')
    for name, child in group.items():
        _require_label_weights(child, f'{key}.{name}', num_classes)


def _require_pipelines(config: Any) -> None:
    """Build each step of the pipelines, as the data sets of the ranks will."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import TRANSFORMS

    init_default_scope(config.get('default_scope', 'mmseg'))
    for loader in _LOADERS:
        for key, steps in _nodes(config.get(loader) or {}, f'{loader}.'):
            if key.endswith('.pipeline') and isinstance(steps, (list, tuple)):
                for number, step in enumerate(steps):
                    try:
                        TRANSFORMS.build(step)
                    except Exception as error:  # classes raise many kinds of errors for wrong arguments
                        what = f'{type(error).__name__}: {error}'
                        raise console.UserError(f'{key}.{number} ({step.get("type")}): {what}', _FIX) from None
