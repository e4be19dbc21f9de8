"""Text files that grow by lines, also over a full disk."""

import logging
import os
from typing import List

from mmengine.logging import print_log


class AppendedLines:
    """Appends lines to a text file without ever ending the training.

    A disk that is full, read-only or gone must cost no trained iteration.
    What cannot be written is kept and tried again with the next lines, and
    said once; a line that was written in part is taken back.

    Args:
        path (str): The file.
        limit (int): Lines to keep at most; the oldest go first. Defaults to
            100000.
    """

    def __init__(self, path: str, limit: int = 100000) -> None:
        self.path = path
        self._limit = limit
        self._waiting: List[str] = []
        self._told = False

    def write(self, *lines: str) -> bool:
        """Append lines, and those before them that could not be written.

        Args:
            *lines (str): Each with its line end.

        Returns:
            bool: Whether all are in the file now.
        """
        self._waiting = (self._waiting + list(lines))[-self._limit :]
        try:
            self._append(''.join(self._waiting).encode())
        except OSError as e:
            if not self._told:
                # The log may be on the same disk, and its handlers do not
                # raise.
                print_log(
                    f'cannot write to {self.path} ({e.strerror}); the training goes on and tries again',
                    logger='current',
                    level=logging.WARNING,
                )
            self._told = True
            return False
        self._waiting.clear()
        self._told = False
        return True

    def _append(self, data: bytes) -> None:
        """Append bytes, all of them or none."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(fd).st_size
            try:
                while data:
                    data = data[os.write(fd, data) :]
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)
