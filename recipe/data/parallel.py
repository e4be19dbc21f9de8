"""Runs many small independent jobs in processes, with a progress bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional, Sequence, TypeVar

from recipe.core import console

if TYPE_CHECKING:  # rich is imported only where it is shown
    from rich import progress

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
    with _Progress(title, len(jobs)) if progress else contextlib.nullcontext() as bar:
        if workers == 1:
            return _collect((work(job) for job in jobs), bar)
        # Fork from a clean server, not from this process: it may hold threads (a progress bar, torch) whose locks a
        # plain fork would copy.
        context = multiprocessing.get_context('forkserver')
        executor = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker)
        try:
            chunk = max(1, min(32, len(jobs) // (workers * 8)))
            return _collect(executor.map(work, jobs, chunksize=chunk), bar)
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


def _collect(results: Iterator[Result], bar: Optional[_Progress]) -> List[Result]:
    done = []
    for result in results:
        done.append(result)
        if bar is not None:
            bar.advance()
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


class _Progress:
    """Shows the progress of the jobs; a context manager.

    Args:
        title: Name of the work.
        total: Number of jobs.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.bar: Optional[progress.Progress] = None
        self.start = self.last = time.monotonic()

    def __enter__(self) -> _Progress:
        if sys.stdout.isatty():
            from rich import progress  # imported only when shown: the import takes longer than a cached check

            columns = (
                progress.TextColumn('{task.description}'),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn('left'),
                progress.TimeRemainingColumn(),
            )
            self.bar = progress.Progress(*columns)
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total)
        return self

    def advance(self) -> None:
        """Count one job as done."""
        self.done += 1
        if self.bar is not None:
            self.bar.advance(self.task)
            return
        now = time.monotonic()
        if now - self.last >= LINE_EVERY_S and self.done < self.total:
            self.last = now
            left = (now - self.start) / self.done * (self.total - self.done)
            console.say(f'{self.title}: {self.done}/{self.total}, about {left:.0f} s left')

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.done == self.total:
            console.say(f'{self.title}: {self.done}/{self.total} in {time.monotonic() - self.start:.1f} s')
