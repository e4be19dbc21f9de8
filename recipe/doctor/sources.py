"""Checks that Python imports the patched checkouts, and all other packages from the environment."""

from __future__ import annotations

import sys
from typing import List, Sequence

from recipe.core import imported_packages
from recipe.core.paths import ROOT
from recipe.doctor.finding import FAILURE, OK, WARNING, Finding
from recipe.doctor.subject import Subject


def examine(subject: Subject) -> List[Finding]:
    """Find the packages without importing them. ``checkouts`` checks whether the checkouts are unmodified."""
    findings = _findings(imported_packages.misplaced_checkouts())
    if not any(finding.level == FAILURE for finding in findings):
        names = ', '.join(imported_packages.PACKAGES)
        findings.append(Finding('packages', OK, f'{names} are imported from the checkouts in {ROOT}'))
    return findings


def loadable(device: str) -> List[Finding]:
    """Import all packages with compiled parts; a failure names the first that this system cannot load.

    Args:
        device: ``npu``, ``cuda`` or ``cpu``.
    """
    names = imported_packages.COMPILED + (imported_packages.COMPILED_NPU if device == 'npu' else ())
    for name in names:
        imported_packages.load(name)
    return [Finding('imports', OK, f'{len(names)} packages can be imported')]


def hidden_packages() -> List[Finding]:
    """Findings on packages of the environment that PYTHONPATH hides."""
    return _findings(imported_packages.hiding(imported_packages.OTHERS, sys.path))


def _findings(misplaced: Sequence[imported_packages.Misplaced]) -> List[Finding]:
    return [
        Finding(f'package {one.package}', FAILURE if one.is_fatal else WARNING, one.found, one.fix) for one in misplaced
    ]
