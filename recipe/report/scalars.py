"""Records of a training, and the parsers of scalars.json and steps.csv (``text_log`` parses the text log).

Reference: ``mmengine/hooks/logger_hook.py`` and ``mmengine/runner/log_processor.py`` (0.10.3 to 0.10.7 write the same).
A killed process may leave a half-written last line, which is dropped with a warning. Damage anywhere else is an error
that names file and line.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from recipe.core import console

STEPS_HEADER = 'iter,data_s,step_s'

_FIGURES = ('iter', 'step', 'time', 'data_time', 'memory', 'lr', 'base_lr', 'mIoU', 'mAcc', 'aAcc')


@dataclass
class TrainPoint:
    """One logged training iteration; numbers are means over the log processor's window.

    Attributes:
        iter: Iteration, counted from 1.
        loss: Total loss.
        terms: The other losses by their logged name.
        learning_rate: Base learning rate if parameter groups differ, otherwise that of the first group.
        step_s: Seconds per iteration.
        data_s: Seconds of it spent waiting for the batch.
        memory_mb: Peak device memory of rank 0 since the last logged iteration, in MiB, which mmengine calls MB.
    """

    iter: int
    loss: float
    terms: Dict[str, float]
    learning_rate: Optional[float]
    step_s: Optional[float]
    data_s: Optional[float]
    memory_mb: Optional[float]


@dataclass
class Validation:
    """One validation; values in percent, as IoUMetric logs them.

    Attributes:
        iter: Iteration after which it ran; None until it is known (see ``run``).
        after_iter: Last training iteration logged before it.
        saved_iter: Iteration of the last checkpoint saved before it.
        miou_percent: Mean IoU over the classes.
        macc_percent: Mean class accuracy.
        aacc_percent: Accuracy over all pixels.
        class_iou_percent: IoU by class; None for a class that neither the labels nor the predictions hold.
    """

    iter: Optional[int]
    after_iter: int
    saved_iter: int
    miou_percent: float
    macc_percent: Optional[float] = None
    aacc_percent: Optional[float] = None
    class_iou_percent: Dict[str, Optional[float]] = field(default_factory=dict)

    @property
    def placed_iter(self) -> int:
        """``iter`` of a validation in a run that has been read."""
        assert self.iter is not None, 'read_run finds the iteration of each validation'
        return self.iter


class Step(NamedTuple):
    """One line of steps.csv, in seconds. ``step_s`` is the whole iteration, ``data_s`` included."""

    iter: int
    data_s: float
    step_s: float


@dataclass
class Log:
    """Content of one log file.

    Attributes:
        points: Logged training iterations, ascending.
        validations: In the order in which they ran.
        warnings: One line each.
        world_size: Processes, from the header of a text log.
        device: Device in that header, None if it is not named.
        versions: Package versions in that header.
        config_text: The copy of the config in a text log.
        planned_iters: Iterations that the training was to run.
        by_epoch: Whether the training counts in epochs.
        resumed_iter: Last iteration of the checkpoint that it resumed; 0 for a fresh start, None if unknown.
        seconds: From the first to the last record, without the gaps in which the clock was set.
        clock_steps: How often the clock was set meanwhile.
    """

    points: List[TrainPoint] = field(default_factory=list)
    validations: List[Validation] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)
    world_size: Optional[int] = None
    device: Optional[str] = None
    versions: Dict[str, str] = field(default_factory=dict)
    config_text: str = ''
    planned_iters: Optional[int] = None
    by_epoch: bool = False
    resumed_iter: Optional[int] = None
    seconds: Optional[float] = None
    clock_steps: int = 0


def read_scalars(path: Path) -> Log:
    """Parse scalars.json (or ``<timestamp>.json``): one JSON object on each line, training and validation mixed.

    Raises:
        UserError: A line other than the last is no JSON object, an iteration goes back, a figure is no number.
    """
    log = Log()
    lines = lines_of(path)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError('not an object')
        except ValueError:
            if number == len(lines) and not ends_whole(path):
                log.warnings.append(f'{path}:{number}: half-written last line dropped')
                break
            raise console.UserError(f'{path}:{number}: no JSON object: restore the file, or delete this line') from None
        _add_row(log, row, f'{path}:{number}')
    return log


def read_steps(path: Path) -> Tuple[List[Step], List[str]]:
    """Parse steps.csv.

    Returns:
        The steps, ascending by iteration, and warnings.

    Raises:
        UserError: Wrong header, a damaged line, a time that is no positive number, an iteration that goes back.
    """
    lines = lines_of(path)
    # A number that lost its last digits is still a number: only the line end proves that a line is complete.
    cut = bool(lines) and not ends_whole(path)
    warnings = [f'{path}:{len(lines)}: half-written last line dropped'] if cut else []
    whole = lines[:-1] if cut else lines
    if whole and whole[0] != STEPS_HEADER:
        raise console.UserError(f'{path}:1: expected the header {STEPS_HEADER!r}, got {whole[0][:60]!r}')
    steps: List[Step] = []
    for number, line in enumerate(whole[1:], 2):
        try:
            iteration, data_s, step_s = line.split(',')
            step = Step(int(iteration), float(data_s), float(step_s))
        except ValueError:
            raise console.UserError(
                f'{path}:{number}: no {STEPS_HEADER!r} line: {line[:60]!r}: restore the file, or delete the line'
            ) from None
        if not (math.isfinite(step.step_s) and step.step_s > 0 and math.isfinite(step.data_s) and step.data_s >= 0):
            raise console.UserError(f'{path}:{number}: a time must be a positive number of seconds, got {line!r}')
        if steps and step.iter <= steps[-1].iter:
            raise goes_back(f'{path}:{number}', steps[-1].iter, step.iter)
        steps.append(step)
    return steps, warnings


def lines_of(path: Path) -> List[str]:
    """Lines without their ends; bytes that are no UTF-8 are replaced."""
    text = path.read_text(encoding='utf-8', errors='replace')
    lines = text.split('\n')
    return lines[:-1] if lines and not lines[-1] else lines


def ends_whole(path: Path) -> bool:
    """Whether the last line of a file has its line end."""
    return path.read_bytes().endswith(b'\n')


def damaged(where: str) -> console.UserError:
    """Error for a record at ``file:line``."""
    return console.UserError(f'{where}: damaged training or validation record: restore the file, or delete this line')


def goes_back(where: str, last: int, now: int) -> console.UserError:
    """Error for an iteration at ``file:line`` that does not follow the last one."""
    return console.UserError(
        f'{where}: iteration goes back from {last} to {now}: one log holds one start, so split this file there '
        '(or give the run folder, where each start has its own)'
    )


def add_point(log: Log, iteration: int, values: Dict[str, Any], where: str) -> None:
    """Append a training iteration, given its logged values by name and its ``file:line``."""
    if 'loss' not in values:
        raise damaged(where)
    if log.points and iteration <= log.points[-1].iter:
        raise goes_back(where, log.points[-1].iter, iteration)
    log.points.append(
        TrainPoint(
            iter=iteration,
            loss=float(values['loss']),
            terms={key: float(value) for key, value in values.items() if 'loss' in key and key != 'loss'},
            learning_rate=values.get('base_lr', values.get('lr')),
            step_s=values.get('time'),
            data_s=values.get('data_time'),
            memory_mb=values.get('memory'),
        )
    )


def validation(
    values: Dict[str, Any], at: Optional[int], log: Log, saved_iter: int, classes: Dict[str, Optional[float]]
) -> Validation:
    """Make a validation from its logged values by name; ``at`` is its iteration if the record has it."""
    return Validation(
        iter=at,
        after_iter=log.points[-1].iter if log.points else 0,
        saved_iter=saved_iter,
        # IoUMetric rounds to 2 digits in float32; rounding to 4 removes the float32 error.
        miou_percent=round(float(values['mIoU']), 4),
        macc_percent=round(float(values['mAcc']), 4) if 'mAcc' in values else None,
        aacc_percent=round(float(values['aAcc']), 4) if 'aAcc' in values else None,
        class_iou_percent=classes,
    )


def _add_row(log: Log, row: Dict[str, Any], where: str) -> None:
    # log_with_hierarchy puts train/ or val/ before each key; a metric's prefix puts its own name there.
    values = {key.rsplit('/', 1)[-1]: value for key, value in row.items()}
    for key, value in values.items():
        if not isinstance(value, (int, float)) and (key in _FIGURES or 'loss' in key):
            raise console.UserError(f'{where}: {key} is no number: {value!r}')
    if 'iter' in values and 'loss' in values:
        log.by_epoch = 'epoch' in values
        add_point(log, int(values['iter']), values, where)
    elif 'mIoU' in values:
        # With log_metric_by_epoch, LoggerHook's default, the step is the epoch: 0 in an iteration-based loop.
        step = 0 if log.by_epoch else int(values.get('step', 0))
        log.validations.append(validation(values, step or None, log, 0, {}))
