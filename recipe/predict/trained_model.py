"""Loads a trained model from a checkpoint or a run folder.

The checkpoint and the config in it are read as data: nothing in them runs.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from recipe.core import config_text, console, imported_packages, inputs, run_folder

# iter_5000.pth, best_mIoU_iter_5000.pth, epoch_12.pth
_CHECKPOINT_NAME = re.compile(r'(?P<best>best_.+_)?(?:iter|epoch)_(?P<count>\d+)\.pth')
_MOST_CLASSES = 256  # a label map holds bytes
# Steps of a test pipeline that change the picture, and those that do not.
_RESIZES = {'Resize', 'ResizeShortestEdge'}
_NO_CHANGE = re.compile(r'(Fast)?(LoadImageFromFile|LoadAnnotations|LoadCodedAnnotations|PackSegInputs)')

Size = Tuple[int, int]


@dataclass
class TrainedModel:
    """A trained segmentor, ready to predict.

    Its methods may be called by several threads; the model runs for one of them at a time.

    Attributes:
        model: mmseg's segmentor in eval mode, on its device; no parameter takes a gradient.
        config: ``mmengine.Config`` of its training. Only its ``model`` was checked; it may name any code elsewhere.
        config_text: The config as text, as mmengine dumps it.
        classes: Names of the classes.
        palette: Colours of the classes, uint8, shape (C, 3), RGB.
        path: The checkpoint.
        meta: ``meta`` of the checkpoint, such as the iteration; empty if it has none.
        device: Where the model is, such as ``cpu`` or ``cuda:1``.
    """

    model: Any
    config: Any
    config_text: str
    classes: Tuple[str, ...]
    palette: np.ndarray
    path: Path
    meta: Dict[str, Any]
    device: str
    _resizes: List[Any] = field(default_factory=list, repr=False)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def scores(self, batch: Any, size: Optional[Size] = None) -> Any:
        """Score of each class at each pixel, before the choice of a class.

        For Mask2Former they are sums over the queries (see ``recipe.models.class_maps.class_scores``): neither logits
        nor probabilities. Averages of them are right for test-time augmentation; a softmax of them is not.

        Args:
            batch: Pictures of one size, as mmseg's loading transforms give them: torch.Tensor of shape (N, 3, H, W),
                BGR, 0 to 255, uint8 or float, on any device.
            size: (H, W) to which the scores are resized bilinearly; None: that of the pictures.

        Returns:
            torch.Tensor, float32, shape (N, C, H, W), on the model's device. C is 1 for a model with one binary output.
        """
        return self.scores_and_labels(batch, size)[0]

    def labels(self, batch: Any, size: Optional[Size] = None) -> Any:
        """Class of each pixel, as mmseg chooses it in a validation.

        Args:
            batch: As for ``scores``.
            size: As for ``scores``.

        Returns:
            torch.Tensor, uint8, shape (N, H, W), on the model's device.
        """
        import torch

        return torch.cat([sample.pred_sem_seg.data for sample in self._predict(batch, size)]).to(torch.uint8)

    def scores_and_labels(self, batch: Any, size: Optional[Size] = None) -> Tuple[Any, Any]:
        """Both ``scores`` and ``labels``, with the model run once."""
        import torch

        samples = self._predict(batch, size)
        labels = torch.cat([sample.pred_sem_seg.data for sample in samples]).to(torch.uint8)
        return torch.stack([sample.seg_logits.data for sample in samples]).float(), labels

    def _predict(self, batch: Any, size: Optional[Size]) -> List[Any]:
        """One ``SegDataSample`` of mmseg for each picture, as in a validation."""
        import torch
        from mmseg.structures import SegDataSample

        meta = {'img_shape': tuple(batch.shape[-2:]), 'ori_shape': tuple(size or batch.shape[-2:])}
        samples = [SegDataSample(metainfo=dict(meta)) for _ in batch]
        with self._one_at_a_time, torch.no_grad():
            predicted: List[Any] = self.model.test_step({'inputs': list(batch), 'data_samples': samples})
        return predicted

    def as_batch(self, pictures: Sequence[np.ndarray]) -> Any:
        """Resize pictures as the config's validation does, and make them a batch.

        Args:
            pictures: uint8, all of one shape (H, W, 3), BGR.

        Returns:
            torch.Tensor, uint8, shape (N, 3, h, w), on the CPU. Give (H, W) as ``size`` to the other methods with it.
        """
        import torch

        resized = np.stack([self.resized(picture) for picture in pictures])
        return torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()

    def resized(self, picture: np.ndarray) -> np.ndarray:
        """Resize a picture as the config's validation does.

        Args:
            picture: uint8, shape (H, W, 3).

        Returns:
            The same kind of array. The config of Cityscapes makes it fit into 1024 x 2048.
        """
        import cv2

        results: Dict[str, Any] = {'img': picture, 'img_shape': picture.shape[:2]}
        for step in self._resizes:
            with contextlib.suppress(cv2.error):  # too narrow: not even a pixel would be left of a side
                results = step(results)
        resized: np.ndarray = results['img']
        return resized


def load_trained_model(
    source: Union[str, Path], device: str = 'auto', config: Union[str, Path, None] = None, fast: bool = True
) -> TrainedModel:
    """Load a trained model.

    Args:
        source: A checkpoint, or the folder of a run, which means its best checkpoint, or its last one if none is best.
        device: ``auto``, ``cpu``, ``cuda`` or ``npu``, with a number if it is not to be the current one: ``cuda:1``.
        config: Config file of the training, which runs as Python. None: the config in the checkpoint, or ``config.py``
            beside it; both are read as data.
        fast: Use the fast modules, see ``recipe.models.accelerate``.

    Returns:
        The model.

    Raises:
        console.UserError: There is none, it cannot be read, or checkpoint and config do not fit each other; says where
            they differ first.
    """
    imported_packages.require()
    path = find_checkpoint(source)
    place = _choose_device(device)
    weights, meta = _read(path)
    found = _own_config(path, meta, len(weights)) if config is None else _given_config(config)
    model = _build(found.config)
    _load_weights(model, weights, path, found.origin)
    if fast:
        from recipe.models import accelerate

        accelerate(model)
    model.requires_grad_(False).eval().to(place)
    classes, palette = _classes(meta, found.config, int(model.num_classes))
    return TrainedModel(model, found.config, found.text, classes, palette, path, meta, place, _resizes_of(found.config))


def find_checkpoint(source: Union[str, Path]) -> Path:
    """The checkpoint that a user means.

    Args:
        source: A file, or the folder of a run: its best checkpoint by mIoU, or its last one if none is best. Prints
            which one that is. A folder with a single ``.pth`` file of another name means this file.

    Raises:
        console.UserError: There is none.
    """
    given = inputs.absolute(str(source))
    if not given.is_dir():
        return inputs.require_file('checkpoint', str(given))
    paths = sorted(path for path in given.glob(run_folder.CHECKPOINTS) if not path.name.startswith('.'))
    named = [(match, path) for path in paths for match in [_CHECKPOINT_NAME.fullmatch(path.name)] if match]
    if named:
        best, _, path = max((_rank(match['best']), int(match['count']), path) for match, path in named)
        console.say(f'{given}: its {"best" if best else "last"} checkpoint, {path.name}')
        return inputs.require_file('checkpoint', str(path))
    if len(paths) == 1:
        return inputs.require_file('checkpoint', str(paths[0]))
    raise console.UserError(
        f'checkpoint: {given} holds no iter_N.pth', 'give a checkpoint, or the folder of a run that wrote one'
    )


def _rank(best: Optional[str]) -> int:
    """2 for the best checkpoint by mIoU, 1 for the best one by something else, 0 for any other."""
    return 0 if best is None else 2 if best == 'best_mIoU_' else 1


def _choose_device(asked: str) -> str:
    from recipe.engine import devices

    kind, _, number = asked.partition(':')
    if kind == 'cpu' and not number:
        return kind  # devices.find would hide the accelerators from the whole process
    if kind not in ('auto', 'cuda', 'npu') or (number and (kind == 'auto' or not number.isdigit())):
        raise console.UserError(f'device: {asked} is no device', 'give auto, cpu, cuda, npu, or such as cuda:1')
    found, count = devices.find(kind)
    if not number:
        return found
    if int(number) >= count:
        raise console.UserError(f'device: there is no {asked}, the last one is {kind}:{count - 1}')
    return asked


def _read(path: Path) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Weights and meta of a checkpoint, on the CPU."""
    from recipe.engine import weights
    from recipe.engine.checkpoint import (
        CheckpointError,
        UntrustedCheckpointError,
        load_from_local,
        load_outline,
        read_in_own_process,
    )

    weights.require_hash(path, path.name)
    try:
        # In a child process first: a file of unknown origin could crash the reader.
        read_in_own_process(str(path), lambda source: len(_weights_in(source, load_outline(source))))
        content = load_from_local(str(path), map_location='cpu')
        found = _weights_in(str(path), content)
    except UntrustedCheckpointError as error:
        fix = 'give --trust_checkpoint (in Python: set MMSEG_TRUST_CHECKPOINT=1) if you trust where the file comes from'
        raise console.UserError(f'checkpoint {error}', fix) from None
    except (CheckpointError, OSError) as error:
        raise console.UserError(f'checkpoint {error}', 'give another one') from None
    meta = content.get('meta')
    return found, meta if isinstance(meta, dict) else {}


