"""``equip()``: puts the recipe's engine into any config of an iteration-based training.

Each function is one pass over the config. It replaces the types that it knows by the recipe's own types, which do the
same and more. It leaves everything else as it is.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from recipe.core import console

COMPONENTS = 'recipe.engine.components'
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Transforms that do not write into their input image and accept uint8 images.
_KNOWN_STEPS = {
    'LoadImageFromFile',
    'LoadAnnotations',
    'LoadCodedAnnotations',
    'RandomChoiceResize',
    'RandomResize',
    'Resize',
    'ResizeShortestEdge',
    'RandomCrop',
    'RandomFlip',
    'PhotoMetricDistortion',
    'PackSegInputs',
}
# Upstream's type -> (our type, the parameters that our type accepts with the same result).
_FAST_STEPS: Dict[Optional[str], Tuple[Optional[str], Set[str]]] = {
    'LoadImageFromFile': ('FastLoadImageFromFile', {'backend_args'}),
    'LoadAnnotations': ('FastLoadAnnotations', {'backend_args', 'reduce_zero_label'}),
    'RandomFlip': ('FastRandomFlip', {'prob', 'direction', 'swap_seg_labels'}),
    'PhotoMetricDistortion': (
        'TablePhotoMetricDistortion',
        {'brightness_delta', 'contrast_range', 'saturation_range', 'hue_delta'},
    ),
    'PackSegInputs': ('FastPackSegInputs', {'meta_keys'}),
}
_ADAMW_PARAMETERS = {'lr', 'betas', 'eps', 'weight_decay', 'amsgrad'}


def equip(config: Any) -> None:
    """Give a config exact resume, safe checkpoints, guards, deferred scalars and the fast loader.

    The model, its losses, the schedule and the random draws do not change. A second call changes nothing more.

    Args:
        config: ``mmengine.Config`` of an iteration-based training; changed in place.

    Raises:
        console.UserError: The config has a loop, sampler or checkpoint hook that cannot be resumed exactly.
    """
    use_recipe_runner(config)
    set_train_loop(config)
    set_sampler(config)
    set_hooks(config)
    set_log_files(config)
    set_optimizer(config)
    set_transforms(config)
    set_metrics(config)


def use_recipe_runner(config: Any) -> None:
    """Use the recipe's runner, with upstream's loop or with ours."""
    from recipe.engine import components  # noqa: F401  registers the types that are set here

    imports = dict(config.get('custom_imports') or {})
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if COMPONENTS not in names:
        config['custom_imports'] = {'allow_failed_imports': False, **imports, 'imports': [*names, COMPONENTS]}
    config['runner_type'] = 'RecipeRunner'


def set_train_loop(config: Any) -> None:
    """Train with the loop that resumes exactly."""
    loop = config.train_cfg
    _require(loop, 'train_cfg', {'IterBasedTrainLoop', 'ResumableIterBasedTrainLoop', None})
    if loop.pop('by_epoch', False):
        raise console.UserError('--config: train_cfg.by_epoch is True', 'give the config of a training by iterations')
    loop['type'] = 'ResumableIterBasedTrainLoop'


def set_sampler(config: Any) -> None:
    """Use the sampler that can start at any position of upstream's endless sample stream."""
    loader = config.train_dataloader
    sampler = loader.get('sampler') or {}
    _require(sampler, 'train_dataloader.sampler', {'InfiniteSampler', 'ResumableInfiniteSampler'})
    if loader.get('batch_sampler'):
        raise console.UserError(
            '--config: train_dataloader has a batch_sampler, with which no training is resumed exactly',
            "give --engine=upstream for mmengine's own loop",
        )
    sampler['type'] = 'ResumableInfiniteSampler'


def set_hooks(config: Any) -> None:
    """Save checkpoints that survive a kill, read scalars only when they are logged, and guard each step."""
    hooks = config.default_hooks
    # If a config leaves out runtime_info or checkpoint, mmengine adds its own.
    if 'runtime_info' not in hooks or _name(hooks['runtime_info']) == 'RuntimeInfoHook':
        hooks['runtime_info'] = {**hooks.get('runtime_info', {}), 'type': 'DeferredRuntimeInfoHook'}
    checkpoint = hooks.get('checkpoint', {'type': 'CheckpointHook', 'interval': config.train_cfg['max_iters']})
    if checkpoint:
        _require(checkpoint, 'default_hooks.checkpoint', {'CheckpointHook', 'AtomicCheckpointHook'})
        hooks['checkpoint'] = {'by_epoch': False, **checkpoint, 'type': 'AtomicCheckpointHook'}
    hooks.setdefault('nonfinite_guard', {'type': 'NonFiniteGuardHook', 'max_skips': 0})
    hooks.setdefault('loader_pace', {'type': 'LoaderPaceHook'})


def set_log_files(config: Any) -> None:
    """Keep training if scalars or images cannot be written because the disk is full or gone."""
    for group in (config.get('visualizer') or {}, config):
        for backend in group.get('vis_backends') or []:
            if _name(backend) == 'LocalVisBackend':
                backend['type'] = 'SturdyVisBackend'


