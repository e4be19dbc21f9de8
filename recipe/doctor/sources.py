"""Are the packages that Python imports the patched checkouts beside this file?"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import List, Optional

from recipe.core.paths import ROOT
from recipe.doctor.finding import FAILURE, OK, Finding
from recipe.doctor.subject import Subject

PACKAGES = {'mmcv': 'mmcv', 'mmdet': 'mmdetection', 'mmseg': 'mmsegmentation'}


def examine(subject: Subject) -> List[Finding]:
    """Find the packages without importing them. Whether the checkouts are unmodified is ``checkouts``' to say."""
    return judge({name: _origin(name) for name in PACKAGES}, ROOT)


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