def _weights_in(source: str, content: Any) -> Dict[str, Any]:
    import torch

    from recipe.engine.checkpoint import CheckpointError, state_of

    weights = state_of(content)
    if not weights:
        raise CheckpointError(source, 'holds no weights')
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(source, 'holds weights that are no tensors')
    return weights


class _Config(NamedTuple):
    config: Any
    text: str
    origin: str


def _own_config(path: Path, meta: Dict[str, Any], tensors: int) -> _Config:
    """The config in a checkpoint, or in ``config.py`` beside it, read as data."""
    from mmengine.config import Config

    from recipe.engine import untrusted_config
    from recipe.engine.checkpoint import is_trusted

    beside = path.with_name(run_folder.CONFIG)
    texts: List[Tuple[str, Any]] = [(str(path), meta.get('cfg'))]
    if beside.is_file():
        texts.append((str(beside), beside.read_text(encoding='utf-8', errors='replace')))
    for origin, text in texts:
        content = config_text.read_config(text) if isinstance(text, str) else {}
        if not isinstance(content.get('model'), dict):
            continue
        if not is_trusted():
            try:
                content['model'] = untrusted_config.read_model(content['model'], tensors)
            except console.UserError as error:
                fix = 'give --config=FILE, which runs as Python, if the model has parts of your own'
                raise console.UserError(f'{origin}: {error.problem}', fix) from None
        try:
            return _Config(Config(content), text, origin)
        except Exception as error:  # keys that a Config cannot have
            raise console.UserError(f'{origin}: the config cannot be used: {error}', 'give --config=FILE') from None
    raise console.UserError(
        f'checkpoint {path}: it holds no config of a model, and {beside.name} beside it does not either',
        'give the config of its training with --config=FILE',
    )


