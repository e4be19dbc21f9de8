"""Makes the one config file of a run: the base config, the launcher's options, then the user's overrides."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from recipe.core import config_text, console, inputs
from recipe.core.paths import CONFIGS
from recipe.core.run_options import Options
from recipe.data.sets import file as dataset_file
from recipe.engine import backbones, classes, config_values, dataset_config, training_options, weights
from recipe.engine import equip as engine
from recipe.engine import overrides as config_keys

RECIPE, DEMO = CONFIGS / 'mask2former_swin-b_cityscapes.py', CONFIGS / 'demo.py'
# (Iterations, iterations between validations) of a performance run.
PERFORMANCE, PERFORMANCE_DEMO = (1000, 1000), (100, 100)
# Settings that differ between a first start and a resume.
_OF_ONE_START = ('load_from', 'resume', 'model.backbone.init_cfg')
# Settings that say which code trains, not what is trained.
_OF_THE_ENGINE = ('custom_imports', 'runner_type')
# Settings that each process fills in before mmengine writes the config of the run.
_OF_A_PROCESS = ('launcher', 'work_dir', 'model_wrapper_cfg', 'env_cfg.dist_cfg.backend')
_CACHED = {'LoadResizedCrop', 'FastLoadImageFromFile', 'FastLoadAnnotations'}  # transforms that take a decoded cache
_IGNORED = (*_OF_ONE_START, *_OF_THE_ENGINE, *_OF_A_PROCESS)
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def make(options: Options, device: str, data_root: Path) -> Any:
    """Make the config of a run, except for the pretrained weights.

    Args:
        options: The user's options.
        device: ``npu``, ``cuda`` or ``cpu``.
        data_root: Root of the data set, absolute.

    Returns:
        An ``mmengine.Config``.

    Raises:
        console.UserError: The config cannot be read, an option or override does not fit it, or no training can have one
            of its values.
    """
    config = _base(options)
    data = dataset_file.read(options.dataset, options.data_path) if options.dataset else None
    if data is not None:
        dataset_config.apply(config, data)
    engine.use_recipe_runner(config)
    config['fast'] = options.fast
    if options.engine == 'recipe':
        engine.equip(config)
    max_iters, val_interval = options.max_iters, options.val_interval
    if not options.writes_checkpoints:
        usual = PERFORMANCE_DEMO if options.demo else PERFORMANCE
        max_iters = max_iters or usual[0]
        val_interval = val_interval or min(usual[1], max_iters)
        config.default_hooks['checkpoint'] = None
    if max_iters:
        _set_schedule(config, max_iters)
    if val_interval:
        config.train_cfg['val_interval'] = val_interval
        if config.default_hooks.get('checkpoint'):
            config.default_hooks.checkpoint['interval'] = val_interval
    if options.batch_size:
        config.train_dataloader['batch_size'] = options.batch_size
    training_options.apply(config, options)
    if options.num_workers is not None:
        _set_workers(config, options.num_workers)
    if options.seed is not None:
        config['randomness'] = dict(config.get('randomness') or {}, seed=options.seed)
    if options.amp:
        _set_precision(config, options.amp, device)
    if options.compile:
        _set_compile(config, device)
    if options.graph:
        _set_graph(config, device)
    if options.num_points is not None:
        _set_num_points(config, options.num_points)
    if options.keep_checkpoints is not None:
        _set_kept_checkpoints(config, options.keep_checkpoints)
    if options.tf32 is not None:
        config['allow_tf32'] = options.tf32
    if options.on_nan is not None:
        _set_skips(config.default_hooks.get('nonfinite_guard'), '--on_nan', 'max_skips', options.on_nan)
    if options.on_bad_image is not None:
        _set_skips(config.train_cfg, '--on_bad_image', 'max_unreadable', options.on_bad_image)
    for group in _dataset_groups([config.get(name) for name in _LOADERS]):
        group['data_root'] = str(data_root)
    if options.demo and not options.uses_demo_data:
        _take_any_size(config)
    if options.decoded_cache:
        _set_decoded_cache(config, inputs.absolute(options.decoded_cache), data_root)
    before = classes.numbers(config)
    override(config, options.overrides)
    classes.follow(config, before)
    if data is not None and classes.require(config) != len(data.names):
        raise console.UserError(
            f'override: the model has {classes.require(config)} classes, and {data.path} {len(data.names)}',
            'leave out the override; "map" in the file merges and ignores classes',
        )
    config_values.require(config)
    training_options.require_accumulation(config)
    return config


def _base(options: Options) -> Any:
    """The config file that the options name, with the backbone that they name."""
    if options.backbone is None:
        return load(Path(options.config) if options.config else (DEMO if options.demo else RECIPE))
    own = load(backbones.config_file(options.backbone))
    if options.config is None:
        return own
    config = load(Path(options.config))
    backbones.exchange(config, own)
    return config


def _take_any_size(config: Any) -> None:
    """Let the demo's pipelines take pictures of any size: a batch needs pictures of one size."""
    for group in _dataset_groups(config.train_dataloader):
        at = next((number for number, step in enumerate(group['pipeline']) if 'RandomFlip' in str(step['type'])), None)
        if at is not None:
            group['pipeline'].insert(at, dict(type='RandomCrop', crop_size=tuple(config.crop_size)))
    config.val_dataloader['batch_size'] = 1


