"""The figures of a run and their definitions: the content of result.json."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from recipe.report import run as metrics_run

SCHEMA = 1
MOST_CURVE_POINTS = 20_000

DEFINITIONS = {
    'fps_images_per_s': (
        'Images per second over all cards: global_batch x iterations of the window / sum of their step times. '
        'fps_window tells the window, its source and what it excludes.'
    ),
    'fps_logged_mean_images_per_s': (
        "As Ascend's scripts compute it, to compare with figures published by them: global_batch / "
        'step_time_logged_mean_s. Warm-up is included, and pauses for checkpoints and validation as far as the log has '
        'them in its times.'
    ),
    'step_time_logged_mean_s': 'Mean of `time` over all logged training iterations, warm-up included.',
    'early_stop_iter': 'Iteration after which --early_stop ended the training; null: it did not.',
    'accumulate': (
        'Batches of a card that one iteration accumulates: batch_size_per_card / accumulate images are in memory at a '
        'time.'
    ),
    'num_points': 'Points of each mask that the losses compare; null: the model has none.',
    'step_time_mean_s': 'Seconds of one whole training iteration, waiting for the batch included, over fps_window.',
    'step_time_p50_s': 'Median of the step times (from a log without steps.csv: of its logged means).',
    'step_time_p95_s': '95th percentile of the step times (from a log without steps.csv: of its logged means).',
    'data_time_mean_s': 'Seconds of an iteration that rank 0 waited for its batch, mean over fps_window.',
    'data_time_p95_s': '95th percentile of that waiting time.',
    'miou_last_percent': 'Mean IoU of the last validation, in percent, over the classes that occur.',
    'miou_best_percent': 'Highest mean IoU of all validations, in percent; the earliest where several are equal.',
    'macc_last_percent': 'Mean class accuracy of the last validation, in percent.',
    'aacc_last_percent': 'Accuracy over all pixels of the last validation, in percent.',
    'class_iou_last_percent': 'IoU by class of the last validation, in percent; null: the class does not occur.',
    'memory_peak_mb': 'Peak memory that tensors took on the card of rank 0, in units of 2^20 bytes; null on a CPU.',
    'loss_final': 'Total loss at the last logged iteration, the mean over the log window.',
    'loss_curve': 'Pairs of iteration and total loss; of more than 20 000 logged ones, evenly spread ones.',
    'learning_rate_curve': 'Pairs of iteration and base learning rate.',
    'e2e_duration_s': (
        'Seconds of all starts together: as the launcher measured its sessions (sessions.jsonl), otherwise from the '
        'first to the last record of the text log. Pauses between starts do not count.'
    ),
}


@dataclass
class Window:
    """The iterations over which speed was measured.

    Attributes:
        first_iter: First iteration in it.
        last_iter: Last iteration in it.
        iterations: Number of iterations in it, without the excluded ones.
        source: Source of the times.
        warm_up_iters: First and last iteration of each warm-up, which are left out.
        excluded: Everything that was left out, in words.
    """

    first_iter: int
    last_iter: int
    iterations: int
    source: str
    warm_up_iters: List[Tuple[int, int]]
    excluded: List[str]

    def __str__(self) -> str:
        return (
            f'{self.iterations} iterations from {self.first_iter} to {self.last_iter}, {self.source}; '
            f'excluded: {", ".join(self.excluded) or "nothing"}'
        )


@dataclass
class Result:
    """Content of result.json; see ``DEFINITIONS``. None means not measured."""

    schema: int
    run_name: str
    complete: bool
    iters_done: int
    iters_planned: Optional[int]
    starts: int
    resumed_at_iter: List[int]
    early_stop_iter: Optional[int] = None
    miou_last_percent: Optional[float] = None
    miou_last_iter: Optional[int] = None
    miou_best_percent: Optional[float] = None
    miou_best_iter: Optional[int] = None
    macc_last_percent: Optional[float] = None
    aacc_last_percent: Optional[float] = None
    class_iou_last_percent: Dict[str, Optional[float]] = field(default_factory=dict)
    fps_images_per_s: Optional[float] = None
    fps_window: Optional[Window] = None
    fps_logged_mean_images_per_s: Optional[float] = None
    step_time_logged_mean_s: Optional[float] = None
    step_time_mean_s: Optional[float] = None
    step_time_p50_s: Optional[float] = None
    step_time_p95_s: Optional[float] = None
    data_time_mean_s: Optional[float] = None
    data_time_p95_s: Optional[float] = None
    memory_peak_mb: Optional[float] = None
    loss_final: Optional[float] = None
    loss_final_iter: Optional[int] = None
    e2e_duration_s: Optional[float] = None
    world_size: Optional[int] = None
    batch_size_per_card: Optional[int] = None
    accumulate: int = 1
    global_batch: Optional[int] = None
    num_points: Optional[int] = None
    device: Optional[str] = None
    versions: Dict[str, Any] = field(default_factory=dict)
    validations: List[Dict[str, Any]] = field(default_factory=list)
    loss_curve: List[Tuple[int, Optional[float]]] = field(default_factory=list)
    learning_rate_curve: List[Tuple[int, float]] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)
    definition: Dict[str, str] = field(default_factory=lambda: dict(DEFINITIONS))
    run: Optional[metrics_run.Run] = field(default=None, repr=False, compare=False)

    def as_dict(self) -> Dict[str, Any]:
        """Content of result.json: plain JSON types, no NaN, without the parsed run itself."""
        content = dataclasses.asdict(dataclasses.replace(self, run=None))
        del content['run']
        finite: Dict[str, Any] = _finite(content)
        return finite


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
