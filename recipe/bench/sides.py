"""The patched packages and the unpatched ones side by side: one long-lived process each, driven from here.

A test or a benchmark writes a function at the top level of a file, as if there were one mmdet, and runs it on both
sides with the same arguments::

    from sides import Sides

    def cost_of_one_layer(seed, count):              # runs in the workers; its imports mean the worker's packages
        from mmdet.models.task_modules.assigners import HungarianAssigner
        ...
        return {'cost': cost}                        # anything that pickles: tensors, numbers, dicts of them

    with Sides() as sides:                           # starts both
        theirs, ours = sides.call(cost_of_one_layer, seed=0, count=3)
        torch.testing.assert_close(ours['cost'], theirs['cost'])

What need not travel stays in the workers: ``keep`` returns a handle that later calls take as an argument.
``sides_model`` has functions for the recipe's model (build, weights, one step, prediction)::

    import sides_model

    with Sides() as sides:
        models = sides.keep(sides_model.build, 'configs/demo.py', {'decode_head.num_queries': 20}, seed=0)
        sides_model.same_weights(sides, models)
        batch = sides_model.random_batch(images=2, height=128, width=256, seed=1)
        theirs, ours = sides.call(sides_model.step, models, batch, seed=2)
        assert sides_model.relative_difference(theirs['losses'], ours['losses']) < 1e-5

A test takes the fixture ``sides`` of ``test/parity/conftest.py``, which starts the pair once. A function must not be a
closure or a lambda, and the file that holds it must be importable on both sides: no import of what only the patches
have at its top level (do that inside the function). An exception in a worker is raised here as ``SideError`` with the
worker's traceback.
"""

from __future__ import annotations

import importlib
import itertools
import os
import pickle
import subprocess
import sys
import traceback
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Optional

from recipe.core import paths
from recipe.upstream import pristine

UPSTREAM = 'upstream'
OURS = 'ours'
_START = 'import sys; sys.path.insert(0, sys.argv[1]); from recipe.bench import sides; sides.work(*sys.argv[2:])'
_NUMBERS = itertools.count()


class SideError(RuntimeError):
    """A function failed in a worker; holds its traceback."""


class Pair(NamedTuple):
    """What the two sides returned."""

    upstream: Any
    ours: Any


@dataclass(frozen=True)
class Handle:
    """Stands for an object that stays in a worker."""

    number: int


