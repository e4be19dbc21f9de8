"""The logged iterations of a training, in columns: a log may hold millions of them."""

from __future__ import annotations

import bisect
import itertools
import math
import operator
import re
from array import array
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence

COLUMNS = ('loss', 'learning_rate', 'step_s', 'data_s', 'memory_mb')
LAST_ITER = (1 << 31) - 1
MOST_TERMS = 1000  # points of which the single losses are kept; a plot shows no more
_NOT_LOGGED = -math.inf
# Logged names of the columns. base_lr comes before lr: both may be logged.
_NAMES = {'loss': 'loss', 'base_lr': 'learning_rate', 'lr': 'learning_rate', 'time': 'step_s', 'data_time': 'data_s'}
_NAMES['memory'] = 'memory_mb'
_TEXT_NUMBER = r'[-+]?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf)'
_JSON_NUMBER = r'(?:-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|NaN|-?Infinity)'


@dataclass
class TrainPoint:
    """One logged training iteration; numbers are means over the log processor's window.

    Attributes:
        iter: Iteration, counted from 1.
        loss: Total loss.
        terms: The other losses by their logged name; empty if they were not kept.
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


class Points(Sequence[TrainPoint]):
    """Training iterations in ascending order.

    Attributes:
        iters: Iterations.
        columns: Values by attribute of ``TrainPoint``; -inf if not logged.
    """

    def __init__(self) -> None:
        self.iters = array('i')
        self.columns = {name: array('d') for name in COLUMNS}
        self._terms: Dict[int, Dict[str, float]] = {}
        self._terms_every = 1

    def __len__(self) -> int:
        return len(self.iters)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        values = {name: column[number] for name, column in self.columns.items()}
        known: Dict[str, Any] = {name: None if value == _NOT_LOGGED else value for name, value in values.items()}
        return TrainPoint(
            **{**known, 'loss': values['loss']}, iter=self.iters[number], terms=self._terms.get(number, {})
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it can change, so it is no key; mypy expects a method

    @property
    def last_iter(self) -> int:
        """The last iteration; 0 if there is none."""
        return self.iters[-1] if self.iters else 0

    @property
    def without_terms(self) -> int:
        """How many points come before the next one whose single losses are to be kept."""
        return -len(self.iters) % self._terms_every

    def add(self, iteration: int, values: Dict[str, float], terms: Dict[str, float]) -> None:
        """Append a point.

        Args:
            iteration: Higher than the last one.
            values: By attribute of ``TrainPoint``.
            terms: The single losses.
        """
        if not self.without_terms:
            self._terms[len(self)] = terms
        self.iters.append(iteration)
        for name, column in self.columns.items():
            column.append(values.get(name, _NOT_LOGGED))
        if len(self._terms) > 2 * MOST_TERMS:
            self._terms_every *= 2
            self._terms = {at: kept for at, kept in self._terms.items() if at % self._terms_every == 0}

    def add_columns(self, iters: Sequence[int], columns: Dict[str, Iterable[float]]) -> None:
        """Append points without their single losses, at most ``without_terms``.

        Args:
            iters: Iterations, ascending.
            columns: Values by attribute of ``TrainPoint``.
        """
        self.iters.extend(iters)
        for name, column in self.columns.items():
            column.extend(columns.get(name) or [_NOT_LOGGED] * len(iters))

    def column(self, name: str) -> Any:
        """A column as an array, a copy.

        Args:
            name: Attribute of ``TrainPoint`` other than ``terms``; -inf if not logged.
        """
        import numpy  # here, so that --help needs nothing installed

        return numpy.array(self.iters if name == 'iter' else self.columns[name])

    def largest_gap(self) -> int:
        """Iterations between two points, at most; 1 if there are none."""
        import numpy

        return int(numpy.diff(self.column('iter')).max()) if len(self) > 1 else 1

    def largest_memory_mb(self) -> Optional[float]:
        """The highest peak; None if none was logged."""
        peak = self.column('memory_mb').max() if len(self) else _NOT_LOGGED
        return None if peak == _NOT_LOGGED else float(peak)

    def not_finite(self) -> List[int]:
        """Iterations whose loss is not finite."""
        import numpy

        return self.column('iter')[~numpy.isfinite(self.column('loss'))].tolist() if len(self) else []

    def detailed(self) -> List[TrainPoint]:
        """The points whose single losses were kept, evenly spread."""
        return [self[number] for number in sorted(self._terms)]

    def pairs(self, name: str, most: int) -> List[Any]:
        """Pairs of iteration and value, evenly spread if there are more than ``most``; the last one is among them."""
        every = -(-len(self) // most) or 1
        column = self.columns[name]
        numbers = range((len(self) - 1) % every, len(self), every)
        return [(self.iters[at], column[at]) for at in numbers if name == 'loss' or column[at] != _NOT_LOGGED]

    def cut(self, end: float) -> None:
        """Drop the points from an iteration on."""
        kept = len(self) if end == math.inf else bisect.bisect_left(self.iters, end)
        del self.iters[kept:]
        for column in self.columns.values():
            del column[kept:]
        self._terms = {at: terms for at, terms in self._terms.items() if at < kept}

    def extend(self, other: Points) -> None:
        """Append the points of a later start."""
        self._terms.update({len(self) + at: terms for at, terms in other._terms.items()})
        self.iters.extend(other.iters)
        for name, column in self.columns.items():
            column.extend(other.columns[name])


def columns_of(values: Dict[str, Any]) -> Dict[str, float]:
    """Values by attribute of ``TrainPoint``, from those by logged name."""
    found: Dict[str, float] = {}
    for name, column in _NAMES.items():
        if name in values:
            found.setdefault(column, float(values[name]))
    return found


class PlainRecord:
    """Reads training records with the same names in the same order as an earlier one, many times as fast.

    Points whose single losses are to be kept are left to the reader of whole records.

    Args:
        pattern: Of a whole line. It has a group ``iter``, and one for each logged name that has a column.
        points: Where to add them.
    """

    def __init__(self, pattern: str, points: Points) -> None:
        compiled = re.compile(pattern)
        self._match = compiled.fullmatch
        group_of: Dict[str, str] = {}
        for name, column in _NAMES.items():
            if name in compiled.groupindex:
                group_of.setdefault(column, name)
        self._columns = list(group_of)
        self._groups = ('clock' if 'clock' in compiled.groupindex else 'iter', 'iter', *group_of.values())
        self._points = points

    @classmethod
    def of_text(cls, head: str, names: Sequence[str], points: Points) -> Optional[PlainRecord]:
        """For a text log; None if a name occurs twice.

        Args:
            head: Pattern of what stands before the values, with groups ``iter`` and ``clock``.
            names: Logged names in order.
            points: Where to add the records.
        """
        if len(set(names)) < len(names):
            return None
        pairs = ''.join(
            rf' +{re.escape(name)}: ' + (r'[^:]{1,20}:\d\d:\d\d' if name == 'eta' else _value(name, _TEXT_NUMBER))
            for name in names
        )
        return cls(head + pairs + r'\s*', points)

    @classmethod
    def of_json(cls, row: Dict[str, Any], points: Points) -> Optional[PlainRecord]:
        """For the lines of scalars.json; None if a line has other values than numbers, or a name occurs twice.

        Args:
            row: One of them.
            points: Where to add the records.
        """
        names = {key.rsplit('/', 1)[-1] for key in row}
        if len(names) < len(row) or not all(isinstance(value, (int, float)) for value in row.values()):
            return None
        pairs = (rf'"{re.escape(key)}": ' + _value(key.rsplit('/', 1)[-1], _JSON_NUMBER) for key in row)
        return cls(r'\{' + ', '.join(pairs) + r'\}', points)

    def take(self, lines: Sequence[str], start: int, end: int) -> Sequence[str]:
        """Add the records at the beginning of some lines.

        Args:
            lines: Lines of a log.
            start: The first line to look at.
            end: The line to stop before.

        Returns:
            The clock of each record that was added; its iteration if the pattern has no clock. The next line, if any,
            must be read whole.
        """
        end = min(end, start + self._points.without_terms)
        matches = itertools.takewhile(operator.truth, map(self._match, lines[start:end]))
        rows = [match.group(*self._groups) for match in matches if match]
        if not rows:
            return ()
        clocks, iters, *columns = zip(*rows)
        numbers = [self._points.last_iter, *map(int, iters)]
        if numbers[-1] > LAST_ITER or not all(map(operator.lt, numbers, numbers[1:])):
            return ()
        self._points.add_columns(numbers[1:], {name: map(float, texts) for name, texts in zip(self._columns, columns)})
        return clocks


def _value(name: str, number: str) -> str:
    if name == 'iter':
        return r'(?P<iter>\d{1,10})'
    return rf'(?P<{name}>{number})' if name in _NAMES else number
