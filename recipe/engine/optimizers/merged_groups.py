"""Merges parameter groups that have equal settings."""

from itertools import chain
from typing import Any, Dict, List, Sequence, Tuple

from mmengine.optim import OptimWrapper
from torch.optim import Optimizer

# Added by mmengine's optimizer constructor; lr and weight_decay already include their effect.
_NOTES = ('lr_mult', 'decay_mult')
# How a step is computed; depends on the device, not on the checkpoint.
_IMPLEMENTATION = ('foreach', 'fused')


def merge_groups(groups: Sequence[dict]) -> Tuple[List[dict], List[List[int]]]:
    """Merge the groups with equal settings.

    mmengine makes one group per parameter, and optimizers, schedules and hooks do their work once per group.

    Args:
        groups (Sequence[dict]): Each with ``params`` and settings.

    Returns:
        tuple[list[dict], list[list[int]]]: The merged groups in the order of their first members, and for each of them
        the indices of its groups in ``groups``.
    """
    merged: List[dict] = []
    members: List[List[int]] = []
    for number, group in enumerate(groups):
        settings = _settings(group)
        for target, numbers in zip(merged, members):
            if _settings(target) == settings:
                target['params'] += group['params']
                numbers.append(number)
                break
        else:
            merged.append(dict(settings, params=list(group['params'])))
            members.append([number])
    return merged, members


def _settings(group: dict) -> Dict[str, Any]:
    """Settings that have to be equal in two groups that are merged."""
    return {name: value for name, value in group.items() if name not in ('params', *_NOTES)}


def remember_members(optimizer: Optimizer, groups: Sequence[dict], members: List[List[int]]) -> None:
    """Record in an optimizer which groups its groups were merged from.

    Args:
        optimizer (Optimizer): Made from the merged groups.
        groups (Sequence[dict]): The groups before the merge.
        members (list[list[int]]): See :func:`merge_groups`.
    """
    optimizer.merged_from = members  # type: ignore[attr-defined]  # a note of our own
    sizes = [len(group['params']) for group in groups]
    optimizer.unmerged_sizes = sizes  # type: ignore[attr-defined]  # as above


def adopt_checkpoint(checkpoint: dict, optim_wrapper: OptimWrapper) -> None:
    """Make a checkpoint's optimizer and schedules fit merged groups.

    A checkpoint of plain mmsegmentation holds one group per parameter. The states of the parameters are not changed.

    Args:
        checkpoint (dict): Holds ``optimizer`` and ``param_schedulers`` as in mmengine's checkpoints; changed in place.
        optim_wrapper (OptimWrapper): The wrapper that will load it.

    Raises:
        ValueError: Groups that are merged here have different settings in the checkpoint.
    """
    optimizer: Any = getattr(optim_wrapper, 'optimizer', None)
    saved = checkpoint.get('optimizer')
    if saved is None or not hasattr(optimizer, 'merged_from'):
        return
    groups = saved['param_groups']
    sizes = [len(group['params']) for group in groups]
    if sizes == optimizer.unmerged_sizes and len(groups) != len(optimizer.param_groups):
        saved['param_groups'] = [_merge_saved(groups, numbers) for numbers in optimizer.merged_from]
        schedulers = checkpoint.get('param_schedulers') or []
        for state in schedulers if isinstance(schedulers, list) else chain(*schedulers.values()):
            _merge_schedule(state, len(groups), optimizer.merged_from)
    for group in saved['param_groups']:
        # Otherwise a checkpoint from another device would choose the kernel.
        group.update({name: optimizer.defaults[name] for name in _IMPLEMENTATION if name in optimizer.defaults})


def _merge_saved(groups: Sequence[dict], numbers: List[int]) -> dict:
    """Merge the numbered groups of a checkpoint into one."""
    merged = dict(_settings(groups[numbers[0]]), params=[])
    for number in numbers:
        settings = _settings(groups[number])
        if settings != _settings(merged):
            names = [
                name for name in {**settings, **merged} if name != 'params' and settings.get(name) != merged.get(name)
            ]
            raise ValueError(
                f'its groups {numbers[0]} and {number}, which are one group in this config, differ in '
                f'{", ".join(sorted(names))}: give the paramwise_cfg that it was trained with'
            )
        merged['params'] += groups[number]['params']
    return merged


def _merge_schedule(state: dict, count: int, members: List[List[int]]) -> None:
    """Shorten the lists of a schedule that have one value per group.

    mmengine may append one more value, for the base learning rate.
    """
    for name in ('base_values', '_last_value'):
        values = state.get(name)
        if isinstance(values, list) and len(values) in (count, count + 1):
            state[name] = [values[numbers[0]] for numbers in members]
            state[name] += values[count:]
