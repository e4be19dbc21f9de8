"""Runs many small independent jobs in processes, with a progress bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from typing import Callable, Iterator, List, Optional, Sequence, TypeVar

from recipe.core import console, temporary
from recipe.data.progress_bar import ProgressBar

Job = TypeVar('Job')
Result = TypeVar('Result')
LINE_EVERY_S = 10.0  # between two progress lines without a terminal


def default_workers() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def run(
    work: Callable[[Job], Result], jobs: Sequence[Job], title: str, workers: Optional[int] = None, progress: bool = True
) -> List[Result]:
    """Run all jobs and return their results in order.

    Args:
        work: A module-level function; with more than one worker it is called in another process.
        jobs: Its arguments.
        title: Their name in the progress display.
        workers: Processes; by default one per core, and never more than jobs.
        progress: Whether to show progress on stdout.

    Raises:
        console.UserError: A worker died (killed, out of memory).
    """
    workers = min(workers or default_workers(), len(jobs))
    if not jobs:
        return []
    start = time.monotonic()
    with ProgressBar(title, len(jobs), LINE_EVERY_S) if progress else contextlib.nullcontext() as bar:
        done = _run(work, jobs, title, workers, bar)
    if bar is not None and not bar.is_shown:
        console.say(f'{title}: {len(jobs)}/{len(jobs)} in {time.monotonic() - start:.1f} s')
    return done


def _run(
    work: Callable[[Job], Result], jobs: Sequence[Job], title: str, workers: int, bar: Optional[ProgressBar]
) -> List[Result]:
    if workers == 1:
        return _collect((work(job) for job in jobs), len(jobs), bar)
    # Fork from a clean server, not from this process: it may hold threads (a progress bar, torch) whose locks a
    # plain fork would copy.
    temporary.sockets()
    context = multiprocessing.get_context('forkserver')
    executor = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker)
    try:
        chunk = max(1, min(32, len(jobs) // (workers * 8)))
        parts = [jobs[first : first + chunk] for first in range(0, len(jobs), chunk)]
        # Not executor.map: after a failure it cancels what waits, and then its thread may print a traceback of its own
        # (InvalidStateError) once the workers are stopped below.
        futures = [executor.submit(_work_on, work, part) for part in parts]
        return _collect((result for future in futures for result in future.result()), len(jobs), bar)
    except concurrent.futures.process.BrokenProcessPool:
        raise console.UserError(
            f'{title}: a worker process was killed, perhaps for want of memory',
            'run the same command again with a smaller --num_workers',
        ) from None
    except BaseException:
        # Leave at once; do not wait for queued jobs.
        for process in list(getattr(executor, '_processes', None) or {}):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        raise
    finally:
        executor.shutdown(wait=True)


def _work_on(work: Callable[[Job], Result], jobs: Sequence[Job]) -> List[Result]:
    return [work(job) for job in jobs]


def _collect(results: Iterator[Result], total: int, bar: Optional[ProgressBar]) -> List[Result]:
    done: List[Result] = []
    start = time.monotonic()
    for result in results:
        done.append(result)
        if bar is not None:
            left = (time.monotonic() - start) / len(done) * (total - len(done))
            bar.update(len(done), f'about {left:.0f} s left')
    return done


def _start_worker() -> None:
    """Make a worker end with its parent, however that ends, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, 'runs in a worker process'

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
