"""stdout and stderr that never end a process: a closed pipe, a full disk or a lost terminal is only noted.

Standard library only.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import select
import sys
from typing import Any, Callable, Optional, Tuple

_PATIENCE_S = 5  # for a slow reader, if the stream itself does not wait (O_NONBLOCK)
_GONE = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ENXIO, errno.ECONNRESET)
_ERRORS = 'recipe.encode_anyhow'


def reopen_closed() -> None:
    """Open /dev/null in place of standard streams that are closed (``>&-``).

    Otherwise the next opened file gets the stream's number, and printed text goes into it.
    """
    while True:
        fd = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)


def _encode_anyhow(error: UnicodeError) -> Tuple[Any, int]:
    """Write characters that the encoding lacks as the bytes of a file name, so that a printed path stays correct."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    try:
        return os.fsencode(error.object[error.start : error.end]), error.end
    except UnicodeEncodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error(_ERRORS, _encode_anyhow)


class _Raw(io.RawIOBase):
    """A file descriptor to write to. A failure is noted, not raised."""

    def __init__(self, fd: int, on_failure: Callable[[OSError], None]) -> None:
        self._fd = fd
        self._on_failure = on_failure
        self._patience_s = _PATIENCE_S

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast('B')
        left = view
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError as error:
                if not select.select([], [self._fd], [], self._patience_s)[1]:
                    self._patience_s = 0
                    self._fail(error)
                    break
            except OSError as error:
                self._fail(error)
                break
        return len(view)

    def _fail(self, error: OSError) -> None:
        if error.errno in _GONE:  # native code and child processes write there as well
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._fd)
                os.close(null)
        self._on_failure(error)


class Stream(io.TextIOWrapper):
    """stdout or stderr.

    Args:
        fd: 1 or 2.
        encoding: Of the text.
        on_failure: Called with this stream when it fails for the first time.

    Attributes:
        failure: The first one; None as long as everything could be written.
    """

    def __init__(self, fd: int, encoding: str, on_failure: Callable[[Stream], None]) -> None:
        self.failure: Optional[OSError] = None
        self._on_failure = on_failure
        raw = io.BufferedWriter(_Raw(fd, self._note))
        super().__init__(raw, encoding=encoding, errors=_ERRORS, line_buffering=True, write_through=True)

    @property
    def title(self) -> str:
        """Name for messages."""
        return {1: 'stdout', 2: 'stderr'}[self.fileno()]

    def _note(self, error: OSError) -> None:
        if self.failure is None:
            self.failure = error
            self._on_failure(self)


def install(on_failure: Callable[[Stream], None]) -> Optional[Stream]:
    """Replace ``sys.stdout`` and ``sys.stderr`` by such streams until the process ends.

    A stream that other code, such as pytest, has replaced stays as it is.

    Args:
        on_failure: Called with a stream that fails for the first time.

    Returns:
        The one for stdout, None if other code had replaced it.
    """
    reopen_closed()
    for name, fd in (('stdout', 1), ('stderr', 2)):
        now = getattr(sys, name)
        if now is getattr(sys, f'__{name}__'):
            setattr(sys, name, Stream(fd, getattr(now, 'encoding', None) or 'utf-8', on_failure))
    return sys.stdout if isinstance(sys.stdout, Stream) else None
