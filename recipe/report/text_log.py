"""Parses mmengine's text log, from its file or from the console's output.

Reference: ``mmengine/runner/log_processor.py`` and ``mmengine/logging/logger.py``; ``IoUMetric`` of mmseg writes the
table of classes. A log may have been through other hands: white space at the ends of lines stripped, other line ends,
colours, another form of the time, what a launcher or a container's log puts before each line.
"""

from __future__ import annotations

import math
import re
from array import array
from datetime import date
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from recipe.core import console
from recipe.report.points import PlainRecord
from recipe.report.scalars import Log, add_point, chunks_of, damaged, validation

# Colours and other sequences for terminals: CSI, OSC, two characters.
_ANSI = re.compile(r'\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])')
# What torchrun, mpirun, srun --label, docker and kubectl put before each line.
_PREFIX = (
    r'(?:\[[a-z]+\d+\]: ?|\[\d+,\d+\]<\w+>: ?|\d+: |\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-][\d:]+) (?:std(?:out|err) [FP] )?)'
)
# The file handler writes the year, the console handler does not.
_CLOCK = r'(?P<clock>(?:\d{4}[/-])?\d\d[/-]\d\d[ T]\d\d:\d\d:\d\d)(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?'
_HEAD = rf'(?P<prefix>{_PREFIX})?{_CLOCK} - [^\s-]\S* - [A-Z]+ -'
_RECORD = re.compile(rf'{_HEAD}(?: (?P<message>.*))?$')
_PROGRESS = re.compile(r'^(?:Iter|Epoch)\((?P<mode>train|val)\)(?P<rest>.*)$')
_PROGRESS_ANYWHERE = re.compile(r'(?:Iter|Epoch)\((?:train|val)\) +\[')
_OLD_PROGRESS = re.compile(r'^(?:Iter|Epoch) ?(?:\(val\) )?\[')  # of mmcv 1.x
_POSITION = re.compile(
    r'^\s*(?:\[\s*(?P<epoch>\d{1,9})\])?\s*\[\s*(?P<done>\d{1,9})/\s*(?P<total>\d{1,9})\](?P<pairs>.*)$'
)
_PAIR = re.compile(r'(?:^|\s)([A-Za-z_][\w./-]*): (\S+)')
_RESUMED = re.compile(r'^resumed epoch: \d+, iter: (?P<iter>\d{1,9})')
_EARLY_STOP = re.compile(r'^Early stop at iteration (?P<iter>\d{1,9})')  # of ResumableEarlyStoppingHook
_SAVED = re.compile(r'^Saving checkpoint at (?P<iter>\d{1,9}) iterations')
_MOST_LINES = 50_000  # of a config, a header or a table
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
        UserError: A record of training or validation is damaged or not in the form of mmengine, or an iteration goes
            back.
    """
    return _Reader(path).read()


class _Reader:
    """Reads a text log line by line. A record is its line and those up to the next record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = Log()
        self.clocks = _Clocks()
        self.classes: Dict[str, Optional[float]] = {}
        self.saved_iter = 0
        self.epoch_iters = 0
        self.plain: Optional[PlainRecord] = None
        self.plain_names: List[str] = []
        self.message, self.prefix, self.where = '', '', f'{path}:1'  # of the record that is being read
        self.rest: Optional[List[str]] = None  # its other lines, if they matter

    def read(self) -> Log:
        """Read the whole file."""
        for first, lines, whole in chunks_of(self.path):
            lines = [_ANSI.sub('', line) if '\x1b' in line else line for line in lines]
            at = 0
            while at < len(lines):
                plain = self.plain if 'Iter(train)' in lines[at] else None
                clocks = plain.take(lines, at, len(lines) - (not whole)) if plain else ()
                if clocks:
                    self._end_record()
                    self.clocks.add(clocks)
                    at += len(clocks)
                else:
                    self._read_line(lines[at], whole or at + 1 < len(lines), f'{self.path}:{first + at}')
                    at += 1
        self._end_record()
        self.log.seconds, self.log.clock_steps = self.clocks.span()
        return self.log

    def _read_line(self, line: str, whole: bool, where: str) -> None:
        match = _RECORD.match(line)
        if match is None:
            self._other_line(line, whole, where)
        else:
            self._end_record()
            self._begin_record(match, whole, where)
            self.clocks.add([match['clock']])

    def _begin_record(self, match: re.Match[str], whole: bool, where: str) -> None:
        message = match['message'] or ''
        progress = _PROGRESS.match(message)
        if progress:
            if whole:
                self._progress(match, progress, where)
            else:
                self.log.warnings.append(f'{where}: half-written last line dropped')
            return
        if _OLD_PROGRESS.match(message):
            raise console.UserError(
                f'{where}: this is a text log of mmsegmentation 0.x', 'give its .log.json, which is beside it'
            )
        resumed, saved, stopped = (kind.match(message) for kind in (_RESUMED, _SAVED, _EARLY_STOP))
        if resumed:
            self.log.resumed_iter = int(resumed['iter'])
        elif saved:
            self.saved_iter = int(saved['iter'])
        elif stopped:
            self.log.early_stop_iter = int(stopped['iter'])
        elif not message.strip() or message.startswith('Config:'):
            self.message, self.where, self.rest = message, where, []
            self.prefix = match['prefix'] or ''

    def _other_line(self, line: str, whole: bool, where: str) -> None:
        """A line that begins no record."""
        if whole:
            if ') ' in line and _PROGRESS_ANYWHERE.search(line):
                raise console.UserError(
                    f'{where}: the record does not begin as mmengine writes it: {line[:60]!r}',
                    'give the log as that wrote it, or scalars.json',
                )
            if self.rest is not None and len(self.rest) < _MOST_LINES:
                self.rest.append(self._without_prefix(line))
        elif line.strip():
            self.log.warnings.append(f'{where}: half-written last line dropped')

    def _without_prefix(self, line: str) -> str:
        """A line without what stands before each line of the record."""
        if self.prefix and line.startswith(self.prefix):
            return line[len(self.prefix) :]
        return re.sub(f'^{_PREFIX}', '', line) if self.prefix else line

    def _end_record(self) -> None:
        """Use a record of several lines."""
        rest, self.rest = self.rest, None
        if rest is None:
            return
        if self.message:
            self.log.config_text = '\n'.join(rest)
        elif any(line.strip() == 'System environment:' for line in rest):
            self.log.resumed_iter = 0  # until a record says otherwise
            _read_header(self.log, rest)
        elif any(line.lstrip().startswith('+--') for line in rest[:2]):
            self.classes = _class_table(rest, self.where) or self.classes

    def _progress(self, match: re.Match[str], progress: re.Match[str], where: str) -> None:
        """Use a record of training or validation."""
        position = _POSITION.match(progress['rest'])
        if position is None:
            raise damaged(where)
        if progress['mode'] == 'val' and 'mIoU' not in position['pairs']:
            return  # only shows how far the validation is
        log, values = self.log, _pairs(position, where)
        if progress['mode'] == 'train':
            epoch, done, total = position['epoch'], int(position['done']), int(position['total'])
            self.epoch_iters = total if epoch else 0
            log.by_epoch = bool(epoch)
            if not epoch:
                log.planned_iters = total
                names = [name for name, _ in _PAIR.findall(position['pairs'])]
                if names != self.plain_names:
                    head = rf'{_HEAD} Iter\(train\) +\[ *(?P<iter>\d{{1,9}})/ *{total}\]'
                    self.plain, self.plain_names = PlainRecord.of_text(head, names, log.points), names
            add_point(log, done + (int(epoch) - 1) * total if epoch else done, values, where)
        elif 'mIoU' in values:
            at = int(position['epoch']) * self.epoch_iters if position['epoch'] and self.epoch_iters else None
            log.validations.append(validation(values, at, log, self.saved_iter, self.classes))
            if not self.classes:
                log.warnings.append(f'{where}: no table of the classes stands before this validation')
            self.classes = {}


