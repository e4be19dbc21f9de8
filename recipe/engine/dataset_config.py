"""Makes a config train on the set of a dataset.json: classes, weights, data sets, crop, scales and validation."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Tuple

from recipe.core import console
from recipe.data.sets.file import NO_OBJECT, DataSet
from recipe.engine import classes

_LOADERS = {'train_dataloader': 'train', 'val_dataloader': 'val', 'test_dataloader': 'val'}
_SCALES = range(5, 21)  # tenths of the size at scale 1, as in the recipe


def apply(config: Any, data: DataSet) -> None:
    """Make a config train on a set. With Cityscapes' built-in file nothing changes.

    Args:
        config: ``mmengine.Config`` before ``equip()``; changed in place.
        data: The set.

    Raises:
        console.UserError: The config has no data set to replace, or no head whose classes can follow.
    """
    _set_classes(config, data)
    groups = [(split, group) for name, split in _LOADERS.items() for group in _datasets(config.get(name))]
    if not groups:
        raise console.UserError(
            f'--config: {config.filename} has no train_dataloader.dataset with a pipeline', 'leave out --dataset'
        )
    shared = [
        (split, config[name])
        for name, split in (('train_pipeline', 'train'), ('test_pipeline', 'val'))
        if config.get(name)
    ]
    limit = _crop_of(config)
    has_resize = any(_kind(step) == 'RandomChoiceResize' for split, group in groups for step in group['pipeline'])
    # Without a resize, as in the demo, pictures keep their size, and the config's crop limits that of the model.
    crop = data.crop if has_resize or limit is None else tuple(map(min, data.crop, limit))
    for _, steps in [*((split, group['pipeline']) for split, group in groups), *shared]:
        for at, step in enumerate(steps):
            steps[at] = _fitting(step, data, crop)
    for split, group in groups:
        if not data.is_cityscapes:
            _set_dataset(group, data, split)
    if config.get('crop_size') is not None:
        config['crop_size'] = tuple(crop)
    for preprocessor in (config.get('data_preprocessor'), config.model.get('data_preprocessor')):
        if isinstance(preprocessor, dict) and limit is not None and tuple(preprocessor.get('size') or ()) == limit:
            preprocessor['size'] = tuple(crop)
    if data.val_batch_size is not None:
        for name in ('val_dataloader', 'test_dataloader'):
            if config.get(name):
                config[name]['batch_size'] = data.val_batch_size


def _set_classes(config: Any, data: DataSet) -> None:
    """Set the number of classes in all heads, and the weights of Mask2Former's classification."""
    count, heads = len(data.names), [head for _, head in classes.heads(config)]
    if not heads:
        raise console.UserError(f'--config: {config.filename} has no head with num_classes', 'leave out --dataset')
    before = classes.numbers(config)
    for head in heads:
        head['num_classes'] = count
    if config.get('num_classes') is not None:
        config['num_classes'] = count
    classes.follow(config, before)
    for head in heads:
        loss = head.get('loss_cls') or {}
        is_asked = data.weights_applied or data.no_object != NO_OBJECT
        if is_asked and isinstance(loss.get('class_weight'), list) and len(loss['class_weight']) == count + 1:
            loss['class_weight'] = data.class_weight


def _datasets(node: Any) -> Iterator[Dict[str, Any]]:
    """The groups with a data root and a pipeline in a node and below it."""
    if isinstance(node, dict):
        if 'data_root' in node and isinstance(node.get('pipeline'), list):
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _datasets(child)


def _kind(step: Any) -> str:
    named = step.get('type') if isinstance(step, dict) else ''
    return str(getattr(named, '__name__', named)).rpartition('.')[2]


def _crop_of(config: Any) -> Any:
    """(height, width) of the crop in a config, None if it names none."""
    size = (config.model.get('data_preprocessor') or {}).get('size')
    return tuple(size) if isinstance(size, (list, tuple)) and len(size) == 2 else None


def _fitting(step: Dict[str, Any], data: DataSet, crop: Tuple[int, ...]) -> Dict[str, Any]:
    """A step of a pipeline, with the sizes and the labels of the set."""
    kind = _kind(step)
    if kind == 'LoadAnnotations' and not data.is_cityscapes:
        coded: Dict[str, Any] = {'type': 'LoadCodedAnnotations', 'coding': data.coding, 'codes': data.codes}
        if data.instances:
            coded['instances'] = list(data.instances)
        if step.get('backend_args'):
            coded['backend_args'] = step['backend_args']
        return coded
    if kind == 'RandomChoiceResize' and step.get('resize_type') == 'ResizeShortestEdge':
        scales: List[int] = [int(data.short_side * scale * 0.1) for scale in _SCALES]
        return {**step, 'scales': scales, **({'max_size': 2 * data.long_side} if 'max_size' in step else {})}
    if kind == 'RandomCrop':
        return {**step, 'crop_size': tuple(crop)}
    if kind == 'Resize' and step.get('keep_ratio') and step.get('scale'):
        return {**step, 'scale': (data.long_side, data.short_side)}
    return step


def _set_dataset(group: Dict[str, Any], data: DataSet, split: str) -> None:
    """Replace a data set by one of the file, with the same pipeline."""
    pipeline = group['pipeline']
    group.clear()
    group.update(
        type='FileDataset',
        data_root=str(data.root),
        split=data.splits[split].as_dict(),
        image_suffixes=list(data.image_suffixes),
        label_suffix=data.label_suffix,
        metainfo={'classes': data.names, 'palette': data.palette},
        pipeline=pipeline,
    )
