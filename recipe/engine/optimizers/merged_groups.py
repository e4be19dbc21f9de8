"""Parameter groups that differ in nothing but their parameters, merged."""

from itertools import chain
from typing import Any, Dict, List, Sequence, Tuple

from mmengine.optim import OptimWrapper
from torch.optim import Optimizer

# Notes of mmengine's constructor; lr and weight_decay hold their effect.
_NOTES = ('lr_mult', 'decay_mult')
# How a step is computed, which belongs to the device and not to a checkpoint.
_IMPLEMENTATION = ('foreach', 'fused')


def merge_groups(groups: Sequence[dict]) -> Tuple[List[dict], List[List[int]]]:
    """Merge the groups of equal settings.

    mmengine makes a group for each parameter, and optimizers, schedules and
    hooks do their work once a group.

    Args:
        groups (Sequence[dict]): ``params`` and settings each.

    Returns:
        tuple[list[dict], list[list[int]]]: The merged groups, in the order of
        their first members, and for each the numbers of the groups in it.
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
    """What has to be equal for two groups to be merged."""
    return {name: value for name, value in group.items() if name not in ('params', *_NOTES)}


def remember_members(optimizer: Optimizer, groups: Sequence[dict], members: List[List[int]]) -> None:
    """Have an optimizer know what its groups were merged from.

    Args:
        optimizer (Optimizer): Made from the merged groups.
        groups (Sequence[dict]): The groups before.
        members (list[list[int]]): See :func:`merge_groups`.
    """
    optimizer.merged_from = members  # type: ignore[attr-defined]  # a note of our own
    sizes = [len(group['params']) for group in groups]
    optimizer.unmerged_sizes = sizes  # type: ignore[attr-defined]  # as above


def adopt_checkpoint(checkpoint: dict, optim_wrapper: OptimWrapper) -> None:
    """Make a checkpoint's optimizer and schedules fit merged groups.

    A checkpoint that was written before the groups were merged, or by plain
    mmsegmentation, holds one group for each parameter. The states of the
    parameters stay what they are.

    Args:
        checkpoint (dict): ``optimizer`` and ``param_schedulers`` as in
            mmengine's checkpoints; changed in place.
        optim_wrapper (OptimWrapper): What will load it.

    Raises:
        ValueError: If groups that are merged here have different settings in
            the checkpoint.
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
        # Otherwise a checkpoint of another device decides on the kernel.
        group.update({name: optimizer.defaults[name] for name in _IMPLEMENTATION if name in optimizer.defaults})


def _merge_saved(groups: Sequence[dict], numbers: List[int]) -> dict:
    """One group of a checkpoint out of those numbered."""
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
    """Shorten a schedule's lists of one value a group.

    Behind the groups mmengine keeps one more value, for the base learning
    rate.
    """
    for name in ('base_values', '_last_value'):
        values = state.get(name)
        if isinstance(values, list) and len(values) in (count, count + 1):
            state[name] = [values[numbers[0]] for numbers in members]
            state[name] += values[count:]
