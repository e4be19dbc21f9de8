"""The number of classes: the heads of the model decide it; their loss weights and the data sets follow."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Tuple

from recipe.core import console
from recipe.data import facts, layout, verify

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_TOGETHER = 'num_classes'  # mmseg's configs fill the heads from this variable


def keys(config: Any) -> List[str]:
    """Settings that say how many classes there are, such as ``model.decode_head.num_classes``."""
    return [f'{key}.num_classes' for key, _ in heads(config)]


def require(config: Any) -> int:
    """The number of classes of the model; Cityscapes' if it names none.

    Raises:
        console.UserError: Its heads name different numbers.
    """
    named = {f'{key}.num_classes': head['num_classes'] for key, head in heads(config)}
    first = next(iter(named.values()), verify.NUM_CLASSES)
    for key, number in named.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= facts.IGNORED:
            raise console.UserError(f'{key}={number}', f'give a number of classes from 1 to {facts.IGNORED}')
        if number != first:
            raise console.UserError(
                'the heads of the model have different numbers of classes: '
                + ', '.join(f'{key}={number}' for key, number in named.items()),
                'give one number: -- ' + ' '.join(f'{key}={first}' for key in named),
            )
    return int(first)


def numbers(config: Any) -> Dict[str, Any]:
    """The number of classes of each head, and the config's variable ``num_classes``, for ``follow``."""
    found = {key: head['num_classes'] for key, head in heads(config)}
    return {**found, _TOGETHER: config.get(_TOGETHER)}


def follow(config: Any, before: Dict[str, Any]) -> None:
    """Make the rest of a config follow a number of classes that an override has changed.

    Args:
        config: ``mmengine.Config``; changed in place.
        before: From ``numbers``, before the override.

    Raises:
        console.UserError: As ``require``.
    """
    together = config.get(_TOGETHER)
    for key, head in heads(config):
        if together != before[_TOGETHER] and head['num_classes'] == before.get(key):
            head['num_classes'] = together
    number = require(config)
    for key, head in heads(config):
        old, weights = before.get(key), (head.get('loss_cls') or {}).get('class_weight')
        if old == number or not isinstance(old, int) or not isinstance(weights, list):
            continue
        # Mask2Former weighs every class alike, and "no object" less.
        if len(weights) == old + 1 and all(weight == weights[0] for weight in weights[:-1]):
            head['loss_cls']['class_weight'] = [weights[0]] * number + weights[-1:]
    if number != verify.NUM_CLASSES:
        for loader in _LOADERS:
            _rename_classes(config.get(loader), number)


def _rename_classes(node: Any, number: int) -> None:
    """Give the Cityscapes data sets in a node and below it another number of classes, without names."""
    if isinstance(node, dict):
        if node.get('type') in ('CityscapesDataset', 'mmseg.CityscapesDataset') and 'metainfo' not in node:
            # CityscapesDataset takes a choice of its own classes only.
            node.update(
                type='BaseSegDataset',
                img_suffix=layout.IMAGE_SUFFIX,
                seg_map_suffix=layout.TRAIN_IDS_SUFFIX,
                metainfo={'classes': [f'class {index}' for index in range(number)]},
            )
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            _rename_classes(child, number)


def heads(config: Any) -> Iterator[Tuple[str, Any]]:
    """The heads of the model that name a number of classes, each after its key."""
    model = config.get('model')
    for name in ('decode_head', 'auxiliary_head'):
        head = model.get(name) if isinstance(model, dict) else None
        for key, one in [(name, head)] if isinstance(head, dict) else _numbered(name, head):
            if isinstance(one, dict) and 'num_classes' in one:
                yield f'model.{key}', one


def _numbered(name: str, several: Any) -> Iterator[Tuple[str, Any]]:
    for index, head in enumerate(several if isinstance(several, (list, tuple)) else ()):
        yield f'{name}.{index}', head
