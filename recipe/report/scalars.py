"""Records of a training, and the parsers of scalars.json and steps.csv (``text_log`` parses the text log).

Reference: ``mmengine/hooks/logger_hook.py`` and ``mmengine/runner/log_processor.py`` (0.10.3 to 0.10.7 write the same);
``mmcv/runner/hooks/logger/text.py`` of mmcv 1.x for the ``.log.json`` of mmsegmentation 0.x.
A killed process may leave a half-written last line, which is dropped with a warning. Damage anywhere else is an error
that names file and line.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from recipe.core import console, json_files
from recipe.report.points import LAST_ITER, PlainRecord, Points, columns_of

STEPS_HEADER = 'iter,data_s,step_s'

_FIGURES = ('iter', 'step', 'time', 'data_time', 'memory', 'lr', 'base_lr', 'mIoU', 'mAcc', 'aAcc')
_LONGEST_LINE = 1 << 20  # characters
_CHUNK = 512  # lines


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
        early_stop_iter: Last iteration of a training that --early_stop ended; None of any other.
        seconds: From the first to the last record, without the gaps in which the clock was set.
        clock_steps: How often the clock was set meanwhile.
    """

    points: Points = field(default_factory=Points)
    validations: List[Validation] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)
    world_size: Optional[int] = None
    device: Optional[str] = None
    versions: Dict[str, str] = field(default_factory=dict)
    config_text: str = ''
    planned_iters: Optional[int] = None
    by_epoch: bool = False
    resumed_iter: Optional[int] = None
    early_stop_iter: Optional[int] = None
    seconds: Optional[float] = None
    clock_steps: int = 0


def read_scalars(path: Path) -> Log:
    """Parse scalars.json (or ``<timestamp>.json``): one JSON object on each line, training and validation mixed.

    Also parses the ``.log.json`` of mmsegmentation 0.x, which has fractions in place of percent.

    Raises:
        UserError: A line other than the last is no JSON object, an iteration goes back, a figure is no number.
    """
    log = Log()
    plain: Optional[PlainRecord] = None
    plain_names: List[str] = []
    for first, lines, whole in chunks_of(path):
        at = 0
        while at < len(lines):
            taken = len(plain.take(lines, at, len(lines))) if plain else 0
            at += taken
            if taken:
                continue
            row = _row(lines[at], f'{path}:{first + at}', whole or at + 1 < len(lines), log.warnings)
            if row is not None and _add_row(log, row, f'{path}:{first + at}') and list(row) != plain_names:
                plain, plain_names = PlainRecord.of_json(row, log.points), list(row)
            at += 1
    return log


def _row(line: str, where: str, whole: bool, warnings: List[str]) -> Optional[Dict[str, Any]]:
    try:
        return json_files.parse(line, dict, finite=False)
    except json_files.JsonError as error:
        if whole:
            raise console.UserError(
                f'{where}: no JSON object ({error})', 'restore the file, or delete this line'
            ) from None
    warnings.append(f'{where}: half-written last line dropped')
    return None


def read_steps(path: Path) -> Tuple[List[Step], List[str]]:
    """Parse steps.csv.

    Returns:
        The steps, ascending by iteration, and warnings.

    Raises:
        UserError: Wrong header, a damaged line, a time that is no positive number, an iteration that goes back.
    """
    steps: List[Step] = []
    warnings = []
    for number, line, whole in lines_of(path):
        where = f'{path}:{number}'
        if not whole:  # a number that lost its last digits is still a number
            warnings.append(f'{where}: half-written last line dropped')
        elif number > 1:
            steps.append(_step(line, steps[-1].iter if steps else 0, where))
        elif line != STEPS_HEADER:
            raise console.UserError(f'{where}: expected the header {STEPS_HEADER!r}, got {line[:60]!r}')
    return steps, warnings


def _step(line: str, last_iter: int, where: str) -> Step:
    try:
        iteration, data_s, step_s = line.split(',')
        step = Step(int(iteration), float(data_s), float(step_s))
    except ValueError:
        raise console.UserError(
            f'{where}: no {STEPS_HEADER!r} line: {line[:60]!r}: restore the file, or delete the line'
        ) from None
    if not (math.isfinite(step.step_s) and step.step_s > 0 and math.isfinite(step.data_s) and step.data_s >= 0):
        raise console.UserError(f'{where}: a time must be a positive number of seconds, got {line!r}')
    if not last_iter < step.iter <= LAST_ITER:
        raise goes_back(where, last_iter, step.iter)
    return step