def load(path: Path) -> Any:
    """Read a config file.

    Raises:
        console.UserError: It cannot be read, or is not the config of an iteration-based training.
    """
    from mmengine.config import Config

    _require_utf8(path, set())
    try:
        config = Config.fromfile(str(path))
    except Exception as error:  # a config is Python code and can raise anything
        raise console.UserError(f'--config: {path} cannot be read: {type(error).__name__}: {error}') from None
    needed = ('model', 'train_cfg', 'train_dataloader', 'val_dataloader', 'optim_wrapper', 'default_hooks')
    lacking = [name for name in needed if not config.get(name)]
    if lacking or not config.train_cfg.get('max_iters'):
        raise console.UserError(
            f'--config: {path} has no {", no ".join(lacking) or "train_cfg.max_iters"}',
            'give the config of a training by iterations, such as configs/mask2former_swin-b_cityscapes.py',
        )
    return config


def _require_utf8(path: Path, seen: Set[Path]) -> None:
    """Check the encoding of a config and of those that it inherits; mmengine's own error names no file."""
    if path in seen or not path.is_file():
        return  # mmengine names a file that is missing
    seen.add(path)
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise console.UserError(
            f'--config: {path} begins with a byte order mark (BOM)', 'save it as UTF-8 without a byte order mark'
        )
    try:
        text = data.decode('utf-8')
    except UnicodeDecodeError as error:
        line = data.count(b'\n', 0, error.start) + 1
        raise console.UserError(
            f'--config: {path} is not in UTF-8 (line {line}), perhaps in GBK', 'save it as UTF-8'
        ) from None
    bases = config_text.read_config(text).get('_base_') or []
    for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, (list, tuple)) else []:
        if isinstance(base, str) and '::' not in base:  # mmseg::FILE is in a package
            _require_utf8(Path(os.path.normpath(path.parent / base)), seen)


def _set_schedule(config: Any, max_iters: int) -> None:
    """Set the length of the training. Learning-rate phases that ended with the training still end with it."""
    before = config.train_cfg['max_iters']
    config.train_cfg['max_iters'] = max_iters
    phases = config.get('param_scheduler') or []
    phases = phases if isinstance(phases, list) else [phases]
    for phase in phases:
        if phase.get('end') == before or phase.get('end', 0) > max_iters:
            phase['end'] = max_iters
    # In a very short training only the warm-up may remain.
    config['param_scheduler'] = [phase for phase in phases if phase.get('begin', 0) < max_iters]
    logger = config.default_hooks.get('logger')
    if logger and logger.get('interval', 0) > max_iters:
        logger['interval'] = max_iters  # so that at least one loss is logged


def _set_workers(config: Any, workers: int) -> None:
    for name in _LOADERS:
        loader = config.get(name)
        if loader:
            loader.update(num_workers=workers, persistent_workers=workers > 0)
            if not workers:
                loader.pop('prefetch_factor', None)


def _set_decoded_cache(config: Any, folder: Path, data_root: Path) -> None:
    """Set the decoded cache in every transform that loads images."""
    found = [step for step in _steps([config.get(name) for name in _LOADERS]) if step.get('type') in _CACHED]
    if not found:
        raise console.UserError(f'--decoded_cache: no transform of the config is one of {", ".join(sorted(_CACHED))}')
    for step in found:
        step['decoded_cache'] = {'folder': str(folder), 'data_root': str(data_root)}


