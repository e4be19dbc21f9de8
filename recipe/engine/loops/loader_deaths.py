"""Loader processes that are gone: how that shows, and what it may mean."""

import os
import re
import shutil
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any, Dict, Optional, Sequence, Tuple

from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

_MIB = 2**20
# From the wait for a batch, or from torch's handler of SIGCHLD anywhere else;
# the latter from the wait where the thread that pins batches saw it first.
_DEATH = re.compile(r'DataLoader worker \(pid|Pin memory thread exited unexpectedly')
# A batch is handed over in files of /dev/shm, which torch calls so.
_NOT_SHARED = re.compile(r'in DataLoader worker.*(shared memory|</torch_)', re.DOTALL)
_SIGNAL_S = 2  # longer than a process lives that has lost its sockets
_print_and_drop = Queue._on_queue_feeder_error


def last_words(error: BaseException) -> Optional[str]:
    """What is known of a loader process whose end an exception tells of.

    A process that dies while it hands over a batch closes its socket before
    it counts as dead, so torch takes it for living and hands on what the
    socket raises: EOFError, ConnectionResetError, BrokenPipeError or, before
    there is a connection, ConnectionRefusedError or FileNotFoundError.

    Args:
        error (BaseException): What a training has raised.

    Returns:
        str, optional: What torch says of the process; None where the
        exception tells of something else.
    """
    said = str(error)
    call, workers = _in_loader(error.__traceback__)
    if isinstance(error, RuntimeError):
        if _NOT_SHARED.search(said):
            return f'DataLoader worker: {said.strip().splitlines()[-1]}.'
        if not _DEATH.search(said):
            return None
    elif call == '__init__' and isinstance(error, OSError):
        return f'No DataLoader worker can be started: {error.strerror}.'
    elif call == '_try_get_data' and isinstance(error, (EOFError, ConnectionError, FileNotFoundError)):
        said = f'A DataLoader worker closed its connection while it handed over a batch ({type(error).__name__}).'
        try:
            time.sleep(_SIGNAL_S)
        except RuntimeError as e:
            # torch's handler of SIGCHLD
            if not _DEATH.search(str(e)):
                raise
            said = str(e)
    else:
        return None
    return said if 'by signal' in said else _exits(workers) or said


def _in_loader(traceback: Optional[TracebackType]) -> Tuple[Optional[str], Sequence[BaseProcess]]:
    """Within what something was raised, if a data loader had to do with it.

    Returns:
        tuple: ``'_try_get_data'``, the wait for a batch, or ``'__init__'``,
        the start of loader processes, or None; and the processes.
    """
    while traceback is not None:
        frame = traceback.tb_frame
        loader = frame.f_locals.get('self')
        if isinstance(loader, _MultiProcessingDataLoaderIter) and frame.f_code.co_name in ('_try_get_data', '__init__'):
            return frame.f_code.co_name, getattr(loader, '_workers', ())
        traceback = traceback.tb_next
    return None, ()


def _exits(workers: Sequence[BaseProcess]) -> str:
    """How loader processes have ended, in torch's words.

    Torch itself has no more to say than that they are gone where it comes
    upon that before its handler of SIGCHLD does.
    """
    said = []
    for worker in workers:
        code = worker.exitcode
        if code is not None and code < 0:
            said.append(f'DataLoader worker (pid {worker.pid}) is killed by signal: {signal.strsignal(-code)}.')
        elif code is not None:
            said.append(f'DataLoader worker (pid {worker.pid}) exited with status {code}.')
    return ' '.join(said)


def hand_on_what_cannot_be_shared() -> None:
    """Have loader processes hand on why a batch does not reach the training.

    A batch is put into shared memory by a thread of the loader process. Where
    that fails, Python prints a traceback and drops the batch, and the training
    waits for it for ever. Processes that are forked from now on hand the error
    on in its place, as torch does where a sample cannot be made.
    """
    Queue._on_queue_feeder_error = _hand_on


def _hand_on(self: Queue, error: Exception, item: Any) -> None:
    """CPython's hook for a queue that cannot send; see above."""
    worker = get_worker_info()
    if worker is None:
        _print_and_drop(error, item)
        return
    index, _ = item
    self.put((index, ExceptionWrapper(where=f'in DataLoader worker process {worker.id}')))


def heed_no_more() -> None:
    """Keep torch's handler from raising while the process ends of a death.

    Others may die with the first one, as where memory runs out.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def explain_dead_worker(said: str) -> str:
    """Say why a loader process probably died.

    Args:
        said (str): What torch says.

    Returns:
        str: One line with the likely cause, figures of the machine and what
        to do.
    """
    said = ' '.join(said.split())
    shm = _shared_memory()
    memory = _available_memory()
    if 'Bus error' in said or 'shared memory' in said:
        return (
            f'{said} It ran out of shared memory; {shm}. Make /dev/shm '
            'larger (docker run --shm-size), or give fewer loader '
            'processes'
        )
    if 'Killed' in said:
        return (
            f'{said} Most often the system kills for want of memory; '
            f'{memory}. Give fewer loader processes, or more memory'
        )
    return (
        f'{said} Memory and shared memory are the usual causes; {memory}, '
        f'{shm}. Without loader processes the error itself is shown'
    )


def _shared_memory() -> str:
    try:
        usage = shutil.disk_usage('/dev/shm')
    except OSError:
        return 'there is no /dev/shm'
    return f'/dev/shm has {usage.free // _MIB} of {usage.total // _MIB} MiB free'


def _available_memory() -> str:
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    try:
        with open('/proc/meminfo') as f:
            rows: Dict[str, str] = dict(line.split(':', 1) for line in f if ':' in line)
        free = int(rows['MemAvailable'].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    return f'{free // _MIB} MiB of memory are available now'