class _Clocks:
    """The times of all records."""

    def __init__(self) -> None:
        self._seconds = array('d')
        self._minute = ''  # the last text but its seconds, and its time
        self._minute_s = 0.0
        self._has_year = False

    def add(self, texts: Sequence[str]) -> None:
        """Add the times of some records.

        Args:
            texts: ``[YYYY/]MM/DD hh:mm:ss`` each.
        """
        for text in texts:
            if text[:-3] != self._minute:
                self._minute = text[:-3]
                *day, hours, minutes = map(int, re.findall(r'\d+', self._minute))
                self._has_year = len(day) == 3
                # 2000 is a leap year, so a console log of 29 February can be read too.
                days = _days(*(day if self._has_year else (2000, *day)))
                self._minute_s = days * 86400.0 + hours * 3600 + minutes * 60
            self._seconds.append(self._minute_s + int(text[-2:]))

    def span(self) -> Tuple[Optional[float], int]:
        """Seconds from the first to the last record, and how often the clock was set meanwhile.

        The clock was set if a record is older than the one before it, or newer by far more than usual. The time between
        these two records is unknown and is not counted. None if there are no records.
        """
        import numpy

        if not self._seconds:
            return None, 0
        gaps = numpy.diff(numpy.array(self._seconds))
        if not self._has_year:  # a console log has no year and may run over New Year's Eve
            gaps[gaps < -_YEAR_2000_S / 2] += _YEAR_2000_S
        usual = float(numpy.sort(gaps)[int(0.9 * len(gaps))]) if len(gaps) else 0.0
        counted = gaps[(gaps >= 0) & (gaps <= max(_LONG_S, 10 * usual))]
        return float(counted.sum()), len(gaps) - len(counted)


def _days(year: int, month: int, day: int) -> int:
    try:
        return date(year, month, day).toordinal()
    except ValueError:  # no date, such as 13/45
        return 0


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
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in map(str.strip, lines) if line.startswith('|')
    ]
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
        if key == 'GPU number' and re.fullmatch('[0-9]{1,6}', value):
            log.world_size = int(value)
        elif re.match(r'GPU [\d,]+$', key):
            log.device = value
        elif key == 'dist_cfg' and 'hccl' in value:
            log.device = 'npu'
        elif key in _HEADER_VERSIONS and value:
            log.versions[_HEADER_VERSIONS[key]] = value.split(' (')[0].strip()