class Side:
    """One worker process.

    Args:
        name: ``upstream`` (unpatched) or ``ours`` (patched).
        threads: Of torch, 0 leaves its choice.
        root: Folder of the checkouts.
        env: Environment variables added.
    """

    def __init__(
        self,
        name: str,
        threads: int = 0,
        root: Path = pristine.ROOT,
        env: Optional[Dict[str, str]] = None,
    ) -> None:
        self.name = name
        here, there = Pipe()
        command = [sys.executable, '-c', _START, str(paths.ROOT), name, str(there.fileno()), str(threads), str(root)]
        self._process = subprocess.Popen(
            command, pass_fds=[there.fileno()], env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL
        )
        there.close()
        self._connection = here
        self._ready = False

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def send(self, function: Callable, *args: Any, _keep: bool = False, **kwargs: Any) -> None:
        """Start a call; ``receive`` gets its result. See ``call``."""
        where = Path(str(sys.modules[function.__module__].__file__)).resolve()
        if '.' in function.__qualname__ or function.__name__ == '<lambda>':
            raise TypeError(f'{function.__qualname__} is not a function at the top level of a file')
        module = '.'.join([*_packages(where), where.stem])
        folder = where.parents[len(module.split('.')) - 1]
        handle = Handle(next(_NUMBERS)) if _keep else None
        self._wait_until_ready()
        self._connection.send_bytes(
            pickle.dumps((str(folder), module, function.__name__, args, kwargs, handle), protocol=4)
        )

    def receive(self) -> Any:
        """Result of the call that was started last.

        Raises:
            SideError: The function raised, or the worker died.
        """
        try:
            ok, value = pickle.loads(self._connection.recv_bytes())
        except EOFError:
            raise SideError(f'the process of {self.name} ended with status {self._process.wait()}') from None
        if not ok:
            raise SideError(f'in the process of {self.name}:\n{value}')
        return value

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a function of a file in the worker and return what it returned.

        Args:
            function: At the top level of a file, which the worker imports.
            args: Pickled; a ``Handle`` becomes the object that it stands for.
            kwargs: Likewise.

        Raises:
            SideError: The function raised, or the worker died.
        """
        self.send(function, *args, **kwargs)
        return self.receive()

    def keep(self, function: Callable, *args: Any, **kwargs: Any) -> Handle:
        """Run a function, leave what it returns in the worker, and return a handle of it."""
        self.send(function, *args, _keep=True, **kwargs)
        return self.receive()

    def close(self) -> None:
        """End the worker."""
        self._connection.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self) -> None:
        if not self._ready:
            self._ready = True
            self.receive()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Sides:
    """Both workers.

    Args:
        threads: Of torch in each, 0 leaves its choice.
        root: Folder of the checkouts; the unpatched ones are laid out where they are missing.
        env: Environment variables added to both.

    Attributes:
        upstream: The worker of the unpatched packages.
        ours: The worker of the patched ones.
    """

    def __init__(self, threads: int = 0, root: Path = pristine.ROOT, env: Optional[Dict[str, str]] = None) -> None:
        pristine.lay_out(root)
        self.upstream = Side(UPSTREAM, threads, root, env)
        self.ours = Side(OURS, threads, root, env)

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> Pair:
        """Run a function on upstream's side, then on ours; see ``Side.call``.

        A ``Pair`` among the arguments gives each side its own part.
        """
        return Pair(*(self._on(index, 'call', function, args, kwargs) for index in range(2)))

    def keep(self, function: Callable, *args: Any, **kwargs: Any) -> Pair:
        """As ``call``, but what the function returns stays in the workers."""
        return Pair(*(self._on(index, 'keep', function, args, kwargs) for index in range(2)))

    def _on(self, index: int, method: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        side = (self.upstream, self.ours)[index]
        own = [arg[index] if isinstance(arg, Pair) else arg for arg in args]
        own_kwargs = {name: arg[index] if isinstance(arg, Pair) else arg for name, arg in kwargs.items()}
        return getattr(side, method)(function, *own, **own_kwargs)

    def close(self) -> None:
        """End both workers."""
        self.upstream.close()
        self.ours.close()

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _packages(file: Path) -> list:
    """Names of the packages around a file, outermost first."""
    names = []
    folder = file.parent
    while (folder / '__init__.py').is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return names


def _serve(connection: Connection) -> None:
    """Run what comes through the connection until it is closed."""
    kept: Dict[Handle, Any] = {}

    def resolve(value: Any) -> Any:
        return kept[value] if isinstance(value, Handle) else value

    connection.send_bytes(pickle.dumps((True, None), protocol=4))
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        try:
            folder, module, name, args, kwargs, handle = pickle.loads(message)
            if folder not in sys.path:
                sys.path.insert(0, folder)
            function = getattr(importlib.import_module(module), name)
            value = function(*map(resolve, args), **{key: resolve(arg) for key, arg in kwargs.items()})
            if handle is not None:
                kept[handle], value = value, handle
            answer = pickle.dumps((True, value), protocol=4)
        except Exception:
            answer = pickle.dumps((False, traceback.format_exc()), protocol=4)
        connection.send_bytes(answer)


def work(name: str, descriptor: str, threads: str, root: str) -> None:
    """Be a worker; ``Side`` starts a process that does nothing else.

    Args:
        name: Which packages to import.
        descriptor: File descriptor of the connection to the driving process.
        threads: See ``Side``.
        root: See ``Side``.
    """
    connection = Connection(int(descriptor))
    try:
        import torch

        if int(threads):
            torch.set_num_threads(int(threads))
        if name == UPSTREAM:
            from recipe.bench import pristine_imports

            pristine_imports.activate(Path(root))
        else:
            for package in ('mmcv', 'mmdet', 'mmseg'):
                importlib.import_module(package)
    except BaseException:
        connection.send_bytes(pickle.dumps((False, traceback.format_exc()), protocol=4))
        raise
    _serve(connection)
