"""Reads the model from a config of unknown origin, such as the text in a checkpoint.

Even as plain data a config can make mmengine run code: ``type`` may name any function of any module, and some
registered classes evaluate their arguments or load files that their arguments name. So only the model and the precision
of a training step are read, and only known classes, known words and numbers of a plausible size are accepted.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, Dict, Iterator, Set

from recipe.core import config_text, console

SCOPES = ('mmseg', 'mmdet', 'mmengine', 'mmcv')
WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper', 'Bf16OptimWrapper', 'Fp16OptimWrapper')
# Modules of a head's helpers. Some of mmdet's other helpers evaluate a string.
_HELPERS = ('mmdet.models.task_modules.assigners', 'mmdet.models.task_modules.samplers')
# All strings besides class names in the recipe's configs and their usual changes.
_WORDS = {
    *('mean', 'sum', 'none', 'whole', 'slide', 'pytorch', 'dynamic', 'float16', 'bfloat16', 'bilinear', 'nearest'),
    *('loss_ce', 'loss_cls', 'loss_mask', 'loss_dice'),
}
_START = ('init_cfg', 'pretrained')  # left out, because the dump holds the weights
_LARGEST = 1 << 16
_REPEATING = re.compile('depth|layers|convs|blocks|stages|modules')  # counts of parts that each have weights
_DEEPEST = 20


def read_model(model: Dict[str, Any], tensors: int) -> Dict[str, Any]:
    """Check the model of a config that is not trusted.

    Args:
        model: As ``config_text.read_config`` gives it.
        tensors: Number of tensors in its weights.

    Returns:
        A copy without settings of initial weights, which mmengine's registries can build.

    Raises:
        console.UserError: It holds something other than registered parts.
    """
    checked: Dict[str, Any] = _checked(model, 'model', _known_classes(), tensors)
    return checked


def read_step(text: Any, tensors: int) -> Dict[str, Any]:
    """Read the config of a dump of a training step that is not trusted.

    Args:
        text: ``meta['cfg']`` of the weights before the step.
        tensors: Number of tensors in these weights.

    Returns:
        ``model`` and ``optim_wrapper``, which mmengine's registries can build, and what else decides how a
        step is computed: ``train_cfg.accumulate`` and ``freeze_backbone``.

    Raises:
        console.UserError: It holds something other than a model of registered parts.
    """
    config = config_text.read_config(text) if isinstance(text, str) else {}
    model, wrapper = config.get('model'), config.get('optim_wrapper')
    if not isinstance(model, dict) or not isinstance(wrapper, dict):
        raise console.UserError('the weights of the step hold no config with a model and an optim_wrapper')
    kept = {name: wrapper[name] for name in ('type', 'dtype', 'loss_scale') if name in wrapper}
    if kept.get('type') not in WRAPPERS:
        raise _refusal('optim_wrapper.type', kept.get('type'))
    loop = config.get('train_cfg')
    parts = loop.get('accumulate', 1) if isinstance(loop, dict) else 1
    if type(parts) is not int or not 1 <= parts <= _LARGEST:
        raise _refusal('train_cfg.accumulate', parts)
    return {
        'model': read_model(model, tensors),
        'train_cfg': {'accumulate': parts},
        'freeze_backbone': config.get('freeze_backbone') is True,
        'optim_wrapper': _checked(kept, 'optim_wrapper', set(WRAPPERS), tensors),
    }


def _checked(node: Any, place: str, classes: Set[str], tensors: int) -> Any:
    """A copy of a part of a config, without settings of initial weights.

    Raises:
        console.UserError: It holds a class, word or number that is not accepted.
    """
    key = place.rpartition('.')[2]
    if place.count('.') > _DEEPEST:
        raise _refusal(place, 'too deep a nesting')
    if isinstance(node, dict):
        return {
            name: _checked(value, f'{place}.{name}', classes, tensors)
            for name, value in node.items()
            if isinstance(name, str) and name not in _START
        }
    if isinstance(node, list):
        if _REPEATING.search(key) and sum(item for item in node if isinstance(item, int)) > tensors:
            raise _refusal(place, node)
        return [_checked(item, place, classes, tensors) for item in node]
    if isinstance(node, str):
        if node not in {'type': classes, '_scope_': SCOPES}.get(key, _WORDS):
            raise _refusal(place, node)
    elif isinstance(node, int) and abs(node) > (tensors if _REPEATING.search(key) else _LARGEST):
        raise _refusal(place, node)
    return node


def _refusal(place: str, what: Any) -> console.UserError:
    from recipe.engine.checkpoint.errors import one_line

    return console.UserError(
        one_line(f'refused, {place} of the config is {str(what)[:100]!r}, which is no registered part of a model'),
        'give --trust_checkpoint if you trust where the file comes from',
    )


def _known_classes() -> Set[str]:
    """Names of the registered parts of models, with and without their scope."""
    import mmdet.models  # noqa: F401  registers them
    import mmseg.models  # noqa: F401
    from mmengine.registry import MODELS, TASK_UTILS
    from torch import nn

    found = set()
    for registry in _tree(MODELS):
        for name, kind in registry.module_dict.items():
            if inspect.isclass(kind) and issubclass(kind, nn.Module):
                found |= {name, f'{registry.scope}.{name}'}
    for registry in _tree(TASK_UTILS):
        for name, kind in registry.module_dict.items():
            if getattr(kind, '__module__', '').startswith(_HELPERS):
                found |= {name, f'{registry.scope}.{name}'}
    return found


def _tree(registry: Any) -> Iterator[Any]:
    yield registry
    for child in registry.children.values():
        yield from _tree(child)
