"""The time of each iteration, in a CSV file."""

import os
import os.path as osp
import time
from contextlib import contextmanager
from typing import Iterator, List, Optional

from recipe.engine.appended_lines import AppendedLines


class StepTimes:
    """Writes the time of each training iteration to a CSV file.

    The columns are ``iter`` (counted from 1), ``data_s`` (seconds of waiting for the batch) and ``step_s`` (seconds of
    the whole iteration, including ``data_s``, without checkpointing and validation).

    Args:
        path (str, optional): The file to append to. None writes nothing.
        flush_every (int): Lines to collect before they are written. Defaults to 50.
    """

    def __init__(self, path: Optional[str], flush_every: int = 50) -> None:
        self.path = path
        self.flush_every = flush_every
        self._lines: List[str] = []
        self._begin = self._data_end = self._excluded = 0.0
        if path is not None:
            os.makedirs(osp.dirname(path), exist_ok=True)
            self._file = AppendedLines(path)
            self._lines.append('iter,data_s,step_s\n')
            self.flush()

    def start(self) -> None:
        """Call when an iteration begins to wait for its batch."""
        self._excluded = 0.0
        self._begin = self._data_end = time.perf_counter()

    def data_ready(self) -> None:
        """Call when the batch has arrived."""
        self._data_end = time.perf_counter()

    def stop(self, iteration: int) -> None:
        """Call when an iteration has ended.

        Args:
            iteration (int): Its number, counted from 1.
        """
        if self.path is None:
            return
        step = time.perf_counter() - self._begin - self._excluded
        data = self._data_end - self._begin
        self._lines.append(f'{iteration},{data:.6f},{step:.6f}\n')
        if len(self._lines) >= self.flush_every:
            self.flush()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block from the iteration."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._excluded += time.perf_counter() - begin

    def flush(self) -> None:
        """Write the collected lines. Lines that cannot be written are tried again with the next ones."""
        if self.path is None or not self._lines:
            return
        self._file.write(*self._lines)
        self._lines.clear()
