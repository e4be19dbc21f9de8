"""Checks that a checkpoint belongs to this model, optimizer and schedule."""

import re
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional

import torch
from torch import Tensor, nn

from recipe.engine.checkpoint.contents import is_number

# State that these optimizers keep for each parameter, and whether it has the parameter's shape.
_ADAM = {'step': False, 'exp_avg': True, 'exp_avg_sq': True}
_SGD = {'momentum_buffer': True}


def state_of(content: Any) -> Dict[str, Any]:
    """The named tensors of a checkpoint: of its ``state_dict``, its ``model``, or itself, as other trainers write them.

    Args:
        content: What the file holds.

    Returns:
        By name, without the ``module.`` of a wrapper. Values may be anything. Empty if there are no names.
    """
    for key in ('state_dict', 'model'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    named = content.items() if isinstance(content, dict) else ()
    return {re.sub(r'^module\.', '', str(name)): value for name, value in named}


def shapes_differ(weights: Mapping[str, Any], model: nn.Module) -> Iterator[str]:
    """Compare names and shapes of weights with those of a model.

    Args:
        weights (Mapping[str, Tensor]): A checkpoint's ``state_dict``.
        model (nn.Module): The model that will load it.

    Yields:
        str: Each difference, in words.
    """
    weights = {re.sub(r'^module\.', '', name): value for name, value in weights.items()}
    needed = model.state_dict()
    learned = dict(model.named_parameters())
    for name, value in needed.items():
        if name not in weights:
            if name in learned or value.is_floating_point():  # such as the running mean of a batch norm
                yield f'{name} is not there'
        elif weights[name].shape != value.shape:
            yield (f'{name} is {tuple(weights[name].shape)} there and {tuple(value.shape)} here')
    for name, value in weights.items():
        # Other versions have other buffers of indices; these are not learned and may differ.
        if name not in needed and value.is_floating_point():
            yield f'{name} is there and not here'


def misfit(checkpoint: dict, model: nn.Module, optim_wrapper: Any = None, schedulers: Any = ()) -> Optional[str]:
    """Find the first reason why a checkpoint does not fit this model, optimizer and schedule.

    If shapes differ, mmengine only logs a warning. The optimizer state then keeps its old shape, and a fused step reads
    beyond its end.

    Args:
        checkpoint (dict): A checkpoint in which :func:`.contents.fault` finds nothing. Its optimizer is made to fit
            merged groups, in place.
        model (nn.Module): The model to be trained.
        optim_wrapper (OptimWrapper, optional): Made for ``model``. Defaults to None: only the weights are compared.
        schedulers (list or dict): The schedules of ``optim_wrapper``. Defaults to ().

    Returns:
        str, optional: The first difference, None if there is none.
    """
    differences = list(shapes_differ(checkpoint['state_dict'], model))
    if differences:
        more = f' ({len(differences)} tensors differ)'
        return f'is of another model: {differences[0]}{more}'
    optimizer = getattr(optim_wrapper, 'optimizer', None)
    if optimizer is None:  # several, or none
        return None
    saved = checkpoint['optimizer']
    wrong = _no_state(saved)
    if wrong is None:
        from recipe.engine.optimizers.merged_groups import adopt_checkpoint

        try:
            adopt_checkpoint(checkpoint, optim_wrapper)
        except ValueError as e:
            return f'is of another optimizer: {e}'
        wrong = next(_differences(saved, optimizer, model), None)
    if wrong is None:
        wrong = next(_wrong_rest(saved, optim_wrapper), None)
    if wrong is not None:
        return f'is of another optimizer: {wrong}'
    wrong = next(_wrong_schedules(checkpoint['param_schedulers'], schedulers), None)
    return None if wrong is None else f'is of another schedule: {wrong}'


def _no_state(saved: Any) -> Optional[str]:
    """Describe the first part of an optimizer's state that does not have torch's format."""
    if (
        not isinstance(saved, dict)
        or not isinstance(saved.get('state'), dict)
        or not isinstance(saved.get('param_groups'), list)
    ):
        return 'its state is none'
    numbers: List[int] = []
    for group in saved['param_groups']:
        if not isinstance(group, dict) or not isinstance(group.get('params'), list):
            return 'its parameter groups are none'
        numbers += group['params']
    if not all(type(number) is int for number in numbers) or len(set(numbers)) < len(numbers):
        return 'its parameter groups share parameters'
    for number, state in saved['state'].items():
        if number not in numbers or not isinstance(state, dict):
            return 'it has a state for what is in no group'
    return None


def _differences(saved: Dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[str]:
    """Compare an optimizer's state with an optimizer."""
    groups = optimizer.param_groups
    if len(saved['param_groups']) != len(groups):
        yield (f'{len(saved["param_groups"])} parameter groups there and {len(groups)} here')
        return
    names = {id(param): name for name, param in model.named_parameters()}
    kept = _kept_by(optimizer)
    for place, (old, new) in enumerate(zip(saved['param_groups'], groups)):
        if len(old['params']) != len(new['params']):
            yield (f'group {place} has {len(old["params"])} parameters there and {len(new["params"])} here')
            return
        for setting, default in optimizer.defaults.items():
            if not _same_kind(old.get(setting), default):
                yield f'group {place} has no {setting}'
        for number, param in zip(old['params'], new['params']):
            state = saved['state'].get(number)
            if not state:
                continue
            name = names.get(id(param), f'parameter {number}')
            for key, has_shape in kept(old).items():
                yield from _wrong_value(f'{key} of {name}', state.get(key), has_shape, param)


def _kept_by(optimizer: torch.optim.Optimizer):
    """A function from a group to the state that the optimizer keeps for its parameters; empty if not known."""
    kinds = {kind.__name__ for kind in type(optimizer).__mro__}
    if kinds & {'Adam', 'AdamW', 'NpuFusedAdam', 'NpuFusedAdamW'}:
        return lambda group: {**_ADAM, **({'max_exp_avg_sq': True} if group.get('amsgrad') else {})}
    if 'SGD' in kinds:
        return lambda group: _SGD if group.get('momentum') else {}
    return lambda group: {}


def _wrong_value(what: str, value: Any, has_shape: bool, param: Tensor) -> Iterator[str]:
    if not has_shape:
        if not is_number(value) and not (isinstance(value, Tensor) and value.numel() == 1):
            yield f'{what} is no number'
    elif not isinstance(value, Tensor):
        yield f'{what} is not there'
    elif value.shape != param.shape:
        yield (f'{what} is {tuple(value.shape)} there and {tuple(param.shape)} here')
    elif not value.is_floating_point():
        yield f'{what} holds no fractions'


def _same_kind(value: Any, default: Any) -> bool:
    """Whether a saved setting has the same kind of value as the default."""
    if isinstance(default, (list, tuple)):
        return isinstance(value, (list, tuple)) and len(value) == len(default) and all(map(_same_kind, value, default))
    if is_number(default):
        return is_number(value) or (isinstance(value, Tensor) and value.numel() == 1)
    # Switches: new versions of torch add some.
    return value is None or isinstance(value, (bool, type(default)))


def _wrong_rest(saved: Dict[str, Any], optim_wrapper: Any) -> Iterator[str]:
    """Faults in the parts of the saved state that the optimizer wrapper reads itself."""
    scaler = saved.get('loss_scaler', {})
    if not isinstance(scaler, dict) or not all(map(is_number, scaler.values())):
        yield 'its loss scale is no number'
    here = getattr(optim_wrapper, 'base_param_settings', None)
    there = saved.get('base_param_settings', here)
    if here is None or there is None:
        if there is not here:
            yield 'its base settings are none'
    elif not isinstance(there, dict) or not all(
        _same_kind(there.get(name), value) for name, value in here.items() if name != 'params'
    ):
        yield 'its base settings are none'


def _listed(schedulers: Any) -> List[Any]:
    """Schedules as a flat list; a dict holds a list for each of several optimizers."""
    if not isinstance(schedulers, dict):
        return list(schedulers or ())
    return [one for several in schedulers.values() for one in several]


def _wrong_schedules(saved: Any, schedulers: Iterable[Any]) -> Iterator[str]:
    groups = saved.values() if isinstance(saved, dict) else [saved]
    if not all(isinstance(group, list) and all(isinstance(state, dict) for state in group) for group in groups):
        yield 'its state is none'
        return
    for state, scheduler in zip(_listed(saved), _listed(schedulers)):
        kind = type(scheduler).__name__
        for name, value in scheduler.state_dict().items():
            if name not in state or not _same_schedule_value(state[name], value):
                yield f'{kind} has no such {name}'
                return
        for name in state:
            # load_state_dict would replace a method of the schedule by this value.
            if not isinstance(name, str) or hasattr(type(scheduler), name):
                yield f'{kind} keeps no {name}'
                return
        if not _makes_numbers(scheduler, state):
            yield f'{kind} has no next value'


def _makes_numbers(scheduler: Any, state: Dict[str, Any]) -> bool:
    """Whether a schedule computes numbers from a state; the schedule is restored afterwards."""
    before = dict(scheduler.__dict__)
    try:
        scheduler.load_state_dict(state)
        length = scheduler.end - scheduler.begin - 1
        if getattr(scheduler, 'total_iters', length) != length:
            return False
        if not scheduler.begin <= scheduler._global_step + 1 < scheduler.end:
            return True  # the next step computes none
        scheduler.last_step += 1
        return all(map(is_number, scheduler._get_value()))
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
        return False
    finally:
        scheduler.__dict__.clear()
        scheduler.__dict__.update(before)


def _same_schedule_value(value: Any, here: Any) -> bool:
    if isinstance(here, list):
        return isinstance(value, list) and len(value) == len(here) and all(map(_same_schedule_value, value, here))
    if is_number(here):
        return is_number(value)
    # Such as the name of the parameter and the unit of the count: they have to be equal.
    if isinstance(here, (str, bool)):
        return value == here
    return value is None or here is None or isinstance(value, type(here))
