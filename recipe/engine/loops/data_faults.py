"""What the training does where its data cannot be had."""

from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional

from recipe.data.unreadable import UnreadableSampleError
from recipe.engine.exit_status import LOADER_DIED, UNREADABLE, TrainingEnded
from recipe.engine.loops.loader_deaths import explain_dead_worker, heed_no_more, last_words


class UnreadableImages:
    """Counts the images that were replaced since they cannot be read.

    Args:
        limit (int): How many different ones a rank may come across.

    Attributes:
        faults (list[str]): One for each image, in the order of the stream.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.faults: List[str] = []

    def look(self, data_batch: Any, warn: Callable[[str], None]) -> None:
        """Look for replaced samples in a batch that is about to be used.

        Args:
            data_batch (Any): From the loader.
            warn (Callable): Called with a line for each new image.

        Raises:
            TrainingEnded: There are more than allowed.
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
def told_in_one_line(where: Callable[[], str]) -> Iterator[None]:
    """Turn what a data loader raises into an end with one line.

    Args:
        where (Callable): Names rank and iteration.

    Raises:
        TrainingEnded: A sample cannot be read, or a loader process is gone.
    """
    try:
        yield
    except UnreadableSampleError as e:
        raise TrainingEnded(f'{where()}: {e}', UNREADABLE) from None
    except Exception as e:
        # torch's handler of SIGCHLD raises anywhere, also where somebody
        # turns whatever comes into another exception
        said = next(filter(None, map(last_words, _with_contexts(e))), None)
        if said is None:
            raise
        heed_no_more()
        raise TrainingEnded(f'{where()}: {explain_dead_worker(said)}', LOADER_DIED) from None


def _with_contexts(error: Optional[BaseException]) -> Iterator[BaseException]:
    """An exception and those during whose handling it came up."""
    while error is not None:
        yield error
        error = error.__context__
