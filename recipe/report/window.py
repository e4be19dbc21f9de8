"""The window over which speed is measured, and the figures over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Sequence, Tuple

WARM_UP_MIN_ITERS = 5
WARM_UP_MAX_ITERS = 100


# Fields of a sample, which is a mean time per iteration. A log may hold millions of them.
_FIELDS = [
    ('first_iter', 'i4'),  # first iteration of the mean
    ('last_iter', 'i4'),  # last iteration of the mean
    ('iterations', 'i4'),  # how many iterations it represents; fewer than in the mean if means overlap
    ('step_s', 'f8'),  # seconds of a whole iteration
    ('data_s', 'f8'),  # seconds of it spent waiting for the batch; NaN if the log does not tell
]


def samples(rows: Sequence[Tuple[int, int, int, float, float]]) -> Any:
    """Samples as a structured array, from their fields in order."""
    import numpy  # here, so that --help needs nothing installed

    return numpy.array(rows, dtype=_FIELDS)


def empty(count: int) -> Any:
    """Samples to be filled in."""
    import numpy

    return numpy.empty(count, dtype=_FIELDS)


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


def after_warm_up(of_start: Any, first_iter: int, last_iter: int) -> Any:
    """Samples of one start that hold no iteration of its warm-up.

    Args:
        of_start: Samples of one start, ascending.
        first_iter: First iteration that the start trained.
        last_iter: Last iteration that the start trained.
    """
    warm_until = first_iter - 1 + warm_up_iters(last_iter - first_iter + 1)
    return of_start[of_start['first_iter'].searchsorted(warm_until, side='right') :]


def timing(measured: Any, global_batch: int) -> Timing:
    """Figures over a window.

    Args:
        measured: At least one sample, each with a positive step time.
        global_batch: Images of one iteration over all processes.
    """
    import numpy

    iterations = int(measured['iterations'].sum(dtype='i8'))
    seconds = float((measured['step_s'] * measured['iterations']).sum())
    waits = measured['data_s']
    known = not numpy.isnan(waits).any()
    return Timing(
        iterations=iterations,
        fps_images_per_s=global_batch * iterations / seconds,
        step_time_mean_s=seconds / iterations,
        step_time_p50_s=float(numpy.percentile(measured['step_s'], 50)),
        step_time_p95_s=float(numpy.percentile(measured['step_s'], 95)),
        data_time_mean_s=float((waits * measured['iterations']).sum()) / iterations if known else None,
        data_time_p95_s=float(numpy.percentile(waits, 95)) if known else None,
    )
