"""How long each session of the launcher took, kept in the run folder. Standard library only.

A session is one call of the launcher. It holds one start of the trainer, or several if ranks were started again.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import FrozenSet, Iterator, List, NamedTuple

from recipe.core import json_files

FILE = 'sessions.jsonl'


class Session(NamedTuple):
    """One session.

    Attributes:
        seconds: From the start of the ranks to their end, by a monotonic clock.
        starts: Names of the log folders of its starts.
    """

    seconds: float
    starts: FrozenSet[str]


def log_folders(run: Path) -> FrozenSet[str]:
    """Names of the log folders of all starts in a run folder."""
    return frozenset(path.parent.name for path in run.glob('*/vis_data'))


@contextlib.contextmanager
def measured(run: Path) -> Iterator[None]:
    """Record how long the block took, however it ends, and which starts it held.

    Args:
        run: Run folder. If it cannot be written, nothing is recorded.
    """
    before, began = log_folders(run), time.monotonic()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            line = {'seconds': round(time.monotonic() - began, 3), 'starts': sorted(log_folders(run) - before)}
            with (run / FILE).open('a', encoding='utf-8') as file:
                file.write(json.dumps(line) + '\n')


def read(run: Path) -> List[Session]:
    """The sessions of a run, in order. Damaged lines are left out; their starts count by their logs."""
    try:
        lines = (run / FILE).read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json_files.parse(line, dict)
            found.append(Session(json_files.number(row['seconds']), frozenset(map(str, row['starts']))))
    return found
