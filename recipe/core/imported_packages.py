"""Checks that Python would import the patched checkouts, and all other packages from the environment.

Only ``load`` imports anything, so a tool can check before it imports any of them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pickle
import re
import sys
import sysconfig
import time
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Dict, List, NamedTuple, Optional, Sequence

from recipe.core import console
from recipe.core.paths import ROOT

PACKAGES = {'mmcv': 'mmcv', 'mmdet': 'mmdetection', 'mmseg': 'mmsegmentation'}
OTHERS = ('mmengine', 'torch', 'torchvision', 'numpy', 'scipy', 'cv2', 'PIL', 'matplotlib', 'yaml', 'rich')
# torch first: its own copy of OpenMP must be the one that is loaded. yapf before mmengine, which imports it.
COMPILED = ('torch', 'numpy', 'scipy', 'cv2', 'yapf', 'mmengine', 'mmcv', 'mmdet', 'mmseg')
# Imported by torch_npu and by CANN's operator compiler, which say nothing of use if one is missing.
COMPILED_NPU = ('google.protobuf', 'absl', 'attr', 'cffi', 'cloudpickle', 'decorator')
# Messages of the dynamic linker, and what to do.
_FIXES = (
    (r'(\S+): cannot allocate memory in static TLS block', r'load that library first: export LD_PRELOAD=\1'),
    (
        r'libGL\.so|libgthread-|libSM\.so|libXext\.so',
        'that is the OpenCV for desktops: pip uninstall -y opencv-python opencv-contrib-python opencv-python-headless, '
        'then: bash tools/setup.sh',
    ),
    (
        r"version .(?:GLIBC|GLIBCXX|CXXABI)_\S+' not found",
        'it was installed on a newer system than this one (ldd shows its glibc): remove .venv and .setup, then: '
        'bash tools/setup.sh',
    ),
)
_CACHE_WAIT_S = 2.0  # for another process that writes yapf's cache just now


class Misplaced(NamedTuple):
    """A package that would be imported from the wrong place.

    Attributes:
        package: Its name.
        found: Where it would come from.
        fix: What to do.
        is_fatal: Whether training with it makes no sense; if not, it may be intended.
    """

    package: str
    found: str
    fix: str
    is_fatal: bool = True


def misplaced_checkouts() -> List[Misplaced]:
    """Find patched packages that come from elsewhere. Edits of the checkouts are not looked for."""
    return judge({name: _origin(name) for name in PACKAGES}, ROOT)


def require(checkouts: bool = True) -> None:
    """Check, before anything is imported, that the right packages would be.

    Args:
        checkouts: Also check the packages of the three checkouts.

    Raises:
        console.UserError: The first misplaced package, where it comes from and what to do.
    """
    for one in [*(misplaced_checkouts() if checkouts else []), *hiding(OTHERS, sys.path)]:
        if one.is_fatal:
            raise console.UserError(f'package {one.package}: {one.found}', one.fix)


def load(name: str) -> ModuleType:
    """Import a package that this system may be unable to load.

    Args:
        name: Its name.

    Raises:
        console.UserError: It cannot be imported; says why and what to do.
    """
    deadline = time.monotonic() + _CACHE_WAIT_S
    while True:
        try:
            return importlib.import_module(name)
        except (EOFError, pickle.UnpicklingError) as error:
            # yapf reads a cache when it is imported. Another process may be writing it, or was killed while it did.
            if time.monotonic() > deadline:
                if not _remove_damaged_cache():
                    raise _refusal(name, error) from None
                deadline += _CACHE_WAIT_S
            time.sleep(0.1)
        except (ImportError, OSError) as error:
            raise _refusal(name, error) from None


def _refusal(name: str, error: Exception) -> console.UserError:
    text = ' '.join(str(error).split())
    for pattern, fix in _FIXES:
        found = re.search(pattern, text)
        if found:
            return console.UserError(f'{name} cannot be imported: {text}', found.expand(fix))
    return console.UserError(f'{name} cannot be imported: {text or type(error).__name__}', 'run: bash tools/setup.sh')


def _remove_damaged_cache() -> bool:
    """Remove what yapf cannot read of its cache and makes again; whether there was anything."""
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'YAPF'
    removed = False
    for file in folder.rglob('*.pickle'):
        with contextlib.suppress(OSError):
            content = file.read_bytes()
            # Not unpickled here, which would run code; a whole pickle ends with a full stop.
            if not content.endswith(b'.'):
                file.unlink()
                removed = True
    return removed


def hiding(names: Sequence[str], path: Sequence[str]) -> List[Misplaced]:
    """Find packages of the environment that PYTHONPATH hides.

    A folder of installed packages on PYTHONPATH (it holds their ``.dist-info``) may be intended, so this is a warning.
    It is
    a failure for mmengine, whose version is pinned.

    Args:
        names: Packages to look for.
        path: As ``sys.path``.
    """
    stdlib = os.path.realpath(sysconfig.get_path('stdlib'))
    cut = next((number for number, entry in enumerate(path) if os.path.realpath(entry) == stdlib), len(path))
    misplaced = []
    for name in names:
        first, own = (PathFinder.find_spec(name, list(part)) for part in (path[:cut], path[cut:]))
        if not (first and first.origin and own and own.origin) or Path(first.origin).samefile(own.origin):
            continue
        origin = Path(first.origin).absolute()
        folder = origin.parent.parent if origin.name == '__init__.py' else origin.parent
        installed = any(folder.glob('*.dist-info')) and name != 'mmengine'
        found = f'{name} is imported from {origin}, which hides {own.origin} of this environment'
        misplaced.append(Misplaced(name, found, f'take {folder} off PYTHONPATH', is_fatal=not installed))
    return misplaced


def judge(origins: Dict[str, Optional[Path]], root: Path) -> List[Misplaced]:
    """Compare where the patched packages come from with where they should.

    Args:
        origins: Folder of each package by name, None if it cannot be imported.
        root: Folder of the checkouts.
    """
    misplaced = []
    for name, checkout in PACKAGES.items():
        wanted, origin = root / checkout / name, origins[name]
        if origin is None:
            found, fix = f'{name} cannot be imported', 'run: bash tools/setup.sh'
        elif origin.resolve() != wanted.resolve():
            found = f'{name} is imported from {origin}, not from {wanted}'
            fix = f'take that off PYTHONPATH, or: pip uninstall {name} && bash tools/setup.sh'
        else:
            continue
        misplaced.append(Misplaced(name, found, fix))
    return misplaced


def _origin(name: str) -> Optional[Path]:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None
