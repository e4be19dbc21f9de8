"""Reads a file of unknown origin in a child process, so that a crash does not end the caller."""

import faulthandler
import json
import os
import resource
import signal
import warnings
from contextlib import suppress
from typing import Any, Callable, Dict, Tuple, Type

import psutil

from recipe.engine.checkpoint.errors import CheckpointError, UntrustedCheckpointError
from recipe.engine.checkpoint.load import is_trusted

_ROOM = 1 << 30  # bytes of memory that reading may use beside the file's content
_CPU_S = 120  # CPU seconds that it may use; a gigabyte takes about two
_CPU_S_PER_BYTE = 1 / 20e6
_SIGNALS: Dict[int, str] = {
    signal.SIGXCPU: 'takes too long to read',
    signal.SIGKILL: 'takes more memory to read than there is',
}
_ERRORS: Dict[str, Type[CheckpointError]] = {
    kind.__name__: kind for kind in (CheckpointError, UntrustedCheckpointError)
}


def read_in_own_process(path: str, read: Callable[[str], Any]) -> Any:
    """Call a function in a process that has its own memory and limits.

    The process is forked, so ``read`` may use objects of the caller. If the user trusts the file, or it does not exist,
    ``read`` is called in this process.

    Args:
        path (str): The file.
        read (Callable): Called with ``path``; its result has to fit into JSON.

    Returns:
        Any: The result of ``read``.

    Raises:
        CheckpointError: ``read`` raised an error, or the process died while it read the file.
    """
    if is_trusted() or not hasattr(os, 'fork') or not os.path.isfile(path):
        return read(path)
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns if the process has threads. The child waits for none of them.
        warnings.simplefilter('ignore', DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            _limit(os.path.getsize(path))
            answer = json.dumps(_answer(path, read)).encode()
            with os.fdopen(sender, 'wb') as file:
                file.write(answer)
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, 'rb') as file:
        answer = file.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        died_of = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        raise CheckpointError(
            path, _SIGNALS.get(died_of, f'is damaged: the process that read it ended with signal {died_of}')
        )
    kind, value = json.loads(answer)
    if kind in _ERRORS:
        raise _ERRORS[kind](path, value)
    return value


def _answer(path: str, read: Callable[[str], Any]) -> Tuple[str, Any]:
    """Call ``read`` and return ('value', result) or (error class, reason), which fit into JSON."""
    try:
        return 'value', read(path)
    except CheckpointError as e:
        return type(e).__name__, e.reason
    except MemoryError:
        return 'CheckpointError', _SIGNALS[signal.SIGKILL]
    # Any other error is taken as damage of the file.
    except Exception as e:
        return 'CheckpointError', f'cannot be read ({type(e).__name__}: {e})'


def _limit(size: int) -> None:
    """Limit the CPU time and memory of the process, and silence its output and core dumps."""
    faulthandler.disable()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    _lower(resource.RLIMIT_CORE, 0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + _CPU_S + size * _CPU_S_PER_BYTE))
    _lower(resource.RLIMIT_AS, psutil.Process().memory_info().vms + 3 * size + _ROOM)


def _lower(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(limit, (value, hard))