def _steps(node: Any) -> Iterator[dict]:
    """All groups with a ``type`` in a node and below it."""
    if isinstance(node, dict):
        if 'type' in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _steps(child)


def _set_precision(config: Any, amp: str, device: str) -> None:
    if amp == 'fp16' and device == 'cpu' and not _scales_on_cpu():
        raise console.UserError('--amp=fp16: on a CPU that takes torch 2.3 or newer', 'give --amp=bf16 or off')
    wrapper = config.optim_wrapper
    for name in ('dtype', 'loss_scale'):
        wrapper.pop(name, None)
    wrapper['type'] = {'bf16': 'Bf16OptimWrapper', 'fp16': 'Fp16OptimWrapper', 'off': 'OptimWrapper'}[amp]


def _set_num_points(config: Any, count: int) -> None:
    """Set the points of the loss; the matching of queries and masks uses the same number."""
    settings = (config.model.get('decode_head') or {}).get('train_cfg') or {}
    if 'num_points' not in settings:
        raise console.UserError(
            '--num_points: the config has no model.decode_head.train_cfg.num_points',
            'only Mask2Former compares masks at points; leave it out',
        )
    settings['num_points'] = count


def _set_kept_checkpoints(config: Any, count: int) -> None:
    if not config.default_hooks.get('checkpoint'):
        raise console.UserError('--keep_checkpoints: the config writes no checkpoints', 'leave it out')
    config.default_hooks.checkpoint['max_keep_ckpts'] = count


def _set_compile(config: Any, device: str) -> None:
    if device == 'npu':
        raise console.UserError('--compile=1: no compiler of graphs was tried on an NPU', 'leave it out')
    hooks = list(config.get('custom_hooks') or [])
    if not any(hook.get('type') == 'CompileHook' for hook in hooks):
        config['custom_hooks'] = [*hooks, {'type': 'CompileHook'}]


def _set_graph(config: Any, device: str) -> None:
    if device != 'cuda':
        raise console.UserError(
            f'--graph=1: a CUDA graph needs a GPU, and this training runs on {device}', 'leave it out'
        )
    if config.train_cfg.get('type') != 'ResumableIterBasedTrainLoop':
        raise console.UserError(
            '--graph=1: the config has no ResumableIterBasedTrainLoop, which would act on it', 'leave it out'
        )
    config.train_cfg['graph'] = True


def _scales_on_cpu() -> bool:
    import torch

    return hasattr(torch.amp, 'GradScaler')


def _set_skips(group: Any, option: str, key: str, count: int) -> None:
    """Set how many steps or images may be skipped; UserError if the config lacks the part that skips them."""
    takes = {'max_skips': 'NonFiniteGuardHook', 'max_unreadable': 'ResumableIterBasedTrainLoop'}[key]
    if not group or group.get('type') != takes:
        raise console.UserError(
            f'{option}: the config has no {takes}, which would act on it', 'leave out --engine=upstream'
        )
    group[key] = count


def _dataset_groups(node: Any) -> Iterator[dict]:
    """The groups with a data_root in a node and below it, also inside wrapped and joined data sets."""
    if isinstance(node, dict):
        if 'data_root' in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _dataset_groups(child)


def override(config: Any, overrides: List[str]) -> None:
    """Apply the overrides that the user gave after ``--``, in the syntax of mmengine's ``--cfg-options``.

    Args:
        config: ``mmengine.Config``; changed in place.
        overrides: ``key=value`` each.

    Raises:
        console.UserError: The config does not have a key, or holds another kind of value there.
    """
    from mmengine.config import DictAction

    if not overrides:
        return
    parser = argparse.ArgumentParser()
    parser.add_argument('overrides', nargs='+', action=DictAction)
    for key, value in parser.parse_args(overrides).overrides.items():
        config_keys.require(config, key, value)
        config.merge_from_dict({key: value})


def weights_source(config: Any) -> Optional[str]:
    """URL or path of the backbone's pretrained weights in the config, None if it names none.

    Raises:
        console.UserError: It is a name such as ``torchvision://resnet50`` that mmengine does not know.
    """
    start = config.model.get('backbone', {}).get('init_cfg')
    named = start.get('checkpoint') if isinstance(start, dict) and start.get('type') == 'Pretrained' else None
    return named and weights.resolve(str(named))


