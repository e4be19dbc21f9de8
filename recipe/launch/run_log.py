"""The log of a run that grows while it trains: ``train_full_8p.log``, with all that the ranks of this machine print."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Dict, Sequence

_LOOK_EVERY_S = 1.0
_MOST_BYTES = 1 << 20  # read from a rank's log at once


class RunLog:
    """Collects the logs of ranks in one file; a context manager, left after all ranks have ended.

    Whole lines are appended as they come. Lines of ranks other than 0 begin with ``[rank1]: ``, as torch marks them.

    Args:
        paths: The file, and a copy of it where ``test/output`` cannot hold a link.
        log_dir: torchrun's folder, with the logs of the ranks.
        first_rank: Rank of the first process of this machine.
    """

    def __init__(self, paths: Sequence[Path], log_dir: Path, first_rank: int = 0) -> None:
        self._paths = paths
        self._waiting = dict.fromkeys(paths, b'')  # read and not written yet
        self._log_dir = log_dir
        self._first_rank = first_rank
        self._read: Dict[Path, int] = {}  # bytes of each log
        self._next_look = 0.0

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._collect(to_the_end=True)

    def look(self) -> None:
        """Append what is new. Cheap enough to call twice a second."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            self._collect()

    def _collect(self, to_the_end: bool = False) -> None:
        with contextlib.suppress(OSError):  # a disk that is full or gone; what is missing is appended later
            self._write()
            for log in sorted(self._log_dir.rglob('*.log')):
                while self._take(log, to_the_end) and to_the_end:
                    pass

    def _take(self, log: Path, to_the_end: bool) -> bool:
        """Append the next whole lines of a log; whether there were any."""
        begin = self._read.get(log, 0)
        with log.open('rb') as file:
            file.seek(begin)
            text = file.read(_MOST_BYTES)
        if not to_the_end and len(text) < _MOST_BYTES:
            text = text[: text.rfind(b'\n') + 1]  # the rank still writes its last line
        if not text:
            return False
        self._read[log] = begin + len(text)
        rank = self._first_rank + int(log.parent.name) if log.parent.name.isdigit() else 0
        if rank:
            text = re.sub(rb'(?m)^(?=.)', b'[rank%d]: ' % rank, text)
        if to_the_end and len(text) < _MOST_BYTES and not text.endswith(b'\n'):
            text += b'\n'
        for path in self._paths:
            self._waiting[path] += text
        self._write()
        return True

    def _write(self) -> None:
        for path, text in self._waiting.items():
            if text:
                with path.open('ab', buffering=0) as file:
                    while self._waiting[path]:
                        self._waiting[path] = self._waiting[path][file.write(self._waiting[path]) or 0 :]
