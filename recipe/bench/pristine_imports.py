"""Makes this Python process use the unpatched upstreams: ``import mmcv`` and so on then mean ``.pristine/``.

    python tools/pristine_imports.py SCRIPT [ARGUMENTS]      # run a script that way

Their files are not changed. This is the full list of substitutes for what they lack here:

- ``mmcv._ext``, the compiled operators, which ``import mmcv.ops`` asks for: those built in the patched checkout, whose
  C++ and CUDA sources are upstream's own. If there are none, a stand-in claims to have every function, and each raises
  ``NotImplementedError`` when called. Upstream calls none of them on a CPU for this model.
- ``mmcv.__version__`` is 2.1.0 while mmdet and mmseg are imported: both refuse 2.2.0, the version pinned here.
- ``torch.load``: ``weights_only=False`` by default, as in the torch that they were written for; they cannot read
  checkpoints otherwise.

None of it takes part in a computation.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import runpy
import sys
import types
from pathlib import Path
from typing import Any, Callable, Dict, Optional

from recipe.core import console, paths
from recipe.upstream import pristine

PACKAGES = {'mmcv': 'mmcv', 'mmdet': 'mmdetection', 'mmseg': 'mmsegmentation'}
EXTENSION = 'mmcv._ext'
ACCEPTED_MMCV = '2.1.0'  # the newest that mmdet 3.3.0 and mmseg 1.2.2 accept


class _StandIn(types.ModuleType):
    """A compiled extension that claims every function and can run none."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise NotImplementedError(
                f'the unpatched upstream calls the compiled operator {name}, which was not built; '
                'build it with: bash tools/setup.sh --with_ops'
            )

        return missing


class _ExtensionFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``mmcv._ext``: the built one, or the stand-in."""

    def __init__(self, built: Optional[Path]) -> None:
        self._built = built

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Optional[importlib.machinery.ModuleSpec]:
        """Part of the import protocol."""
        if name != EXTENSION:
            return None
        if self._built is not None:
            return importlib.util.spec_from_file_location(name, str(self._built))
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Part of the import protocol."""
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Part of the import protocol; there is nothing to run."""


def find_extension(root: Path) -> Optional[Path]:
    """The compiled operators of the patched checkout; None if they were not built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = root / 'mmcv' / 'mmcv' / f'_ext{suffix}'
        if path.is_file():
            return path
    return None


def activate(root: Path = paths.ROOT, trees: Optional[Dict[str, Path]] = None) -> None:
    """Make ``mmcv``, ``mmdet`` and ``mmseg`` the unpatched ones in this process, and import them.

    Args:
        root: Folder of the checkouts.
        trees: Result of ``pristine.lay_out``; None calls it.

    Raises:
        RuntimeError: One of them has been imported before.
    """
    early = [name for name in PACKAGES if name in sys.modules]
    if early:
        raise RuntimeError(f'{", ".join(early)}: imported before the unpatched upstreams were chosen')
    trees = trees or pristine.lay_out(root)
    sys.path[:0] = [str(trees[checkout]) for checkout in PACKAGES.values()]
    sys.meta_path.insert(0, _ExtensionFinder(find_extension(root)))
    _load_as_older_torch_does()
    mmcv: Any = importlib.import_module('mmcv')
    version, mmcv.__version__ = mmcv.__version__, ACCEPTED_MMCV
    try:
        for name in PACKAGES:
            importlib.import_module(name)
    finally:
        mmcv.__version__ = version
    for name, checkout in PACKAGES.items():
        found = Path(str(sys.modules[name].__file__)).resolve()
        if trees[checkout].resolve() not in found.parents:
            raise RuntimeError(f'{name} was imported from {found}, not from {trees[checkout]}')


def _load_as_older_torch_does() -> None:
    import torch

    load = torch.load

    @functools.wraps(load)
    def load_all(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **{'weights_only': False, **kwargs})

    torch.load = load_all


def main() -> int:
    """Entry point; see the module's docstring."""
    if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
        raise console.UserError('usage: python tools/pristine_imports.py SCRIPT [ARGUMENTS]', status=console.EXIT_USAGE)
    script = Path(sys.argv[1])
    if not script.is_file():
        raise console.UserError(f'{script} is missing', status=console.EXIT_USAGE)
    activate()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name='__main__')
    return 0
