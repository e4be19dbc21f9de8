"""Finds the backbone's pretrained weights, downloads them if needed, and compares them with the model."""

from __future__ import annotations

import functools
import queue
import re
import sys
import threading
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from recipe.core import console, files, inputs, json_files
from recipe.engine import starting_weights

PRETRAINED, LOAD_FROM = '--pretrained', 'load_from'
_OTHERWISE = {
    PRETRAINED: 'give --pretrained=FILE, or --pretrained=none to train from scratch',
    LOAD_FROM: 'give a checkpoint after a lone --: load_from=FILE',
}
_URL = re.compile(r'https?://')
# mmengine's tables of the URLs of named weights, such as torchvision://resnet50.
_TABLES = {'torchvision': 'torchvision_0.12.json', 'open-mmlab': 'openmmlab.json', 'mmcls': 'mmcls.json'}
TIMEOUT_S = 10  # to connect, and for each read; short, so that offline machines fail soon
_HASH = re.compile(r'-([0-9a-f]{8,64})\.pth$')  # OpenMMLab's and torch.hub's file names end with part of the sha256
# The backbone itself resizes Swin's tables of another window size.
_RESIZED = 'relative_position_bias_table'
# Share of the backbone's tensors that a file has to hold. Classification weights lack the norms of the output stages:
# 8 of Swin-B's 329 tensors.
_ENOUGH = 0.9


def cache_folder() -> Path:
    """Folder of torch's downloaded weights: ``~/.cache/torch/hub/checkpoints``, or below TORCH_HOME."""
    import torch

    return Path(torch.hub.get_dir()) / 'checkpoints'


def locate(given: Optional[str], source: Optional[str], option: str = PRETRAINED) -> Optional[Path]:
    """Find the weights file; download it if it is not there.

    Args:
        given: Value of ``--pretrained``.
        source: URL or path in the config, None for training from scratch.
        option: What names it, for messages: ``--pretrained`` or ``load_from``.

    Returns:
        The file, None for training from scratch. If its name holds part of its sha256, the file matches it.

    Raises:
        console.UserError: It is damaged; or there is none and it cannot be downloaded (names URL and target path).
    """
    named = _named(given, source)
    if named is None:
        return None
    if not _URL.match(named):
        path = inputs.absolute(named)
        if not path.is_file():
            raise console.UserError(f'{option}: there is no weights file {path}', _OTHERWISE[option])
        require_hash(path, path.name)
        return path
    path = _cached(named)
    if not path.is_file():
        _download(named, path, option)
    require_hash(path, path.name)
    return path


def resolve(source: str) -> str:
    """The URL of weights that a config names as ``torchvision://resnet50``; other sources stay as they are.

    mmengine's own resolution imports torchvision, which the recipe does not need.

    Raises:
        console.UserError: mmengine knows no weights of this name.
    """
    scheme, separator, name = source.partition('://')
    if not separator or scheme not in _TABLES:
        return source
    import mmengine

    table = json_files.read(Path(mmengine.__file__).parent / 'hub' / _TABLES[scheme], dict)
    if name not in table:
        raise console.UserError(f'{PRETRAINED}: mmengine knows no weights {source}', _OTHERWISE[PRETRAINED])
    return str(table[name])


def _named(given: Optional[str], source: Optional[str]) -> Optional[str]:
    if given == 'none' or (given is None and not source):
        return None
    return given if given is not None else str(source)


def _cached(url: str) -> Path:
    return cache_folder() / url.rsplit('/', 1)[-1]


def to_download(given: Optional[str], source: Optional[str]) -> Optional[Tuple[str, Path]]:
    """URL and target path of a weights file that ``locate`` would download, None if it would download none.

    Args:
        given: As for ``locate``.
        source: As for ``locate``.
    """
    named = _named(given, source)
    if named is None or not _URL.match(named) or _cached(named).is_file():
        return None
    return named, _cached(named)


def require_hash(path: Union[str, Path], name: str) -> None:
    """Compare a weights file with the part of its sha256 that its name holds; a name without one is not compared.

    Args:
        path: The file.
        name: Its final name.

    Raises:
        console.UserError: They differ.
    """
    match = _HASH.search(name)
    if match is None:
        return
    digest = files.sha256(path)
    if not digest.startswith(match[1]):
        raise console.UserError(
            f'weights file {path} is damaged: its sha256 begins with {digest[: len(match[1])]}, not with '
            f'{match[1]} as its name says',
            'remove it and bring it again',
        )


def _download(url: str, path: Path, option: str) -> None:
    """Download a file; a download that fails leaves nothing at ``path``."""
    console.say(f'downloading {url} to {path}')
    try:
        with _open(url) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            check = functools.partial(require_hash, name=path.name)
            with files.whole(path, check) as partial, partial.open('wb') as file:
                _copy(response, file, path.name)
    except (OSError, HTTPException, ValueError) as error:
        raise console.UserError(
            f'{option}: cannot download the weights ({error})',
            f'bring {url} by other means and put it at {path}, or {_OTHERWISE[option]}',
        ) from None


def _open(url: str) -> Any:
    """Open a URL within 2 * TIMEOUT_S. urlopen's timeout does not limit the name lookup, which may take minutes."""
    answer: queue.Queue = queue.Queue()

    def ask() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=TIMEOUT_S))
        except (OSError, HTTPException, ValueError) as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=2 * TIMEOUT_S)
    except queue.Empty:
        raise TimeoutError(f'no answer within {2 * TIMEOUT_S} s') from None
    if isinstance(found, Exception):
        raise found
    return found


