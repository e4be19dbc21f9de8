"""A finding of the doctor: one line on what it found, and one on how to fix it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List

from recipe.core import console

OK, WARNING, FAILURE = 'ok', 'warning', 'failure'
LEVELS = (OK, WARNING, FAILURE)


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        check: What was checked, a few words.
        level: One of ``LEVELS``. A warning may cost speed or hours later; a failure would end the training.
        found: What was found, one line.
        fix: What to do, one line; empty if all is well.
    """

    check: str
    level: str
    found: str
    fix: str = ''

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f'level: expected one of {LEVELS}, got {self.level!r}')
        if (self.level == OK) == bool(self.fix):
            raise ValueError(f'{self.check}: a finding has a fix exactly where something is wrong')
        for name in ('found', 'fix'):
            object.__setattr__(self, name, ' '.join(str(getattr(self, name)).split()))


def failure(check: str, error: console.UserError) -> Finding:
    """Convert an error to a finding.

    Args:
        check: Name of the finding.
        error: Its problem is what was found.
    """
    return Finding(check, FAILURE, error.problem, error.fix or 'see what was found')


def attempt(check: str, act: Callable[[], str]) -> List[Finding]:
    """Convert a function that may raise ``console.UserError`` to a finding.

    Args:
        check: Name of the finding.
        act: Returns what was found.
    """
    try:
        return [Finding(check, OK, act())]
    except console.UserError as error:
        return [failure(check, error)]
