"""Checks that a checkpoint holds everything that a resumed training reads from it."""

import os.path as osp
from collections import deque
from typing import Any, Iterator, List, Optional

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from recipe.data import random_state

_NEEDED = ('state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta')
_PARTS_OF_HUB = ('log_scalars', 'runtime_info', 'resumed_keys')
# AtomicCheckpointHook and the loggers calculate with these.
_NUMBERS_OF_HUB = ('best_score',)
_PATHS_OF_HUB = ('best_ckpt', 'last_ckpt')
_COUNTS_OF_LOOP = ('iter', 'position', 'seed', 'dataset_size', 'batch_size', 'world_size')


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float, of Python or numpy, and not a bool."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def own_checkpoints(names: Any) -> List[str]:
    """The names that are plain ``.pth`` file names, without a folder.

    Args:
        names (Any): The list of files to remove, from a checkpoint.
    """
    return [
        name
        for name in (names if isinstance(names, (list, tuple)) else ())
        if isinstance(name, str) and osp.basename(name) == name and name.endswith('.pth') and not name.startswith('.')
    ]


def fault(checkpoint: Any) -> Optional[str]:
    """Find the first reason why a training cannot be resumed from a checkpoint.

    Args:
        checkpoint (Any): The loaded checkpoint.

    Returns:
        str, optional: The first fault, None if there is none.
    """
    if not isinstance(checkpoint, dict):
        return 'holds no checkpoint of a training run'
    missing = [key for key in _NEEDED if key not in checkpoint]
    if missing:
        return f'holds no {", ".join(missing)}: weights alone cannot be resumed'
    return next(_faults(checkpoint), None)


def _faults(checkpoint: dict) -> Iterator[str]:
    meta = checkpoint['meta']
    if not isinstance(meta, dict) or not _is_count(meta.get('iter')):
        yield 'does not say its iteration'
        return
    if not _is_count(meta.get('epoch')):
        yield 'does not say its epoch'
    seed = meta.get('seed')
    if seed is not None and not (_is_count(seed) and seed < 1 << 32):
        yield 'has a seed that is none'
    weights = checkpoint['state_dict']
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        yield 'holds weights that are no tensors'
    elif 'ema_state_dict' in checkpoint and not _is_average(checkpoint['ema_state_dict'], weights):
        yield 'holds an ema_state_dict that does not belong to its weights'
    yield from _faults_of_hub(checkpoint['message_hub'])
    if checkpoint.get('train_loop') is not None:
        yield from _faults_of_loop(checkpoint['train_loop'])


def _is_average(average: Any, weights: dict) -> bool:
    """Whether this is the state of a moving average of a model with such weights: ``steps`` and ``module.*``."""
    if not isinstance(average, dict) or set(average) != {'steps', *(f'module.{name}' for name in weights)}:
        return False
    steps = average['steps']
    return (
        isinstance(steps, torch.Tensor)
        and steps.shape == ()
        and steps.dtype == torch.int64
        and all(
            isinstance(average[f'module.{name}'], torch.Tensor)
            and average[f'module.{name}'].shape == value.shape
            and average[f'module.{name}'].dtype == value.dtype
            for name, value in weights.items()
        )
    )


def _faults_of_hub(hub: Any) -> Iterator[str]:
    if not isinstance(hub, dict) or not all(
        isinstance(hub.get(name), dict) and all(isinstance(key, str) for key in hub[name]) for name in _PARTS_OF_HUB
    ):
        yield 'holds a message_hub that is none'
        return
    for name, history in hub['log_scalars'].items():
        if isinstance(history, HistoryBuffer) and not all(
            values.dtype.kind in 'biuf' for values in (history._log_history, history._count_history)
        ):
            yield f'holds a history of {name} that is not one of real numbers'
    for name, value in hub['runtime_info'].items():
        if name == 'early_stopping' and not (
            isinstance(value, list) and len(value) == 2 and is_number(value[0]) and _is_count(value[1])
        ):
            yield f'holds a state of {name} that is none'
        if name == 'keep_ckpt_ids' and not isinstance(value, (list, deque)):
            yield f'holds {name} that are no list'
        if name.startswith(_NUMBERS_OF_HUB) and not is_number(value):
            yield f'holds a {name} that is no number'
        if name.startswith(_PATHS_OF_HUB) and value is not None and type(value) is not str:
            yield f'holds a {name} that is no path'


def _faults_of_loop(loop: Any) -> Iterator[str]:
    if (
        not isinstance(loop, dict)
        or not all(_is_count(loop.get(name)) for name in _COUNTS_OF_LOOP)
        or not all(type(loop.get(name)) is bool for name in ('shuffle', 'validated'))
    ):
        yield 'holds a train_loop that does not say where it stopped'
        return
    states: Any = loop.get('random_states')
    if not _is_list_of(dict, states) or len(states) != loop['world_size']:
        yield 'holds no random state for each rank'
        return
    for rank, state in enumerate(states):
        wrong = random_state.fault(state)
        if wrong:
            yield f'holds a random state of rank {rank} that is none ({wrong})'
    unreadable: Any = loop.get('unreadable', [[] for _ in states])
    if (
        not _is_list_of(list, unreadable)
        or len(unreadable) != len(states)
        or not all(_is_list_of(str, one) for one in unreadable)
    ):
        yield 'holds no list of unreadable images for each rank'
