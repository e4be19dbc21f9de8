"""Text files that grow by lines and tolerate a full disk."""

import logging
import os
from typing import List

from mmengine.logging import print_log


class AppendedLines:
    """Appends lines to a text file; never raises an error that would end the training.

    If the disk is full, read-only or gone, the lines are kept and written with the next ones. A warning is logged once.
    A line that was written in part is removed again.

    Args:
        path (str): The file.
        limit (int): Most lines to keep while they cannot be written; the oldest are dropped first. Defaults to 100000.
    """

    def __init__(self, path: str, limit: int = 100000) -> None:
        self.path = path
        self._limit = limit
        self._waiting: List[str] = []
        self._told = False

    def write(self, *lines: str) -> bool:
        """Append lines, after those that could not be written before.

        Args:
            *lines (str): Each with its line end.

        Returns:
            bool: Whether all lines are in the file now.
        """
        self._waiting = (self._waiting + list(lines))[-self._limit :]
        try:
            self._append(''.join(self._waiting).encode())
        except OSError as e:
            if not self._told:
                # The log may be on the same disk, but its handlers do not raise.
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