def _copy(response: Any, file: Any, name: str) -> None:
    from rich.progress import wrap_file

    length = int(response.headers.get('Content-Length') or 0)
    received = 0
    with wrap_file(response, length, description=name, disable=not sys.stdout.isatty()) as reader:
        for block in iter(lambda: reader.read(1 << 20), b''):
            received += file.write(block)
    if received < length:
        raise OSError(f'the connection ended after {received} of {length} bytes')


@dataclass(frozen=True)
class Match:
    """Names of the tensors that do and do not match between a weights file and a backbone.

    Attributes:
        found: In both, with the same shape.
        resized: In both; the backbone resizes them.
        missing: Learned tensors of the backbone that the file lacks.
        unexpected: Tensors of the file that the backbone lacks.
        other_shape: In both, with different shapes.
    """

    found: List[str]
    resized: List[str]
    missing: List[str]
    unexpected: List[str]
    other_shape: List[str]

    def __str__(self) -> str:
        needed = len(self.found) + len(self.resized) + len(self.missing)
        words = [f'{len(self.found)} of {needed} tensors of the backbone']
        for what, names in (('resized', self.resized), ('missing', self.missing), ('unexpected', self.unexpected)):
            if names or what != 'resized':
                words.append(f'{len(names)} {what}' + (f' ({_some(names)})' if names else ''))
        return ', '.join(words)


def _some(names: List[str], most: int = 3) -> str:
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')


def compare(path: Path, parameters: Mapping[str, Any], buffers: Mapping[str, Any]) -> Match:
    """Compare a weights file with a backbone.

    Args:
        path: Weights file of OpenMMLab (classification or segmentation), or with a plain dict of tensors.
        parameters: The backbone's learned tensors, by name.
        buffers: Its other tensors, which the file may hold as well.

    Raises:
        console.UserError: The file is not a weights file, or is of another model.
    """
    shapes = _shapes(path)
    match = Match([], [], [], [], [])
    for name, parameter in parameters.items():
        shape = tuple(parameter.shape)
        if name not in shapes:
            match.missing.append(name)
        elif shapes[name] == shape:
            match.found.append(name)
        elif name.endswith(_RESIZED) and shapes[name][1:] == shape[1:]:
            match.resized.append(name)
        else:
            match.other_shape.append(name)
    match.unexpected.extend(name for name in shapes if name not in parameters and name not in buffers)
    if match.other_shape:
        name = match.other_shape[0]
        raise console.UserError(
            f'weights file {path} is of another model: {name} is {shapes[name]} there and '
            f'{tuple(parameters[name].shape)} in the backbone ({len(match.other_shape)} tensors differ)',
            "give the --pretrained file of the config's backbone",
        )
    if len(match.found) + len(match.resized) < _ENOUGH * len(parameters):
        convert = any(name.startswith('layers.') for name in shapes)
        raise console.UserError(
            f'weights file {path} is of another model: {match}',
            (
                "convert Swin's own files with mmsegmentation/tools/model_converters/swin2mmseg.py"
                if convert
                else "give the --pretrained file of the config's backbone"
            ),
        )
    return match


def locate_start(source: Any) -> Path:
    """Find the checkpoint in ``load_from``; download it if it is not there.

    Args:
        source: Path or URL.

    Raises:
        console.UserError: As ``locate``, or it is neither a path nor such a URL.
    """
    if not isinstance(source, str) or ('://' in source and not _URL.match(source)):
        raise console.UserError(f'load_from={source!r} is neither a file nor a URL of http', _OTHERWISE[LOAD_FROM])
    path = locate(None, source, LOAD_FROM)
    assert path is not None, 'source is a text that is not empty'
    return path


def require_start(path: Path, model: Any) -> str:
    """Compare the checkpoint in ``load_from`` with the model.

    Args:
        path: From ``locate_start``.
        model: From ``build_model`` of ``recipe.engine.config``.

    Returns:
        What will be loaded, in words. Differences are printed as a warning.

    Raises:
        console.UserError: It cannot be read, or is of another model.
    """
    fit = starting_weights.require(LOAD_FROM, path, _shapes(path, whole=True), model)
    return starting_weights.summary(path, fit)


def _shapes(path: Path, whole: bool = False) -> Dict[str, Tuple[int, ...]]:
    """Shapes of the tensors of a weights file, by their names in the backbone.

    The file is read in its own process, because its origin may be unknown.

    Args:
        path: The file.
        whole: Whether the names are those in the whole model instead.
    """
    from recipe.engine.checkpoint import CheckpointError, UntrustedCheckpointError, load_outline, read_in_own_process

    def read(source: str) -> Dict[str, List[int]]:
        return _shapes_in(load_outline(source), whole)

    another = f'give another {LOAD_FROM if whole else PRETRAINED}'
    try:
        found = read_in_own_process(str(path), read)
    except UntrustedCheckpointError as error:
        raise console.UserError(
            f'weights file {error}', f'{another}, or --trust_checkpoint if you trust where it comes from'
        ) from None
    except (CheckpointError, OSError) as error:
        raise console.UserError(f'weights file {error}', another) from None
    if not found:
        raise console.UserError(f'weights file {path} holds no tensors', another)
    return {name: tuple(shape) for name, shape in found.items()}


def _shapes_in(content: Any, whole: bool) -> Dict[str, List[int]]:
    import torch

    from recipe.engine.checkpoint import state_of

    return {
        name if whole else re.sub(r'^backbone\.', '', name): list(value.shape)
        for name, value in state_of(content).items()
        if isinstance(value, torch.Tensor)
    }