def chunks_of(path: Path) -> Iterator[Tuple[int, List[str], bool]]:
    """Some lines at a time: the number of the first, their texts without line ends, whether the last has a line end.

    The file is UTF-8 or UTF-16 with a byte order mark; bytes that cannot be decoded are replaced.

    Raises:
        UserError: A line is longer than a log's lines are.
    """
    with path.open('rb') as file:
        encoding = 'utf-16' if file.read(2) in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig'
    first = 1
    with path.open(encoding=encoding, errors='replace', newline='\n') as text:
        read = iter(lambda: text.readline(_LONGEST_LINE), '')
        while True:
            lines = list(itertools.islice(read, _CHUNK))
            if not lines:
                return
            if max(map(len, lines)) >= _LONGEST_LINE:
                raise console.UserError(
                    f'{path}:{first}: a line of over {_LONGEST_LINE} characters', 'is this a log? Give another file'
                )
            yield first, [line.strip('\ufeff').rstrip('\r\n') for line in lines], lines[-1].endswith('\n')
            first += len(lines)


def lines_of(path: Path) -> Iterator[Tuple[int, str, bool]]:
    """Number of each line, its text without its end, and whether it has one; as ``chunks_of``."""
    for first, lines, whole in chunks_of(path):
        for number, line in enumerate(lines, first):
            yield number, line, whole or number < first + len(lines) - 1


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
    last = log.points.last_iter
    if not last < iteration <= LAST_ITER:
        raise goes_back(where, last, iteration)
    terms = {key: float(value) for key, value in values.items() if 'loss' in key and key != 'loss'}
    log.points.add(iteration, columns_of(values), terms)


def validation(
    values: Dict[str, Any],
    at: Optional[int],
    log: Log,
    saved_iter: int,
    classes: Dict[str, Optional[float]],
    scale: float = 1,
) -> Validation:
    """Make a validation from its logged values by name.

    Args:
        values: By name.
        at: Its iteration if the record has it.
        log: What came before.
        saved_iter: Iteration of the last checkpoint saved before it.
        classes: IoU by class.
        scale: 100 if the values are fractions, not percent.
    """

    def percent(name: str) -> float:
        # IoUMetric rounds to 2 digits in float32; rounding to 4 removes the float32 error.
        return round(scale * float(values[name]), 4)

    return Validation(
        iter=at,
        after_iter=log.points.last_iter,
        saved_iter=saved_iter,
        miou_percent=percent('mIoU'),
        macc_percent=percent('mAcc') if 'mAcc' in values else None,
        aacc_percent=percent('aAcc') if 'aAcc' in values else None,
        class_iou_percent=classes,
    )


def _add_row(log: Log, row: Dict[str, Any], where: str) -> bool:
    """Add a record; returns whether it is one of the training."""
    # log_with_hierarchy puts train/ or val/ before each key; a metric's prefix puts its own name there.
    values = {key.rsplit('/', 1)[-1]: value for key, value in row.items()}
    for key, value in values.items():
        if (key in _FIGURES or 'loss' in key) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise console.UserError(f'{where}: {key} is no number: {value!r}')
        if key in ('iter', 'step') and value != value // 1:
            raise console.UserError(f'{where}: {key} is no whole number: {value!r}')
    if 'iter' in values and 'loss' in values:
        log.by_epoch = 'epoch' in values and 'mode' not in values
        add_point(log, int(values['iter']), values, where)
        return True
    if values.get('mode') == 'val' and 'mIoU' in values:
        _add_old_validation(log, values, where)
    elif 'mIoU' in values:
        # With log_metric_by_epoch, LoggerHook's default, the step is the epoch: 0 in an iteration-based loop.
        step = 0 if log.by_epoch else int(values.get('step', 0))
        log.validations.append(validation(values, step or None, log, 0, {}))
    return False


def _add_old_validation(log: Log, values: Dict[str, Any], where: str) -> None:
    """Add a validation from mmsegmentation 0.x: fractions, and ``iter`` counts the pictures."""
    classes: Dict[str, Optional[float]] = {}
    for key, value in values.items():
        if key.startswith('IoU.') and isinstance(value, (int, float)):
            classes[key[len('IoU.') :]] = None if math.isnan(value) else round(100 * value, 4)
    if values['mIoU'] > 1:
        raise console.UserError(
            f'{where}: mIoU is {values["mIoU"]}, but a log of mmsegmentation 0.x has fractions',
            'give the log as that wrote it',
        )
    log.validations.append(validation(values, None, log, 0, classes, scale=100))
