"""The one display of progress: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Optional, TypeVar

from recipe.core import console

if TYPE_CHECKING:  # rich is imported only for a terminal: the import takes longer than some of the work
    from rich import progress


_Bar = TypeVar('_Bar', bound='ProgressBar')


class ProgressBar:
    """Shows how much of some work is done; a context manager.

    Args:
        title: What is done.
        total: Parts of the work.
        line_every_s: Seconds between two lines if there is no terminal.
        starts_silent: Whether the first line waits as long, so that short work prints none.
    """

    def __init__(self, title: str, total: int, line_every_s: float, starts_silent: bool = True) -> None:
        self._title, self._total, self._every_s = title, total, line_every_s
        self._next_line = time.monotonic() + (line_every_s if starts_silent else 0)
        self._bar: Optional[progress.Progress] = None

    def __enter__(self: _Bar) -> _Bar:
        if sys.stdout.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn('{task.description}'),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn('{task.fields[facts]}'),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, facts='')
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar, which may be updated often."""
        return self._bar is not None

    def update(self, done: int, facts: str = '', title: Optional[str] = None) -> bool:
        """Show what is done, if a line is due.

        Args:
            done: Parts of the work.
            facts: What else to show.
            title: Another title than at the beginning.

        Returns:
            Whether it was shown.
        """
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=title or self._title, facts=facts)
            return True
        if now < self._next_line:
            return False
        self._next_line = now + self._every_s
        console.say(f'{title or self._title}  {done}/{self._total}  {facts}'.rstrip())
        return True