def _given_config(given: Union[str, Path]) -> _Config:
    from mmengine.config import Config

    path = inputs.require_file('config', str(given))
    try:
        config = Config.fromfile(str(path))
    except Exception as error:  # a config is Python code and can raise anything
        raise console.UserError(f'config: {path} cannot be read: {type(error).__name__}: {error}') from None
    if not isinstance(config.get('model'), dict):
        raise console.UserError(f'config: {path} has no model', 'give the config of a training')
    return _Config(config, config.pretty_text, str(path))


def _build(config: Any) -> Any:
    from mmengine.model import revert_sync_batchnorm
    from mmseg.models.segmentors.base import BaseSegmentor

    from recipe.engine.config import build_model

    with contextlib.redirect_stdout(io.StringIO()):  # hides what mmengine logs while it builds a model
        model = build_model(config)
    if not isinstance(model, BaseSegmentor) or not hasattr(model, 'num_classes'):
        raise console.UserError(f'the config makes a {type(model).__name__}, which is no segmentor of mmseg')
    if int(model.num_classes) > _MOST_CLASSES:
        raise console.UserError(f'the model has {model.num_classes} classes; label maps hold at most {_MOST_CLASSES}')
    return revert_sync_batchnorm(model)  # alike in eval mode


def _load_weights(model: Any, weights: Dict[str, Any], path: Path, origin: str) -> None:
    from recipe.engine.checkpoint import misfit

    wrong = misfit({'state_dict': weights}, model)
    if wrong is None:
        try:
            model.load_state_dict(weights, strict=False)  # tensors of indices may differ between versions
            return
        except RuntimeError as error:  # a sparse or quantised tensor
            wrong = str(error)
    raise console.UserError(
        f'checkpoint {path} {wrong}', f'give the config of its training with --config=FILE; this one is of {origin}'
    )


