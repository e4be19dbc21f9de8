"""How every tool of this repository speaks to its user.

A mistake that a user can make ends as one line on stderr (what is wrong, where, what to do) and a non-zero exit
status. Standard library only, Python 3.8 on: the bootstrap imports it before anything is installed.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Callable, Optional

EXIT_USAGE = 2  # a bad option, as argparse does
EXIT_FAILURE = 1  # anything else that went wrong
# What a disk says that is full, over quota, read-only, broken or gone.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN)


class UserError(Exception):
    """A failure that the user can mend.

    Args:
        message: One line: what is wrong, where, and what to do about it. Newlines are folded into spaces.
        status: Exit status of the process, not 0.
    """

    def __init__(self, message: str, status: int = EXIT_FAILURE) -> None:
        super().__init__(' '.join(str(message).split()))
        self.status = status


def say(message: str) -> None:
    """Print one line to stdout at once, also when stdout is a pipe or a file."""
    print(message, flush=True)


def warn(message: str) -> None:
    """Print one ``warning:`` line to stderr."""
    print(f'warning: {message}', file=sys.stderr, flush=True)


def run(main: Callable[[], Optional[int]]) -> None:
    """Run a tool's ``main`` and leave the process with its status.

    ``UserError`` becomes one ``error:`` line; Ctrl-C becomes status 130; a closed pipe (``| head``) is no failure. An
    operating-system error that names a file (read-only folder, no permission) or comes from a disk (full, gone) is the
    user's to mend, so it too is one line. Everything else is a bug of ours and keeps its traceback.

    Args:
        main: Returns the exit status; None counts as 0.
    """
    try:
        status = main() or 0
    except UserError as error:
        print(f'error: {error}', file=sys.stderr, flush=True)
        status = error.status
    except KeyboardInterrupt:
        print('error: interrupted', file=sys.stderr, flush=True)
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        # Python names no file where writing to one that is open fails.
        if error.filename is None and error.errno not in DISK_ERRORS:
            raise
        where = error.filename or 'a file could not be written; make room, or see whether the disk is still there'
        print(f'error: {error.strerror}: {where}', file=sys.stderr, flush=True)
        status = EXIT_FAILURE
    sys.exit(status)
