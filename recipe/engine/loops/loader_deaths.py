"""Detects that a data loader process has died, and names the likely cause."""

import re
import shutil
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any, Optional, Sequence, Tuple

import psutil
from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

_MIB = 2**20
# torch's messages: the first from the wait for a batch and from the SIGCHLD handler, the second if the thread that pins
# memory notices first.
_DEATH = re.compile(r'DataLoader worker \(pid|Pin memory thread exited unexpectedly')
# Batches are sent in files of /dev/shm whose names begin with torch_.
_NOT_SHARED = re.compile(r'in DataLoader worker.*(shared memory|</torch_)', re.DOTALL)
_EXIT_S = 2  # seconds within which a process that has closed its sockets ends
_print_and_drop = Queue._on_queue_feeder_error  # type: ignore[attr-defined]  # CPython has no public hook


def worker_death_reason(error: BaseException) -> Optional[str]:
    """Describe the dead loader process that caused an exception, if one did.

    A process that dies while it sends a batch closes its socket before the system reports it as dead. So torch believes
    that it is alive and raises the socket's error: EOFError, ConnectionResetError or BrokenPipeError, or
    ConnectionRefusedError or FileNotFoundError if there is no connection yet.

    Args:
        error: The exception that the training raised.

    Returns:
        Torch's message or the exit status of the process; None if the exception has another cause.
    """
    text = str(error)
    call, workers = _loader_call(error.__traceback__)
    if isinstance(error, RuntimeError):
        if _NOT_SHARED.search(text):
            return f'DataLoader worker: {text.strip().splitlines()[-1]}.'
        if not _DEATH.search(text):
            return None
        return text if 'by signal' in text else _exits(workers) or text
    if call == '__init__' and isinstance(error, OSError):
        return f'No DataLoader worker can be started: {error.strerror}.'
    if call == '_try_get_data' and isinstance(error, (EOFError, ConnectionError, FileNotFoundError)):
        ignore_sigchld()
        deadline = time.monotonic() + _EXIT_S
        while not _exits(workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        closed = f'A DataLoader worker closed its connection while it handed over a batch ({type(error).__name__}).'
        return _exits(workers) or closed
    return None


def _loader_call(traceback: Optional[TracebackType]) -> Tuple[Optional[str], Sequence[BaseProcess]]:
    """Which call of a data loader raised an error, if any.

    Returns:
        ``'_try_get_data'`` (the wait for a batch), ``'__init__'`` (the start of the loader processes) or None; and the
        loader's processes.
    """
    while traceback is not None:
        frame = traceback.tb_frame
        loader = frame.f_locals.get('self')
        if isinstance(loader, _MultiProcessingDataLoaderIter) and frame.f_code.co_name in ('_try_get_data', '__init__'):
            return frame.f_code.co_name, getattr(loader, '_workers', ())
        traceback = traceback.tb_next
    return None, ()


def _exits(workers: Sequence[BaseProcess]) -> str:
    """Exit statuses of loader processes in torch's wording; empty while all of them run."""
    lines = []
    for worker in workers:
        code = worker.exitcode
        if code is not None and code < 0:
            lines.append(f'DataLoader worker (pid {worker.pid}) is killed by signal: {signal.strsignal(-code)}.')
        elif code is not None:
            lines.append(f'DataLoader worker (pid {worker.pid}) exited with status {code}.')
    return ' '.join(lines)


def send_errors_in_place_of_batches() -> None:
    """Make loader processes that start later report why a batch cannot be sent.

    A thread of the loader process puts each batch into shared memory. If that fails, Python prints a traceback and
    drops the batch, and the training waits for it forever. With this, the process sends the error instead of the batch,
    as torch does if a sample cannot be loaded.
    """
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]  # CPython has no public hook


def _send_error(self: Queue, error: Exception, item: Any) -> None:
    """Send the error that is being handled in place of the item. CPython calls this if a queue cannot send the item."""
    worker = get_worker_info()
    if worker is None:
        _print_and_drop(error, item)
        return
    index, _ = item
    self.put((index, ExceptionWrapper(where=f'in DataLoader worker process {worker.id}')))


def ignore_sigchld() -> None:
    """Keep torch's handler from raising again when other loader processes die too."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def explain_dead_worker(reason: str) -> str:
    """Name the likely cause of a loader process's death.

    Args:
        reason: From ``worker_death_reason``.

    Returns:
        One line with the likely cause, free memory and what to do.
    """
    reason = ' '.join(reason.split())
    shm = _shared_memory()
    memory = _available_memory()
    if 'Bus error' in reason or 'shared memory' in reason:
        return (
            f'{reason} It ran out of shared memory; {shm}. Make /dev/shm larger (docker run --shm-size), or give fewer '
            'loader processes'
        )
    if 'Killed' in reason:
        return (
            f'{reason} Most often the system kills for lack of memory; {memory}. Give fewer loader processes, or more '
            'memory'
        )
    return (
        f'{reason} Lack of memory or shared memory is the usual cause; {memory}, {shm}. Without loader processes the '
        'error itself is shown'
    )


def _shared_memory() -> str:
    try:
        usage = shutil.disk_usage('/dev/shm')
    except OSError:
        return 'there is no /dev/shm'
    return f'/dev/shm has {usage.free // _MIB} of {usage.total // _MIB} MiB free'


def _available_memory() -> str:
    return f'{psutil.virtual_memory().available // _MIB} MiB of memory are available now'
