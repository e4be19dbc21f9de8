"""Checks the keys of overrides: a key is in the config, or is a parameter of a class that the config names."""

from __future__ import annotations

import difflib
import inspect
from typing import Any, Callable, Iterator, Optional, Set, Tuple

from recipe.core import console

# Top-level settings that the recipe or mmengine reads besides the runner's parameters.
_READ = {
    'num_classes',
    'custom_imports',
    'runner_type',
    'fast',
    'freeze_backbone',
    'allow_tf32',
    'model_wrapper_cfg',
    'sync_bn',
    'compile',
}


def require(config: Any, key: str, value: Any) -> None:
    """Check that an override sets an existing key to a value of the same kind.

    Args:
        config: ``mmengine.Config``, or its dict.
        key: Dotted key; numbers are indices of a list.
        value: The new value.

    Raises:
        console.UserError: The key does not exist (names the nearest one), or it holds another kind of value.
    """
    _require_read(config, key)
    node, names = config, key.split('.')
    for depth, name in enumerate(names):
        parent, (there, node) = node, _child(node, name)
        if not there:
            if depth == len(names) - 1 and isinstance(parent, dict) and name in _parameters(names[:depth], parent):
                return
            lacking = '.'.join(names[: depth + 1])
            raise console.UserError(f'override {key}: the config has no {lacking}{_near(config, key)}')
    if value is None:
        return
    if isinstance(node, dict) and not isinstance(value, dict):
        raise console.UserError(f'override {key}: {key} is a group of settings', f'name one of them: {_some(node)}')
    if _holds_groups(node) and not (isinstance(value, (list, tuple)) and all(isinstance(item, dict) for item in value)):
        raise console.UserError(
            f'override {key}={value}: {key} is a list of groups of settings', f'name a setting of one: {key}.0.type'
        )
    if isinstance(node, (int, float)) and isinstance(value, (str, dict)):
        kind = 'True or False' if isinstance(node, bool) else 'a number'
        raise console.UserError(f'override {key}={value}: {key} is {node} now', f'give {kind}')


def _holds_groups(node: Any) -> bool:
    return isinstance(node, (list, tuple)) and any(isinstance(item, dict) for item in node)


def _require_read(config: Any, key: str) -> None:
    """Refuse to set a variable that config files use and that nothing reads afterwards, such as ``crop_size``."""
    top, *_ = names = key.split('.')
    if top not in config or _code_of_the_user(config):
        return
    read = read_settings(config)
    if top in read:
        return
    places = [path for path in paths(config) if path.split('.')[0] in read and path.split('.')[-1] == names[-1]]
    raise console.UserError(
        f'override {key}: {top} is a variable of the config file, and nothing reads it after the file was read',
        f'override the setting itself{": " + " or ".join(places[:3]) if places else ", or edit the config file"}',
    )


def read_settings(config: Any) -> Set[str]:
    """Top-level settings that the training reads; all others are variables of the config files."""
    own = {'data_preprocessor'} if 'data_preprocessor' in (config.get('model') or {}) else set()  # goes before
    return (_parameters([], config) | _READ) - own


def _code_of_the_user(config: Any) -> bool:
    """Whether code that is not the recipe's may read any variable of the config."""
    imports = (config.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else imports
    return bool(config.get('custom_hooks')) or any(not name.startswith('recipe.') for name in imports)


def _child(node: Any, name: str) -> Tuple[bool, Any]:
    """Whether a node has a child of this name or index, and the child."""
    if isinstance(node, dict) or hasattr(node, '_cfg_dict'):
        return (True, node[name]) if name in node else (False, None)
    if isinstance(node, (list, tuple)) and name.isdigit() and int(name) < len(node):
        return True, node[int(name)]
    return False, None


def _near(config: Any, key: str) -> str:
    close = difflib.get_close_matches(key, list(paths(config)), 1, 0.6)
    return f'; did you mean {close[0]}?' if close else '; see config.py in the folder of any run'


def paths(node: Any, prefix: str = '') -> Iterator[str]:
    """All dotted keys of a config, groups included."""
    children = node.items() if hasattr(node, 'items') else enumerate(node)
    for name, child in children:
        yield f'{prefix}{name}'
        if isinstance(child, (dict, list, tuple)):
            yield from paths(child, f'{prefix}{name}.')


def leaves(node: Any, prefix: str = '') -> Iterator[Tuple[str, Any]]:
    """All settings of a config except groups, as (dotted key, value)."""
    children = node.items() if hasattr(node, 'items') else enumerate(node)
    for name, child in children:
        if isinstance(child, (dict, list, tuple)) and child:
            yield from leaves(child, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', child


def _some(node: dict, most: int = 6) -> str:
    return ', '.join(list(node)[:most]) + (', ...' if len(node) > most else '')


def _parameters(path: list, group: dict) -> Set[str]:
    """Parameters of the class that is built from a group; empty if the class is not known."""
    if path == ['model', 'test_cfg']:
        return {'mode', 'crop_size', 'stride'}  # EncoderDecoder reads them when it predicts; no class takes them
    built = _builder(path, group)
    if built is None:
        return set()
    classes = inspect.getmro(built) if inspect.isclass(built) else [built]
    names: Set[str] = set()
    for one in classes:
        try:
            parameters = inspect.signature(one).parameters.values()
        except (TypeError, ValueError):
            continue
        names.update(item.name for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY))
        if not any(item.kind is item.VAR_KEYWORD for item in parameters):
            break  # it passes no further arguments to its bases
    return names


def takes(config: Any, path: list, name: str) -> bool:
    """Whether the class that is built from a group of settings has a parameter.

    Args:
        config: ``mmengine.Config``.
        path: Keys of the group.
        name: Name of the parameter.
    """
    group = config
    for key in path:
        group = group[key]
    return name in group or name in _parameters(path, group)


def _builder(path: list, group: dict) -> Optional[Callable]:
    from mmengine.runner import Runner
    from mmseg import registry
    from torch.utils.data import DataLoader

    if not path:
        return Runner
    if 'type' not in group:
        untyped = {'randomness': Runner.set_randomness}
        untyped.update({f'{name}_dataloader': DataLoader for name in ('train', 'val', 'test')})
        return untyped.get('.'.join(path))
    if not isinstance(group['type'], str):
        return group['type']
    registries = [item for item in vars(registry).values() if type(item).__name__ == 'Registry']
    return next(filter(None, (item.get(group['type']) for item in registries)), None)