def set_weights(config: Any, path: Optional[Path]) -> None:
    """Set the weights file that the backbone starts from; None: it starts from scratch."""
    backbone = config.model['backbone']
    if path is not None:
        backbone['init_cfg'] = {'type': 'Pretrained', 'checkpoint': str(path)}
    elif weights_source(config) is not None:
        backbone['init_cfg'] = None


def differences(before: Path, config: Any, device: str = 'cpu') -> List[str]:
    """Settings that a resumed run has changed, ``key: old -> new``.

    Settings that the user does not choose are left out: the types that ``equip()`` puts in place of others, of today or
    of an earlier version, and what each process fills in.

    Args:
        before: Config file of the run so far. If it is missing, there are no differences.
        config: ``mmengine.Config`` for the resumed run.
        device: ``npu``, ``cuda`` or ``cpu``.
    """
    if not before.is_file():
        return []
    # The file is read and not run, because a run folder may be of unknown origin.
    texts = before.read_text(encoding='utf-8', errors='replace'), config.pretty_text
    old, new = (_leaves_in_full(config_text.read_config(text), device) for text in texts)
    # Each engine has its own transforms, which differ in every step.
    ignored = _IGNORED if old['engine'] == new['engine'] else (*_IGNORED, *(f'{name}.dataset.' for name in _LOADERS))
    return [
        f'{key}: {old.get(key)} -> {new.get(key)}'
        for key in sorted({*old, *new}, key=str)
        if old.get(key) != new.get(key) and not str(key).startswith(ignored)
    ]


def _leaves_in_full(settings: Dict[str, Any], device: str) -> Dict[str, Any]:
    """The leaves of a config after ``equip()`` and with the settings that a rank fills in, and which engine it had."""
    from mmengine.config import Config

    from recipe.engine.loaders import prepare_loaders

    config = Config({'fast': True, **settings})
    loop = settings.get('train_cfg')
    name = 'recipe' if isinstance(loop, dict) and 'Resumable' in str(loop.get('type')) else 'upstream'
    with contextlib.suppress(Exception):  # a file of unknown origin, or a config that equip() refuses
        engine.equip(config)
        prepare_loaders(config, device)
    read = config_keys.read_settings(config)
    return {'engine': name, **dict(config_keys.leaves({key: config[key] for key in config if key in read}))}


def build_model(config: Any) -> Any:
    """Build the model on the CPU without initialising its weights, to check the config.

    Returns:
        A ``torch.nn.Module``.

    Raises:
        console.UserError: The model cannot be built.
    """
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope(config.get('default_scope', 'mmseg'))
    try:
        return MODELS.build(config.model)
    except Exception as error:  # classes raise many kinds of errors for wrong arguments
        raise console.UserError(f'the config does not make a model: {type(error).__name__}: {error}') from None


def build_optimizer(config: Any, model: Any) -> Tuple[Any, List[Any]]:
    """Build the optimizer and its schedules, to check whether a checkpoint fits them.

    Args:
        config: ``mmengine.Config``.
        model: From ``build_model``.

    Returns:
        An ``OptimWrapper`` and the schedules. It has no mixed precision, which may need an accelerator. If the config
        has several optimizers, None and [].

    Raises:
        console.UserError: They cannot be built.
    """
    import copy

    from mmengine.logging import MMLogger
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import PARAM_SCHEDULERS

    asked = copy.deepcopy(config.optim_wrapper)
    if 'optimizer' not in asked:
        return None, []  # several optimizers
    asked['type'] = 'OptimWrapper'
    for name in ('dtype', 'loss_scale', 'use_fsdp'):
        asked.pop(name, None)
    phases = config.get('param_scheduler') or []
    phases = phases if isinstance(phases, list) else [phases]
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')  # otherwise it lists each parameter
    try:
        wrapper = build_optim_wrapper(model, asked)
        schedulers = [
            PARAM_SCHEDULERS.build(
                {key: value for key, value in phase.items() if key != 'convert_to_iter_based'},
                default_args={'optimizer': wrapper},
            )
            for phase in phases
        ]
    except Exception as error:  # classes raise many kinds of errors for wrong arguments
        raise console.UserError(f'the config does not make an optimizer: {type(error).__name__}: {error}') from None
    finally:
        logger.setLevel(level)
    return wrapper, schedulers
