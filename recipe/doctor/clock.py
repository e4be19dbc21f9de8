"""Checks the clock of this machine. It names the run folders, and the newest one is resumed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import List, Optional

from recipe.core.paths import ROOT
from recipe.doctor.finding import OK, WARNING, Finding
from recipe.doctor.subject import Subject

AHEAD_S = 60  # other machines that write to the storage may be a little ahead


def examine(subject: Subject) -> List[Finding]:
    """Compare the clock with the newest file written here."""
    return judge(time.time(), _newest([ROOT, *ROOT.glob('*.*'), ROOT / 'test' / 'output']))


def _newest(paths: List[Path]) -> Optional[float]:
    return max((path.stat().st_mtime for path in paths if path.exists()), default=None)


def judge(now_s: float, written_s: Optional[float]) -> List[Finding]:
    """Findings on one clock.

    Args:
        now_s: Current time, seconds since 1970.
        written_s: When the newest file was written; None if there is none.
    """
    shown = time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(now_s))
    if written_s is not None and written_s > now_s + AHEAD_S:
        found = f'it is {shown}, {written_s - now_s:.0f} s before files here were written'
        return [Finding('clock', WARNING, found, 'set the clock, for example with chronyc makestep')]
    return [Finding('clock', OK, shown)]
