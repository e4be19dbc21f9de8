"""Files with all that is needed to replay a training step that was not finite.

They hold tensors and plain values only. So they are read like any other checkpoint, and no code in them is run.
"""

import math
import os
import os.path as osp
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from recipe.core import files
from recipe.data import random_state
from recipe.engine.checkpoint.load import load_from_local


@dataclass
class BadStep:
    """A training step on one rank.

    Attributes:
        iteration (int): Counted from 1.
        batch (dict): ``inputs`` and ``data_samples`` as the loader made them.
        random_state (dict): Random state before the step; see ``recipe.data.random_state``.
        losses (dict[str, float]): Loss terms by name.
        grad_norm (float): Norm of the gradient after the sum over all ranks.
        note (str, optional): The matching costs that were not finite on this rank, in words.
    """

    iteration: int
    batch: Any
    random_state: dict
    losses: Dict[str, float] = field(default_factory=dict)
    grad_norm: float = float('nan')
    note: Optional[str] = None

    def images(self) -> List[str]:
        """Paths of the images of the batch, ``?`` for each unknown one."""
        samples = self.batch.get('data_samples', []) if isinstance(self.batch, dict) else []
        return [str(getattr(sample, 'img_path', '?')) for sample in samples]

    def bad_terms(self) -> List[str]:
        """Names of the loss terms that are not finite."""
        bad = [name for name, value in self.losses.items() if not math.isfinite(value)]
        # 'loss' is the sum of the others.
        return [name for name in bad if name != 'loss'] or bad


def write_dump(folder: str, step: BadStep, rank: int, world_size: int, weights: str) -> str:
    """Write ``iter_<N>_rank_<R>.pth``.

    Args:
        folder (str): Folder of the file; made if it is missing.
        step (BadStep): The step.
        rank (int): Rank of this process.
        world_size (int): Number of processes.
        weights (str): Name of the file with the weights before the step, in the same folder.

    Returns:
        str: Path of the file.

    Raises:
        OSError: It cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    path = osp.join(folder, f'iter_{step.iteration}_rank_{rank}.pth')
    content = dict(
        iteration=step.iteration,
        rank=rank,
        world_size=world_size,
        images=step.images(),
        losses=dict(step.losses),
        grad_norm=step.grad_norm,
        note=step.note,
        random_state=step.random_state,
        batch=_plain(step.batch),
        weights=weights,
    )
    with files.whole(Path(path), to_disk=True) as partial:
        torch.save(content, partial)
    return path


def write_weights(folder: str, iteration: int, runner) -> str:
    """Write the weights before a skipped step, and the config.

    Args:
        folder (str): Folder of the file; made if it is missing.
        iteration (int): Iteration of the step, counted from 1.
        runner (Runner): The runner of the training process.

    Returns:
        str: Name of the file.

    Raises:
        OSError: It cannot be written.
    """
    from mmengine.model import is_model_wrapper
    from mmengine.runner.checkpoint import get_state_dict, weights_to_cpu

    os.makedirs(folder, exist_ok=True)
    name = weights_name(iteration)
    model = runner.model
    if is_model_wrapper(model):
        model = model.module
    with files.whole(Path(folder, name), to_disk=True) as partial:
        torch.save(
            dict(
                state_dict=weights_to_cpu(get_state_dict(model)),
                meta=dict(cfg=runner.cfg.pretty_text, iter=iteration - 1),
            ),
            partial,
        )
    return name


def weights_name(iteration: int) -> str:
    """Name of the file with the weights before a step."""
    return f'iter_{iteration}_weights.pth'


def _plain(batch: Any) -> Optional[dict]:
    """The batch as tensors and plain values, None if it has no ``data_samples``."""
    if not isinstance(batch, dict) or 'data_samples' not in batch:
        return None
    return dict(
        inputs=[image.cpu() for image in batch['inputs']],
        data_samples=[
            dict(
                metainfo=_plain_value(sample.metainfo),
                fields={name: data.data.cpu() for name, data in sample.items() if isinstance(data, PixelData)},
            )
            for sample in batch['data_samples']
        ],
    )


def _plain_value(value: Any) -> Any:
    """A value of the meta information, converted to tensors and plain values."""
    if isinstance(value, dict):
        return {str(name): _plain_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        plain = [_plain_value(item) for item in value]
        return tuple(plain) if isinstance(value, tuple) else plain
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return value
    return value.tolist() if hasattr(value, 'tolist') else str(value)


def read_dump(path: str) -> dict:
    """Read a file of :func:`write_dump`, with the batch in the form that a model takes.

    Args:
        path (str): The file.

    Returns:
        dict: The content that was written. ``batch`` holds ``inputs`` and ``data_samples``; ``weights`` is a path.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It is damaged, or holds something other than data.
        ValueError: It is not such a dump, it holds no batch, or its batch or random state is malformed.
    """
    content = load_from_local(path, map_location='cpu')
    wanted: Dict[str, Any] = dict(
        iteration=int,
        rank=int,
        world_size=int,
        images=list,
        losses=dict,
        grad_norm=float,
        batch=(dict, type(None)),
        random_state=dict,
        weights=str,
    )
    if (
        not isinstance(content, dict)
        or not all(isinstance(content.get(name), kind) for name, kind in wanted.items())
        or not all(isinstance(value, float) for value in content['losses'].values())
    ):
        raise ValueError(f'{path} is no dump of a training step')
    if content['batch'] is None:
        raise ValueError(f'{path} holds no batch')
    wrong = random_state.fault(content['random_state'])
    if wrong:
        raise ValueError(f'{path} holds a random state that is none ({wrong})')
    if not re.fullmatch(r'iter_\d+_weights\.pth', content['weights']):
        raise ValueError(f'{path} names weights that are not beside it')
    try:
        content['batch'] = _packed(content['batch'])
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError, RecursionError) as e:
        raise ValueError(f'{path} holds a batch that is none ({type(e).__name__}: {e})') from e
    content['weights'] = osp.join(osp.dirname(path), content['weights'])
    return content


def _packed(plain_batch: dict) -> Dict[str, Any]:
    """Turn the result of :func:`_plain` into a batch for a model."""
    inputs = plain_batch['inputs']
    if not isinstance(inputs, list) or not all(isinstance(image, Tensor) for image in inputs):
        raise TypeError('its inputs are no tensors')
    samples = []
    for plain in plain_batch['data_samples']:
        # A sample stores its fields as attributes. They must not hide its methods.
        for name in (*plain['metainfo'], *plain['fields']):
            if not name.isidentifier() or name.startswith('_') or (callable(getattr(SegDataSample, name, None))):
                raise ValueError(f'it has a field {name!r}')
        sample = SegDataSample(metainfo=plain['metainfo'])
        for name, data in plain['fields'].items():
            setattr(sample, name, PixelData(data=data))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
