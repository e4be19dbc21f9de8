"""Parses mmengine's text log, from its file or from the console's output.

Reference: ``mmengine/runner/log_processor.py`` and ``mmengine/logging/logger.py``; ``IoUMetric`` of mmseg writes the
table of classes.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from recipe.core import console
from recipe.report.scalars import Log, add_point, damaged, ends_whole, lines_of, validation

_ANSI = re.compile(r'\x1b\[[0-9;]*m')
_TORCHRUN_PREFIX = re.compile(r'^\[[a-z]+\d+\]:')
# The file handler writes the year, the console handler does not.
_RECORD = re.compile(r'^(?P<clock>(?:\d{4}/)?\d\d/\d\d \d\d:\d\d:\d\d) - \S+ - (?P<level>[A-Z]+) - (?P<message>.*)$')
_PROGRESS = re.compile(r'^(?:Iter|Epoch)\((?P<mode>train|val)\)(?P<rest>.*)$')
_POSITION = re.compile(r'^\s*(?:\[\s*(?P<epoch>\d+)\])?\s*\[\s*(?P<done>\d+)/\s*(?P<total>\d+)\](?P<pairs>.*)$')
_PAIR = re.compile(r'(?:^|\s)([A-Za-z_][\w./-]*): (\S+)')
_RESUMED = re.compile(r'^resumed epoch: \d+, iter: (?P<iter>\d+)')
_SAVED = re.compile(r'^Saving checkpoint at (?P<iter>\d+) iterations')
_YEAR_2000_S = 366 * 86400
_LONG_S = 6 * 3600  # shorter gaps between two records never count as a clock that was set
_HEADER_VERSIONS = {
    'Python': 'python',
    'PyTorch': 'torch',
    'TorchVision': 'torchvision',
    'OpenCV': 'opencv',
    'MMEngine': 'mmengine',
    'NVCC': 'nvcc',
}


def read_text(path: Path) -> Log:
    """Parse a text log from mmengine's file handler or from the console (colours, no year).

    Raises:
        UserError: A record of training or validation is damaged, or an iteration goes back.
    """
    log = Log()
    saved_iter = 0
    epoch_iters = 0
    classes: Dict[str, Optional[float]] = {}
    clocks: List[str] = []
    for record in _records(path):
        where = f'{path}:{record.number}'
        clocks.append(record.clock)
        progress = _PROGRESS.match(record.message)
        if progress:
            position = _POSITION.match(progress['rest'])
            if record.cut:
                log.warnings.append(f'{where}: half-written last line dropped')
            elif position is None:
                raise damaged(where)
            elif progress['mode'] == 'train':
                epoch, done, total = position['epoch'], int(position['done']), int(position['total'])
                epoch_iters = total if epoch else 0
                log.by_epoch = bool(epoch)
                if not epoch:
                    log.planned_iters = total
                add_point(log, done + (int(epoch) - 1) * total if epoch else done, _pairs(position, where), where)
            else:
                values = _pairs(position, where)
                if 'mIoU' in values:  # other validation records only show its progress
                    at = int(position['epoch']) * epoch_iters if position['epoch'] and epoch_iters else None
                    log.validations.append(validation(values, at, log, saved_iter, classes))
                    classes = {}
        elif record.message.startswith('Config:'):
            log.config_text = '\n'.join(record.rest)
        elif any(line.strip() == 'System environment:' for line in record.rest):
            log.resumed_iter = 0  # until a record says otherwise
            _read_header(log, record.rest)
        elif record.rest and record.rest[0].startswith('+--'):
            classes = _class_table(record.rest, where) or classes
        else:
            resumed, saved = _RESUMED.match(record.message), _SAVED.match(record.message)
            if resumed:
                log.resumed_iter = int(resumed['iter'])
            elif saved:
                saved_iter = int(saved['iter'])
    if clocks:
        log.seconds, log.clock_steps = _span(clocks)
    return log


class _Record(NamedTuple):
    number: int
    clock: str
    message: str
    rest: List[str]  # the lines after it, up to the next record
    cut: bool  # its line is the last of the file and has no line end


def _records(path: Path) -> Iterator[_Record]:
    lines = lines_of(path)
    whole = ends_whole(path)
    record: Optional[_Record] = None
    for number, line in enumerate(lines, 1):
        line = _TORCHRUN_PREFIX.sub('', _ANSI.sub('', line)).rstrip('\r')
        start = _RECORD.match(line)
        if start:
            if record:
                yield record
            record = _Record(number, start['clock'], start['message'], [], not whole and number == len(lines))
        elif record and (whole or number < len(lines)):
            record.rest.append(line)
    if record:
        yield record


def _span(clocks: List[str]) -> Tuple[float, int]:
    """Seconds from the first to the last record, and how often the clock was set meanwhile.

    The clock was set if a record is older than the one before it, or newer by far more than usual. The time between
    these
    two records is unknown and is not counted.
    """
    times = list(map(_clock, clocks))
    gaps = [(after - before).total_seconds() for before, after in zip(times, times[1:])]
    if clocks[0][4] != '/':  # a console log has no year and may run over New Year's Eve
        gaps = [gap + _YEAR_2000_S if gap < -_YEAR_2000_S / 2 else gap for gap in gaps]
    usual = sorted(gaps)[int(0.9 * len(gaps))] if gaps else 0.0
    whole = [gap for gap in gaps if 0 <= gap <= max(_LONG_S, 10 * usual)]
    return sum(whole), len(gaps) - len(whole)


def _clock(text: str) -> datetime:
    # 2000 is a leap year, so a console log of 29 February can be parsed too.
    return datetime.strptime(text if text[4] == '/' else f'2000/{text}', '%Y/%m/%d %H:%M:%S')


def _pairs(position: re.Match[str], where: str) -> Dict[str, Any]:
    values: Dict[str, Any] = {}
    for key, text in _PAIR.findall(position['pairs']):
        try:
            values[key] = float(text)
        except ValueError:
            if key != 'eta':  # a duration
                raise damaged(where) from None
    return values


def _class_table(lines: List[str], where: str) -> Dict[str, Optional[float]]:
    """IoU by class from IoUMetric's table; empty for any other table."""
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]
    if not rows or 'Class' not in rows[0] or 'IoU' not in rows[0]:
        return {}
    name, iou = rows[0].index('Class'), rows[0].index('IoU')
    table: Dict[str, Optional[float]] = {}
    for row in rows[1:]:
        try:
            value = float(row[iou])
        except (IndexError, ValueError):
            raise console.UserError(f'{where}: damaged table of classes below this line: {row}') from None
        table[row[name]] = None if math.isnan(value) else value
    return table


def _read_header(log: Log, lines: List[str]) -> None:
    for line in lines:
        key, _, value = line.strip().partition(': ')
        if key == 'GPU number' and value.isdigit():
            log.world_size = int(value)
        elif re.match(r'GPU [\d,]+$', key):
            log.device = value
        elif key == 'dist_cfg' and 'hccl' in value:
            log.device = 'npu'
        elif key in _HEADER_VERSIONS and value:
            log.versions[_HEADER_VERSIONS[key]] = value.split(' (')[0].strip()
