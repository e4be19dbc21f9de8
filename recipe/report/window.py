"""The window over which speed is measured, and the figures over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Sequence

WARM_UP_MIN_ITERS = 5
WARM_UP_MAX_ITERS = 100


class Sample(NamedTuple):
    """Mean time per iteration.

    Attributes:
        first_iter: First iteration of the mean.
        last_iter: Last iteration of the mean.
        iterations: Number of iterations that it represents; fewer than in the mean if means overlap.
        step_s: Seconds of a whole iteration.
        data_s: Seconds of it spent waiting for the batch; None if the log does not tell.
    """

    first_iter: int
    last_iter: int
    iterations: int
    step_s: float
    data_s: Optional[float]


@dataclass(frozen=True)
class Timing:
    """Speed over a window; times in seconds, percentiles over the samples."""

    iterations: int
    fps_images_per_s: float
    step_time_mean_s: float
    step_time_p50_s: float
    step_time_p95_s: float
    data_time_mean_s: Optional[float]
    data_time_p95_s: Optional[float]


def warm_up_iters(iterations: int) -> int:
    """Iterations at the beginning of a start that count as warm-up: 10 %, at least 5, at most 100."""
    return min(WARM_UP_MAX_ITERS, max(WARM_UP_MIN_ITERS, -(-iterations // 10)))


def after_warm_up(samples: Sequence[Sample], first_iter: int, last_iter: int) -> List[Sample]:
    """Samples of one start that hold no iteration of its warm-up.

    Args:
        samples: Samples of one start, ascending.
        first_iter: First iteration that the start trained.
        last_iter: Last iteration that the start trained.
    """
    warm_until = first_iter - 1 + warm_up_iters(last_iter - first_iter + 1)
    return [sample for sample in samples if sample.first_iter > warm_until]


def timing(samples: Sequence[Sample], global_batch: int) -> Timing:
    """Figures over a window.

    Args:
        samples: At least one, each with a positive step time.
        global_batch: Images of one iteration over all processes.
    """
    import numpy  # here, so that --help needs nothing installed

    iterations = sum(sample.iterations for sample in samples)
    seconds = sum(sample.step_s * sample.iterations for sample in samples)
    steps = [sample.step_s for sample in samples]
    waits = [sample.data_s for sample in samples if sample.data_s is not None]
    known = len(waits) == len(samples)
    waited = sum(wait * sample.iterations for wait, sample in zip(waits, samples)) if known else None
    return Timing(
        iterations=iterations,
        fps_images_per_s=global_batch * iterations / seconds,
        step_time_mean_s=seconds / iterations,
        step_time_p50_s=float(numpy.percentile(steps, 50)),
        step_time_p95_s=float(numpy.percentile(steps, 95)),
        data_time_mean_s=None if waited is None else waited / iterations,
        data_time_p95_s=float(numpy.percentile(waits, 95)) if known else None,
    )
