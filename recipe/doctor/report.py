"""Shows findings to the user: as a table, as JSON, or as the launcher's few lines."""

from __future__ import annotations

import json
import sys
from typing import Any, Dict, List

from recipe.core import console
from recipe.doctor.finding import FAILURE, LEVELS, OK, WARNING, Finding

_COLOURS = {OK: 'green', WARNING: 'yellow', FAILURE: 'bold red'}


def worst(findings: List[Finding]) -> str:
    """The highest level among findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default=OK)


def counts(findings: List[Finding]) -> str:
    """Count the findings of each level: ``12 ok, 1 warning, 0 failure``."""
    return ', '.join(f'{sum(finding.level == level for finding in findings)} {level}' for level in LEVELS)


def as_dict(findings: List[Finding]) -> Dict[str, Any]:
    """The content of ``--json``: the findings in order, and the worst level."""
    return {'worst': worst(findings), 'findings': [vars(finding) for finding in findings]}


def print_json(findings: List[Finding]) -> None:
    """Print the findings as one JSON object."""
    print(json.dumps(as_dict(findings), indent=2))


def print_table(findings: List[Finding]) -> None:
    """Print the findings: a table in colour on a terminal, plain lines elsewhere.

    Args:
        findings: In the order of the checks.
    """
    if sys.stdout.isatty():
        _print_coloured(findings)
    else:
        width = max((len(finding.check) for finding in findings), default=0)
        for finding in findings:
            console.say(f'{finding.level:<7}  {finding.check:<{width}}  {finding.found}')
            if finding.fix:
                console.say(f'{"":<7}  {"":<{width}}  fix: {finding.fix}')
    console.say(counts(findings))


def _print_coloured(findings: List[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style='bold')
    for name in ('', 'check', 'found'):
        table.add_column(name, overflow='fold')
    for finding in findings:
        # Text, because square brackets in a path are not markup.
        found = Text(console.printable(finding.found))
        if finding.fix:
            found.append(f'\nfix: {console.printable(finding.fix)}', style='italic')
        table.add_row(Text(finding.level, style=_COLOURS[finding.level]), Text(finding.check), found)
    Console(highlight=False).print(table)


def require(findings: List[Finding]) -> None:
    """Report what the launcher's checks found; warnings do not stop it.

    Raises:
        console.UserError: The first failure with its fix, and how many more there are.
    """
    for finding in findings:
        if finding.level == WARNING:
            console.warn(f'{finding.check}: {finding.found}; {finding.fix}')
    failures = [finding for finding in findings if finding.level == FAILURE]
    if failures:
        first = failures[0]
        more = f' (and {len(failures) - 1} more failures: python tools/doctor.py)' if len(failures) > 1 else ''
        raise console.UserError(f'{first.check}: {first.found}', f'{first.fix}{more}')