def set_optimizer(config: Any) -> None:
    """Use AdamW with few parameter groups and a fused step. Other optimizers stay as they are."""
    optimizer = config.optim_wrapper.get('optimizer')
    if (
        optimizer
        and _name(optimizer) in ('AdamW', 'DeviceAdamW')
        and set(optimizer) - {'type', '_scope_'} <= _ADAMW_PARAMETERS
    ):
        optimizer['type'] = 'MergedAdamW'


def set_transforms(config: Any) -> None:
    """Load and augment with faster transforms, whose samples equal upstream's bit by bit."""
    head = (config.model.get('decode_head') or {}) if isinstance(config.model, dict) else {}
    # Mask2Former only compares labels with class numbers, so one byte per label is enough.
    labels = 'uint8' if _name(head) == 'Mask2FormerHead' and head.get('num_classes', 0) < 255 else 'int64'
    for loader in _LOADERS:
        for group in _groups_with_pipeline(config.get(loader)):
            group['pipeline'] = fast_pipeline(group['pipeline'], labels)
    for name in ('train_pipeline', 'test_pipeline'):  # mmseg's configs fill the loaders from these; for readers
        if isinstance(config.get(name), list):
            config[name] = fast_pipeline(config[name], labels)


def fast_pipeline(steps: List[Dict], label_dtype: str) -> List[Dict]:
    """The fast form of a pipeline, or the pipeline itself if it has an unknown step.

    Args:
        steps: Configs of transforms, in order.
        label_dtype: Dtype of the label maps for the model, ``int64`` (upstream's) or ``uint8``.
    """
    if not steps or any(_name(step) not in _KNOWN_STEPS for step in steps) or _name(steps[0]) != 'LoadImageFromFile':
        return steps
    fused = _fused_loading(steps[:4])
    fast = [fused] if fused else []
    for step in steps[4 if fused else 0 :]:
        ours, parameters = _FAST_STEPS.get(_name(step), (None, set()))
        if ours is None or not set(step) - {'type'} <= parameters:
            fast.append(step)
        elif ours == 'FastPackSegInputs':
            fast.append({**step, 'type': ours, 'label_dtype': label_dtype})
        else:
            fast.append({**step, 'type': ours})
    if _name(fast[0]) == 'LoadImageFromFile':  # it may load images other than uint8, which the fast steps do not take
        return steps
    return fast


def _fused_loading(steps: List[Dict]) -> Optional[Dict]:
    """One step that loads, resizes and crops, None if it cannot replace these four."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import TRANSFORMS

    names = [_name(step) for step in steps]
    is_coded = names[1:2] == ['LoadCodedAnnotations']
    labels_step = 'LoadCodedAnnotations' if is_coded else 'LoadAnnotations'
    if names != ['LoadImageFromFile', labels_step, 'RandomChoiceResize', 'RandomCrop']:
        return None
    image, labels, resize, crop = (dict(step) for step in steps)
    settings = {*image} if is_coded else {*image, *labels}
    if not (settings <= {'type', 'backend_args'} and image.get('backend_args') == labels.get('backend_args')):
        return None
    fused = {'type': 'LoadResizedCrop', 'resize': resize, 'crop': crop}
    if is_coded:
        fused['labels'] = labels
    if image.get('backend_args'):
        fused['backend_args'] = image['backend_args']
    init_default_scope('mmseg')
    try:
        TRANSFORMS.build(fused)
    except (TypeError, AssertionError):  # a resize or crop that it does not know
        return None
    return fused


def set_metrics(config: Any) -> None:
    """Count the areas of the IoU on the device, and read them once per validation."""
    for name in ('val_evaluator', 'test_evaluator'):
        metrics = config.get(name) or []
        for metric in metrics if isinstance(metrics, list) else [metrics]:
            if _name(metric) == 'IoUMetric':
                metric['type'] = 'DeviceIoUMetric'


def _require(group: Dict, key: str, known: Set[Optional[str]]) -> None:
    """Refuse a type that is not known to resume exactly."""
    if _name(group) not in known:
        wanted = sorted(name for name in known if name)
        raise console.UserError(
            f'--config: {key} is {_name(group)}, and the engine resumes exactly with {wanted[0]} only',
            "give --engine=upstream for mmengine's own loop",
        )


def _name(group: Any) -> Optional[str]:
    """Class name in ``type`` of a group of settings, without its scope; None if there is no ``type``."""
    named = group.get('type') if isinstance(group, dict) else None
    return getattr(named, '__name__', named if named is None else str(named).rpartition('.')[2])


def _groups_with_pipeline(node: Any) -> Iterator[Dict]:
    """The configs with a pipeline below a loader, also inside wrapped and joined data sets."""
    if isinstance(node, dict):
        if isinstance(node.get('pipeline'), list):
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _groups_with_pipeline(child)
