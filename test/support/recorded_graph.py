"""A stand-in for CUDA graphs on a CPU: it records the operators of a function, and repeats them on the same tensors."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, List, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recipe.bench import meta_step
from recipe.data import random_state


class CaptureError(RuntimeError):
    """Something that a graph cannot hold."""


class _Recorder(TorchDispatchMode):
    """Records operators; refuses those that read values, and tensors made of Python's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: List[Tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if meta_step.asks(name, args):
            raise CaptureError(f'{func} reads values')
        if name.startswith('lift_fresh'):
            raise CaptureError(f'{func} copies numbers of the host')
        result = func(*args, **kwargs)
        if 'empty' not in name:  # whose contents nobody may use
            self.calls.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Compute everything again, into the tensors of the recording."""
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs))):
                if (
                    isinstance(old, torch.Tensor)
                    and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr()
                ):
                    old.copy_(new)


class RecordedGraph:
    """Has the methods of recipe.engine.step_graph.CudaGraphs."""

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """There are no streams."""
        yield

    def capture(self, function: Callable[[], Any]) -> Tuple[Callable[[], None], Any]:
        """Record a function; afterwards the random numbers are where they were, as after a capture."""
        recorder = _Recorder()
        with random_state.preserved(torch.device('cpu')), recorder:
            result = function()
        return recorder.replay, result
