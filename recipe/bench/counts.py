"""Counts the operators that an iteration dispatches to the device, and how often the host waits for it.

A host synchronisation is a place where the host cannot continue before the device has caught up:

- *read*: a value goes to Python (``item``, ``float``, ``bool``, ``tolist`` of one element ...);
- *dynamic shape*: the shape of a result depends on values (``nonzero``, ``unique``, ``masked_select``, indexing with a
  boolean mask, ``repeat_interleave`` by a tensor);
- *copy to host*: ``cpu``, ``to('cpu')`` without ``non_blocking``, ``numpy``, ``tolist``;
- *upload*: a blocking copy from pageable host memory (``to(device)`` without ``non_blocking``,
  ``tensor(..., device=...)``, ``new_tensor``).

On an accelerator, copies are recognised by the devices of source and target. A CPU has only one memory, so the tensors
that would be on the host are tracked: those of the batch, those made without a device, those copied to the host, and
those computed only from such tensors. Operators on them are not counted; ``to(device)`` moves them to the device. The
step counts of torch's optimizers are on the host on every device.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READ, SHAPE, DOWN, UP = 'read', 'dynamic shape', 'copy to host', 'upload'
_DYNAMIC = (
    'nonzero',
    'nonzero_numpy',
    'unique',
    '_unique',
    '_unique2',
    'unique_dim',
    'unique_consecutive',
    'masked_select',
)
_FACTORIES = ('arange', 'empty', 'eye', 'full', 'linspace', 'ones', 'rand', 'randint', 'randn', 'randperm', 'zeros')
_HOST = '_bench_on_host'


@dataclass
class Counts:
    """Counts of one block.

    Attributes:
        operators: Calls by name of operator.
        synchronisations: By kind.
        places: Synchronisations by ``kind: operator``.
    """

    operators: Counter = field(default_factory=Counter)
    synchronisations: Counter = field(default_factory=Counter)
    places: Counter = field(default_factory=Counter)

    def as_dict(self) -> Dict[str, Any]:
        """The counts for JSON, the most frequent first."""
        return {
            'operators': sum(self.operators.values()),
            'host_synchronisations': sum(self.synchronisations.values()),
            'host_synchronisations_by_kind': dict(self.synchronisations.most_common()),
            'host_synchronisations_by_place': dict(self.places.most_common()),
            'operators_by_name': dict(self.operators.most_common()),
        }


def mark_host(tree: Any) -> None:
    """Mark the tensors of a batch as being in host memory; on a CPU their device does not show it."""
    for tensor in _tensors(tree):
        setattr(tensor, _HOST, True)


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count the operators and synchronisations of the block, its backward passes included."""
    counts = Counts()
    with _Calls(counts) as calls, _Operators(counts, calls):
        yield counts


def _tensors(tree: Any) -> List[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _on_host(tensor: torch.Tensor) -> bool:
    return getattr(tensor, _HOST, False)


class _Calls(TorchFunctionMode):
    """Sees calls from Python: copies that are free on a CPU only, and tensors that would be on the host."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts
        self.counted_here = 0  # depth of calls whose operators must not be counted again

    def count(self, kind: str, name: str) -> None:
        self._counts.synchronisations[kind] += 1
        self._counts.places[f'{kind}: {name}'] += 1

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, '__name__', '')
        sources = _tensors((args, kwargs))
        if sources and sources[0].device.type != 'cpu':
            return function(*args, **kwargs)  # _Operators recognises these copies by their devices
        on_host = bool(sources) and all(map(_on_host, sources))
        if name in ('cpu', 'numpy', '__array__', 'tolist') or (name == 'to' and 'cpu' in (*args[1:], *kwargs.values())):
            if not (on_host or kwargs.get('non_blocking')):
                self.count(DOWN, name)
            self.counted_here += 1
            try:
                result = function(*args, **kwargs)
            finally:
                self.counted_here -= 1
            mark_host(result)
            return result
        if name == 'to' and self._names_a_device(args[1:], kwargs):
            if on_host and not kwargs.get('non_blocking'):
                self.count(UP, name)
            result = function(*args, **kwargs)
            for tensor in _tensors(result):
                setattr(tensor, _HOST, False)
            return result
        if name == 'new_tensor' and not on_host:
            self.count(UP, name)
        if name in ('tensor', 'as_tensor', 'from_numpy', 'frombuffer', 'asarray'):
            result = function(*args, **kwargs)
            uploads = kwargs.get('device') is not None
            if uploads:
                self.count(UP, name)
            for tensor in _tensors(result):
                if not sources or uploads:  # as_tensor of a tensor makes no copy
                    setattr(tensor, _HOST, not uploads)
            return result
        result = function(*args, **kwargs)
        if on_host or (name in _FACTORIES and kwargs.get('device') is None):
            mark_host(result)
        return result

    @staticmethod
    def _names_a_device(args: Any, kwargs: Any) -> bool:
        return any(isinstance(value, torch.device) for value in (*args, *kwargs.values()))


class _Operators(TorchDispatchMode):
    """Sees the operators that reach the device."""

    def __init__(self, counts: Counts, calls: _Calls) -> None:
        super().__init__()
        self._counts = counts
        self._calls = calls

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        self._counts.operators[name] += 1
        sources = _tensors((args, kwargs))
        if self._calls.counted_here or (sources and all(map(_on_host, sources))):
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        if name in ('_local_scalar_dense', 'is_nonzero', 'equal'):
            if not _is_step_count(sources[0]):
                self._calls.count(READ, name)
        elif name in _DYNAMIC:
            self._calls.count(SHAPE, name)
        elif name in ('index', 'index_put', 'index_put_', '_index_put_impl_'):
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                self._calls.count(SHAPE, f'{name} by a mask')
        elif name == 'repeat_interleave' and kwargs.get('output_size') is None and sources:
            self._calls.count(SHAPE, name)
        elif name in ('_to_copy', 'copy_'):
            self._copy(name, args, kwargs, result)
        return result

    def _copy(self, name: str, args: Any, kwargs: Any, result: torch.Tensor) -> None:
        source, target = (args[1], args[0]) if name == 'copy_' else (args[0], result)
        waits = not (args[2] if name == 'copy_' and len(args) > 2 else kwargs.get('non_blocking'))
        if source.device.type != 'cpu' and target.device.type == 'cpu' and waits:
            self._calls.count(DOWN, name)
        elif source.device.type == 'cpu' and target.device.type != 'cpu' and waits:
            self._calls.count(UP, name)


def _is_step_count(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a parameter's step count, which torch's optimizers keep on the host."""
    return getattr(tensor, '_bench_step_count', False)


def mark_step_counts(optimizer: torch.optim.Optimizer) -> None:
    """Mark the step counts of an optimizer."""
    for parameter_state in optimizer.state.values():
        step = parameter_state.get('step')
        if isinstance(step, torch.Tensor):
            step._bench_step_count = True  # type: ignore[attr-defined]  # a mark of our own
