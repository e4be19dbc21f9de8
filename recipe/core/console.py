"""Output and errors of every tool of this repository.

A user's mistake ends as one line on stderr (what is wrong, where, what to do) and a non-zero exit status. Standard
library only, Python 3.8 on: the bootstrap imports it before anything is installed.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import re
import sys
import time
from pathlib import Path
from typing import Callable, List, Optional, TextIO

from recipe.core import openmp, standard_streams

EXIT_USAGE = 2  # a bad option; argparse's status
EXIT_FAILURE = 1  # any other error
# Errors of a disk that is full, over quota, read-only, broken or gone.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN)

# For this process and all that it starts. A notebook or an IDE exports a backend that needs the IDE's own modules.
ENVIRONMENT = {'MPLBACKEND': 'Agg'}

_logs: List[int] = []
_said: collections.deque[str] = collections.deque(maxlen=1000)  # printed before there was a log


# Control characters but the tab, line and paragraph separators, overrides of the writing direction.
_UNPRINTABLE = re.compile('[\\0-\\x08\\x0a-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]')
_INDENTED_LINE_BREAK = re.compile(r'[ \t]*\n\s+|[ \t]+\n')


def printable(text: str) -> str:
    r"""Escape what would act on a terminal, or break a line, as Python writes it: ``\x1b``, ``\n``.

    All that tools print goes through this, because names of files, classes and losses may come from anybody.
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode('unicode_escape').decode('ascii'), text)


class UserError(Exception):
    """An error that the user can fix; its text is one line, ``problem; fix``.

    Args:
        problem: What is wrong, and where. Line breaks beside other white space are folded into spaces, here and in
            ``fix``: so they are in the messages of libraries. Others, such as one in a file name, are escaped.
        fix: What to do about it; empty if ``problem`` says enough.
        status: Exit status of the process, not 0.
    """

    def __init__(self, problem: str, fix: str = '', status: int = EXIT_FAILURE) -> None:
        self.problem, self.fix = (printable(_INDENTED_LINE_BREAK.sub(' ', text.strip())) for text in (problem, fix))
        super().__init__('; '.join(filter(None, (self.problem, self.fix))))
        self.status = status


def reason(error: BaseException) -> str:
    """Why something failed, in words: never empty, never ``None``."""
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def say(message: str) -> None:
    """Print one line to stdout without delay, also when stdout is a pipe or a file."""
    message = printable(message)
    print(message, flush=True)
    _keep(message)


def warn(message: str) -> None:
    """Print one ``warning:`` line to stderr."""
    _to_stderr(f'warning: {message}')


def show(line: str) -> None:
    """Print to stderr a line that belongs to the error that follows."""
    _to_stderr(f'  {line}')


def log_to(*paths: Path) -> None:
    """Also append to files all that this process has printed so far, and prints from now on.

    Args:
        paths: One that cannot be written is left out.
    """
    for path in paths:
        with contextlib.suppress(OSError):
            _logs.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666))


# Of a rank that torchrun starts. mmengine and torch read them as numbers when they are imported.
_RANKS = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE')


def run(main: Callable[[], Optional[int]]) -> None:
    """Run a tool's ``main`` and end the process with its status.

    ``UserError`` becomes one ``error:`` line; Ctrl-C becomes status 130. An operating-system error that names a file
    (read-only folder, no permission) or comes from a disk (full, gone) is the user's to fix, so it too is one line.
    Everything else is a bug of the recipe and keeps its traceback.

    If stdout or stderr cannot be written, the work goes on without it. A closed pipe (``| head``) is not a failure. A
    full
    disk is one, unless ``log_to`` has the output.

    Args:
        main: Returns the exit status; None counts as 0.
    """
    os.environ.update(ENVIRONMENT)
    openmp.settle()
    for name in _RANKS:
        if not os.environ.get(name, '0').isdecimal():
            del os.environ[name]
    stdout = standard_streams.install(_on_stream_failure)
    try:
        status = _run(main)
    except UserError as error:
        _to_stderr(f'error: {error}')
        status = error.status
    except KeyboardInterrupt:
        _to_stderr('error: interrupted')
        status = 130
    except OSError as error:
        # Python names no file if writing to an open one fails.
        if error.filename is None and error.errno not in DISK_ERRORS:
            raise
        where = error.filename or 'a file could not be written; make room, or see whether the disk is still there'
        _to_stderr(f'error: {reason(error)}: {where}')
        status = EXIT_FAILURE
    else:
        sys.stdout.flush()
        if stdout and stdout.failure and stdout.failure.errno != errno.EPIPE and not _logs:
            _to_stderr(f'error: {reason(stdout.failure)}: stdout, so what should stand there is lost; make room')
            status = EXIT_FAILURE
    sys.exit(status)


def _run(main: Callable[[], Optional[int]]) -> int:
    """The status of ``main``, also if it ends by ``SystemExit``, as argparse does after --help."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError('the current folder was deleted', 'change to one that exists') from None
    try:
        return main() or 0
    except SystemExit as ended:
        if ended.code:
            raise
        return 0


def _to_stderr(line: str) -> None:
    line = printable(line)
    print(line, file=sys.stderr, flush=True)
    _keep(line)


def _keep(line: str) -> None:
    """Append a line to the log, or keep it until there is one."""
    _said.append(f'{time.strftime("%Y-%m-%d %H:%M:%S")}  {line}\n')
    while _logs and _said:
        text = _said.popleft().encode('utf-8', 'surrogateescape')
        for log in _logs:
            with contextlib.suppress(OSError):  # the ranks report a full disk
                os.write(log, text)


def _on_stream_failure(stream: standard_streams.Stream) -> None:
    """Report that a stream has failed, on the log and the other stream."""
    assert stream.failure is not None, 'a stream notes its failure before it reports it'
    line = f'warning: {stream.title} cannot be written ({reason(stream.failure)}); the work goes on without it'
    _keep(line)
    other: TextIO = sys.stderr if stream.title == 'stdout' else sys.stdout
    if _logs and getattr(other, 'failure', None) is None:
        print(line, file=other, flush=True)
