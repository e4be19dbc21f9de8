"""Are the packages that Python imports the patched checkouts beside this file, and the others the environment's?

Nothing is imported to find out, so a tool can ask before it imports any of them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path
from typing import List, Optional, Sequence

from recipe.core import console
from recipe.doctor.finding import FAILURE, OK, WARNING, Finding
from recipe.doctor.subject import Subject

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {'mmcv': 'mmcv', 'mmdet': 'mmdetection', 'mmseg': 'mmsegmentation'}
OTHERS = ('mmengine', 'torch', 'torchvision', 'numpy', 'scipy', 'cv2', 'PIL', 'matplotlib', 'yaml', 'rich')


def examine(subject: Subject) -> List[Finding]:
    """Find the packages without importing them. Whether the checkouts are unmodified is ``checkouts``' to say."""
    return [*judge({name: _origin(name) for name in PACKAGES}, ROOT), *hiding(OTHERS, sys.path)]


def require(checkouts: bool = True) -> None:
    """Check, before anything is imported, that the right packages would be.

    Args:
        checkouts: Also those of the three checkouts.

    Raises:
        console.UserError: The first one that is not, where it comes from and what to do.
    """
    findings = judge({name: _origin(name) for name in PACKAGES}, ROOT) if checkouts else []
    for finding in [*findings, *hiding(OTHERS, sys.path)]:
        if finding.level == FAILURE:
            raise console.UserError(f'{finding.check}: {finding.found}; {finding.fix}')


def hiding(names: Sequence[str], path: Sequence[str]) -> List[Finding]:
    """Findings on packages of the environment that PYTHONPATH hides.

    A folder of installed packages there (it holds their ``.dist-info``) may be meant, and is a warning; mmengine is
    pinned, and so a failure as well.

    Args:
        names: Packages to look for.
        path: As ``sys.path``.
    """
    stdlib = os.path.realpath(sysconfig.get_path('stdlib'))
    cut = next((number for number, entry in enumerate(path) if os.path.realpath(entry) == stdlib), len(path))
    findings = []
    for name in names:
        first, own = (PathFinder.find_spec(name, list(part)) for part in (path[:cut], path[cut:]))
        if not (first and first.origin and own and own.origin) or Path(first.origin).samefile(own.origin):
            continue
        origin = Path(first.origin).absolute()
        folder = origin.parent.parent if origin.name == '__init__.py' else origin.parent
        installed = any(folder.glob('*.dist-info')) and name != 'mmengine'
        found = f'{name} is imported from {origin}, which hides {own.origin} of this environment'
        findings.append(
            Finding(f'package {name}', WARNING if installed else FAILURE, found, f'take {folder} off PYTHONPATH')
        )
    return findings


def judge(origins: dict, root: Path) -> List[Finding]:
    """Findings on where packages come from.

    Args:
        origins: Folder of each package by name, None where it cannot be imported.
        root: Folder of the checkouts.
    """
    findings = []
    for name, checkout in PACKAGES.items():
        wanted, origin = root / checkout / name, origins[name]
        if origin is None:
            found, fix = f'{name} cannot be imported', 'run: bash tools/setup.sh'
        elif origin.resolve() != wanted.resolve():
            found = f'{name} is imported from {origin}, not from {wanted}'
            fix = f'take that off PYTHONPATH, or: pip uninstall {name} && bash tools/setup.sh'
        else:
            continue
        findings.append(Finding(f'package {name}', FAILURE, found, fix))
    return findings or [Finding('packages', OK, f'{", ".join(PACKAGES)} are imported from the checkouts in {root}')]


def _origin(name: str) -> Optional[Path]:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None
