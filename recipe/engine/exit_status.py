"""Exit statuses of a training that ends for a known reason."""

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn, Optional

from mmseg.engine.device import end_collectives

NONFINITE = 65  # loss or gradient not finite; BSD's EX_DATAERR
UNREADABLE = 66  # a sample cannot be read; BSD's EX_NOINPUT
LOADER_DIED = 71  # a loader process is gone; BSD's EX_OSERR


class TrainingEnded(SystemExit):
    """Ends the process with one line on stderr in place of a traceback.

    Args:
        message (str): What is wrong, where, and what to do about it.
        status (int): Exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(status)
        self.message = ' '.join(message.split())

    def say(self) -> None:
        """Print the line, in one piece, as the last thing to be seen."""
        sys.stdout.flush()
        # a line of its own, whatever native code has written without an end
        sys.stderr.write(f'\nerror: {self.message}\n')
        sys.stderr.flush()


def leave(ended: Optional[SystemExit] = None) -> NoReturn:
    """End the process of a training, with what it wrote on its way out.

    The interpreter is not taken apart: threads of native code (gloo's) that
    reach for it meanwhile are aborted ("terminate called without an active
    exception"), and with them a training that had done all its work.

    Args:
        ended (SystemExit, optional): What the training raised: on all ranks in
            the same iteration, or with ``UNREADABLE`` and ``LOADER_DIED`` on
            one rank alone. Defaults to None: it is done.
    """
    if isinstance(ended, TrainingEnded):
        ended.say()
    code = ended.code if ended else None
    if code not in (UNREADABLE, LOADER_DIED):
        end_collectives()
        # as the interpreter does first when it ends; no public name for it
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
        atexit._run_exitfuncs()
    # In the two other cases the ranks wait for this one in a collective:
    # nothing that waits for them, or for a loader, may come in between.
    said = not isinstance(code, (int, type(None)))  # sys.exit('what is wrong')
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # no room for it, or nobody who reads it
            if said and stream is sys.stderr:
                stream.write(f'{code}\n')
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