def _classes(meta: Dict[str, Any], config: Any, count: int) -> Tuple[Tuple[str, ...], np.ndarray]:
    """Names and colours of the classes: from the checkpoint, or those of the config's data set, or made up."""
    for facts in (meta.get('dataset_meta'), _data_set(config)):
        if not isinstance(facts, dict):
            continue
        names = facts.get('classes')
        if isinstance(names, (list, tuple)) and len(names) == count:
            return tuple(map(str, names)), _palette(facts.get('palette'), count)
    console.warn(f'neither checkpoint nor config names {count} classes; they are called class 0, class 1, ...')
    return tuple(f'class {number}' for number in range(count)), _palette(None, count)


def _data_set(config: Any) -> Any:
    """Facts of the training's data set: its classes and palette; None if the config names no known one."""
    from mmseg.registry import DATASETS

    DATASETS.import_from_location()
    kind = dataset_of(config.get('train_dataloader')).get('type')
    return getattr(DATASETS.module_dict.get(_class_name(kind)), 'METAINFO', None)


def _palette(given: Any, count: int) -> np.ndarray:
    """Colours as an array, or made-up ones, which are the same each time."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        colours = np.asarray(given, dtype=np.uint8)
        if colours.shape == (count, 3):
            return colours
    return np.random.default_rng(0).integers(0, 256, (count, 3), dtype=np.uint8)


def _resizes_of(config: Any) -> List[Any]:
    """The transforms that resize pictures in the config's validation."""
    from mmseg.registry import TRANSFORMS

    pipelines = (dataset_of(config.get(name)).get('pipeline') for name in ('test_dataloader', 'val_dataloader'))
    steps: Any = next(filter(None, pipelines), [])
    found = []
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, dict) or 'type' not in step:
            continue
        name = _class_name(step['type'])
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in step.items()}
        del settings['type']
        # A setting that is a string could name any code.
        if name in _RESIZES and not any(isinstance(value, (str, dict)) for value in settings.values()):
            try:
                found.append(TRANSFORMS.build({'type': f'mmseg.{name}', **settings}))
            except Exception as error:  # transforms raise many kinds of errors for wrong arguments
                raise console.UserError(f'the test pipeline of the config: {type(error).__name__}: {error}') from None
        elif not _NO_CHANGE.fullmatch(name):
            console.warn(f'the step {name} of the test pipeline is left out')
    return found


def _class_name(kind: Any) -> str:
    """Name of a class that a config names with or without its scope, or holds itself."""
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def dataset_of(loader: Any) -> Dict[str, Any]:
    """Settings of a data loader's data set; if it is wrapped, of the innermost one."""
    node = loader
    while isinstance(node, dict) and isinstance(node.get('dataset'), dict):
        node = node['dataset']
    return node if isinstance(node, dict) else {}
