"""Handles images that cannot be read and loader processes that die."""

from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional

from recipe.core.exit_status import LOADER_DIED, UNREADABLE
from recipe.data.unreadable import UnreadableSampleError
from recipe.engine.loops.loader_deaths import explain_dead_worker, ignore_sigchld, worker_death_reason
from recipe.engine.termination import TrainingEnded


class UnreadableImages:
    """Counts the images that were replaced because they cannot be read.

    Args:
        limit: Most different images of this kind on one rank.

    Attributes:
        faults (list[str]): Description of each image's fault, in the order of the stream.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.faults: List[str] = []

    def count(self, data_batch: Any, warn: Callable[[str], None]) -> None:
        """Count the replaced samples of a batch that is about to be used.

        Args:
            data_batch: The loader's batch.
            warn: Called with a line for each new image.

        Raises:
            TrainingEnded: More images were replaced than ``limit`` allows.
        """
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        for sample in samples or ():
            fault = sample.get('unreadable')
            if fault is None or fault in self.faults:
                continue
            if len(self.faults) >= self.limit:
                raise TrainingEnded(
                    f'{fault}; {self.limit} other images were replaced before, and no more are allowed', UNREADABLE
                )
            self.faults.append(fault)
            warn(f'{fault}; another image takes its place, {len(self.faults)} of at most {self.limit}')


@contextmanager
def as_one_line_error(where: Callable[[], str]) -> Iterator[None]:
    """End the training with one line if its data cannot be read.

    Args:
        where: Returns the rank and the iteration as text.

    Raises:
        TrainingEnded: A sample cannot be read, or a loader process died.
    """
    try:
        yield
    except UnreadableSampleError as error:
        raise TrainingEnded(f'{where()}: {error}', UNREADABLE) from None
    except Exception as error:
        # torch's SIGCHLD handler can raise at any place, even in code that replaces each exception by another one.
        reason = next(filter(None, map(worker_death_reason, _with_contexts(error))), None)
        if reason is None:
            raise
        ignore_sigchld()
        raise TrainingEnded(f'{where()}: {explain_dead_worker(reason)}', LOADER_DIED) from None


def _with_contexts(error: Optional[BaseException]) -> Iterator[BaseException]:
    """An exception and the chain of its ``__context__``."""
    while error is not None:
        yield error
        error = error.__context__
