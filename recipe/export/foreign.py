"""Reads the weights of any Mask2Former: a checkpoint of ours or of mmsegmentation, or a file of another trainer.

All are read as data; no code in them runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from recipe.core import console, json_files
from recipe.export import libraries, names

HF_CONFIG, HF_TYPE = 'config.json', 'mask2former'
_SAFETENSORS = '.safetensors'
_HF_INDEX, _HF_FILES = 'model.safetensors.index.json', ('model.safetensors', 'pytorch_model.bin')
# Part of a tensor's name in Swin of facebookresearch and Hugging Face, and in detectron2's ResNet.
_BACKBONES = ('backbone.layers.', '.encoder.encoder.layers.', 'backbone.res2.')
TITLES = {names.FACEBOOK: 'facebookresearch', names.HUGGINGFACE: 'Hugging Face', None: 'mmsegmentation'}


class ForeignWeights(NamedTuple):
    """Weights with our names.

    Attributes:
        path: File or folder that they are from.
        style: ``facebook``, ``huggingface``, or None for our names.
        weights: Tensors by our name.
        unknown: Names in the file that have no counterpart.
        classes: Names of its classes, in their order; None if it names none.
        config: Content of Hugging Face's config.json; empty for other files.
    """

    path: Path
    style: Optional[str]
    weights: Dict[str, Any]
    unknown: List[str]
    config: Dict[str, Any]
    classes: Optional[List[str]] = None

    @property
    def is_checkpoint(self) -> bool:
        """Whether mmengine can load the file as it is."""
        from recipe.engine.checkpoint import is_plain_pickle

        is_torch = self.path.is_file() and self.path.suffix != _SAFETENSORS and not is_plain_pickle(str(self.path))
        return self.style is None and is_torch


def read(path: Path) -> ForeignWeights:
    """Read weights and give them our names.

    Args:
        path: A checkpoint of torch, a ``.safetensors`` file, facebookresearch's ``.pkl`` file, or a folder of Hugging
            Face's ``save_pretrained``.

    Raises:
        console.UserError: It cannot be read, or holds no Mask2Former.
    """
    config: Dict[str, Any] = {}
    if path.is_dir():
        config = _hf_config(path)
        tensors = {name: value for file in _hf_files(path) for name, value in _tensors(file)[0].items()}
        classes = _hf_classes(config)
    else:
        tensors, classes = _tensors(path)
    style = names.style_of(tensors)
    if style is None:
        return ForeignWeights(path, None, tensors, [], config, classes)
    if not any(mark in name for name in tensors for mark in _BACKBONES):
        raise console.UserError(
            f"{path} is {TITLES[style]}'s, but its backbone is neither Swin nor ResNet", 'only these two are converted'
        )
    renamed = names.from_foreign(tensors, style)
    return ForeignWeights(path, style, renamed.weights, renamed.unknown, config, classes)


def _hf_config(folder: Path) -> Dict[str, Any]:
    path = folder / HF_CONFIG
    try:
        config = json_files.read(path, dict)
    except FileNotFoundError:
        fix = "give a folder of Hugging Face's save_pretrained"
        raise console.UserError(f'{folder} holds no {HF_CONFIG}', fix) from None
    except (OSError, ValueError) as error:
        raise console.UserError(f'{path} cannot be read: {console.reason(error)}', 'bring the folder again') from None
    kind = config.get('model_type')
    if kind != HF_TYPE:
        raise console.UserError(f'{folder} is of another architecture: model_type is {kind}, not {HF_TYPE}')
    backbone = config.get('backbone_config')
    backbone_type = backbone.get('model_type') if isinstance(backbone, dict) else None
    if backbone_type != 'swin':
        raise console.UserError(f'{folder}: its backbone is {backbone_type}, not swin', 'only Swin is converted')
    return config


def _hf_files(folder: Path) -> List[Path]:
    """The weight files of a folder: one, or those that its index lists."""
    index = folder / _HF_INDEX
    if index.is_file():
        try:
            listed = sorted(set(json_files.read(index, dict)['weight_map'].values()))
            found = [folder / Path(str(name)).name for name in listed]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise console.UserError(f'{index} cannot be read: {error}', 'bring the folder again') from None
    else:
        found = [folder / name for name in _HF_FILES if (folder / name).is_file()][:1]
    missing = [path.name for path in found if not path.is_file()]
    if missing or not found:
        raise console.UserError(f'{folder} lacks {", ".join(missing) or _HF_FILES[0]}', 'bring the folder again')
    return found


def _tensors(path: Path) -> Tuple[Dict[str, Any], Optional[List[str]]]:
    """All tensors of a file, by its own names, and the names of its classes if it holds them."""
    found, classes = (_safetensors(path), None) if path.suffix == _SAFETENSORS else _pickled(path)
    if not found:
        raise console.UserError(f'{path} holds no weights')
    return found, classes


def _safetensors(path: Path) -> Dict[str, Any]:
    libraries.require(f'reading {path.name}', 'safetensors')
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise console.UserError(f'{path} cannot be read: {error}', 'bring the file again') from None


def _pickled(path: Path) -> Tuple[Dict[str, Any], Optional[List[str]]]:
    from recipe.engine.checkpoint import (
        CheckpointError,
        UntrustedCheckpointError,
        is_plain_pickle,
        load_from_local,
        load_outline,
        load_pickle,
        read_in_own_process,
    )

    is_pickle = False
    try:
        is_pickle = is_plain_pickle(str(path))
        look, load = (load_pickle, load_pickle) if is_pickle else (load_outline, load_from_local)
        # In a child process first: a file of unknown origin could crash the reader.
        read_in_own_process(str(path), lambda source: len(_state(look(source))))
        content = load(str(path))
        return _state(content), _classes(content)
    except UntrustedCheckpointError as error:
        trust = '' if is_pickle else ', or --trust_checkpoint if you trust where it comes from'
        raise console.UserError(str(error), f'give another file{trust}') from None
    except (CheckpointError, OSError) as error:
        raise console.UserError(str(error), 'bring the file again') from None


def _classes(content: Any) -> Optional[List[str]]:
    """Names of the classes in a checkpoint of ours or of mmsegmentation."""
    for name in ('meta', 'dataset_meta', 'classes'):
        content = content.get(name) if isinstance(content, dict) else None
    is_list = isinstance(content, (list, tuple)) and all(isinstance(name, str) for name in content)
    return list(content) if is_list and content else None


def _hf_classes(config: Dict[str, Any]) -> Optional[List[str]]:
    """Names of the classes in Hugging Face's config."""
    labels = config.get('id2label')
    named: List[Any] = [labels.get(str(number)) for number in range(len(labels))] if isinstance(labels, dict) else []
    return named if named and all(isinstance(name, str) for name in named) else None


def _state(content: Any) -> Dict[str, Any]:
    """The tensors in a checkpoint's content; numpy arrays become tensors."""
    import numpy as np
    import torch

    from recipe.engine.checkpoint import state_of

    state = state_of(content)
    state = {name: torch.from_numpy(one) if isinstance(one, np.ndarray) else one for name, one in state.items()}
    return {name: one for name, one in state.items() if isinstance(one, torch.Tensor)}
