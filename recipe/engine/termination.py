"""Ends the process of a rank with one line on stderr and an exit status of ``recipe.core.exit_status``."""

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import Any, List, NoReturn, Optional

import torch
from torch import distributed as dist

from recipe.core.exit_status import LOADER_DIED, UNREADABLE

_kept: List[Any] = []  # what must not be freed before the process is gone


class TrainingEnded(SystemExit):
    """Ends the process with one line on stderr in place of a traceback.

    Args:
        message: What is wrong, where, and what to do about it.
        status: Exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(status)
        self.message = ' '.join(message.split())

    def print_message(self) -> None:
        """Print the line in one write, as the last output of the process."""
        sys.stdout.flush()
        # It begins on a new line, because native code may have written text without a line end.
        sys.stderr.write(f'\nerror: {self.message}\n')
        sys.stderr.flush()


def leave(ended: Optional[SystemExit] = None) -> NoReturn:
    """End the process of a training after its threads and exit functions.

    Python's own finalization is skipped. If threads of native code (gloo's) call into an interpreter that is being
    finalized, they abort the process ("terminate called without an active exception"), although all work is done.

    Args:
        ended: The exception that the training raised; None if it is complete. All ranks raise it in the same iteration,
            except for ``UNREADABLE`` and ``LOADER_DIED``, which one rank may raise alone.
    """
    if isinstance(ended, TrainingEnded):
        ended.print_message()
    code = ended.code if ended else None
    if code not in (UNREADABLE, LOADER_DIED):
        _end_collectives()
        # The interpreter does the same first when it ends. There is no public name for it.
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
        atexit._run_exitfuncs()
    # With these two statuses the other ranks wait for this one in a collective. So this process must not wait for them
    # or for a loader process.
    has_text = not isinstance(code, (int, type(None)))  # sys.exit('some text')
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk or a closed pipe
            if has_text and stream is sys.stderr:
                stream.write(f'{code}\n')
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _end_collectives() -> None:
    """End the process groups, but keep gloo's part of each, so that its destructor never runs.

    The destructor joins gloo's threads while it holds the interpreter's lock. In torch 2.1 one of them may wait for
    that lock to free the tensor of the last collective; then the process would hang after all its work.
    """
    if dist.is_available() and dist.is_initialized():
        for group in list(dist.distributed_c10d._world.pg_map):  # no public name lists all groups
            with suppress(RuntimeError):  # a group without gloo
                _kept.append(group._get_backend(torch.device('cpu')))
        dist.destroy_process_group()
