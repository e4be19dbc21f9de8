"""Compares the weights that a training shall begin from with its model, tensor by tensor."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from recipe.core import console

Sizes = Tuple[int, ...]
TAKEN, IN_PART, ANEW, LEFT_OUT = 'taken', 'taken in part', 'made anew', 'left out'
_OUTCOMES = (TAKEN, IN_PART, ANEW, LEFT_OUT)
# Share of a part's values that a file has to hold. Below it, the file is of another model, and little of its knowledge
# would be left: a head, for example, has no use without the backbone that it was trained with.
_LEAST = {'backbone': 0.9, 'decode_head': 0.5}
_FIX = {
    'backbone': 'give the config of its backbone with --backbone or --config',
    'decode_head': 'give the config of its head, or take its backbone alone with --pretrained=FILE',
}
_MODULES = ('pixel_decoder', 'transformer_decoder')  # parts of the head with a row of their own in the table


class Entry(NamedTuple):
    """What becomes of one tensor.

    Attributes:
        name: Its name in the model, or in the file if the model lacks it.
        here: Its shape in the model; None if the model lacks it.
        there: Its shape in the file; None if the file lacks it.
        outcome: One of ``taken``, ``taken in part``, ``made anew`` and ``left out``.
    """

    name: str
    here: Optional[Sizes]
    there: Optional[Sizes]
    outcome: str

    @property
    def part(self) -> str:
        """The part of the model that it belongs to, for the table."""
        names = self.name.split('.')
        return '.'.join(names[: 2 if len(names) > 1 and names[1] in _MODULES else 1])

    def __str__(self) -> str:
        if self.there is None:
            return f'{self.name} is not there'
        return f'{self.name} is {self.there} there and {self.here} in the model'


class Fit(NamedTuple):
    """What becomes of all learned tensors of the model, and of those of the file that it lacks.

    Attributes:
        entries: In the order of the model, then those that are left out.
    """

    entries: List[Entry]

    def of(self, outcome: str) -> List[Entry]:
        """The entries with an outcome."""
        return [entry for entry in self.entries if entry.outcome == outcome]

    def table(self) -> List[str]:
        """Lines of a table: how many tensors of each part have each outcome."""
        parts = list(dict.fromkeys(entry.part for entry in self.entries))
        width = max(map(len, parts), default=0)
        lines = [f'{"tensors":<{width}}' + ''.join(f'  {outcome:>13}' for outcome in _OUTCOMES)]
        for part in parts:
            counts = [sum(entry.part == part for entry in self.of(outcome)) for outcome in _OUTCOMES]
            lines.append(f'{part:<{width}}' + ''.join(f'  {count:>13}' for count in counts))
        return lines

    def as_csv(self) -> str:
        """The whole table as CSV, a tensor a line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(['tensor', 'in the model', 'in the file', 'outcome'])
        for name, here, there, outcome in self.entries:
            writer.writerow(
                [name, *('' if sizes is None else 'x'.join(map(str, sizes)) for sizes in (here, there)), outcome]
            )
        return text.getvalue()


def compare(shapes: Mapping[str, Sizes], model: Any, in_part: Mapping[str, Sizes]) -> Fit:
    """Compare tensors with the learned tensors of a model.

    Args:
        shapes: Shapes of the tensors, by their names in the model.
        model: ``torch.nn.Module``.
        in_part: Shapes of those of which a part is taken, as they are in the file.
    """
    needed = {name: tuple(value.shape) for name, value in model.named_parameters()}
    others = dict(model.named_buffers())
    entries = []
    for name, here in needed.items():
        there = in_part.get(name, shapes.get(name))
        outcome = IN_PART if name in in_part else TAKEN if there == here else ANEW
        entries.append(Entry(name, here, there, outcome))
    entries += [
        Entry(name, None, there, LEFT_OUT)
        for name, there in shapes.items()
        if name not in needed and name not in others
    ]
    return Fit(entries)


def require(
    title: str, path: Path, shapes: Mapping[str, Sizes], model: Any, in_part: Optional[Mapping[str, Sizes]] = None
) -> Fit:
    """Compare tensors with a model, and refuse those of another model. Differences are printed as warnings.

    Args:
        title: Option or setting that names the file.
        path: The file.
        shapes: As for ``compare``.
        model: As for ``compare``.
        in_part: As for ``compare``; None: none.

    Returns:
        What becomes of each tensor.

    Raises:
        console.UserError: Less than 90 % of the backbone's values fit, or less than half of those of the head.
    """
    fit = compare(shapes, model, in_part or {})
    wrong = fit.of(ANEW)
    for part, least in _LEAST.items():
        values: Dict[str, int] = {'all': 0, ANEW: 0}
        for entry in fit.entries:
            if entry.here is not None and entry.name.startswith(f'{part}.'):
                values['all'] += math.prod(entry.here)
                values[ANEW] += math.prod(entry.here) if entry.outcome == ANEW else 0
        share = 1 - values[ANEW] / values['all'] if values['all'] else 1.0
        if share < least:
            first = next(entry for entry in wrong if entry.name.startswith(f'{part}.'))
            raise console.UserError(
                f'{title}: {path} is of another model: {100 * share:.0f} % of {part} fits, at least '
                f'{100 * least:.0f} % is needed; {first}',
                _FIX[part],
            )
    needed = len(fit.entries) - len(fit.of(LEFT_OUT))
    if wrong:
        console.warn(f'{title}: {len(wrong)} of {needed} tensors begin from scratch; {some(wrong)}')
    others = fit.of(LEFT_OUT)
    if others:
        names = ', '.join(entry.name for entry in others[:_SHOWN]) + (', ...' if len(others) > _SHOWN else '')
        console.warn(f'{title}: {len(others)} tensors of {path.name} are not in the model; {names}')
    return fit


_SHOWN = 10


def some(entries: List[Entry]) -> str:
    """The first entries in words."""
    return ', '.join(map(str, entries[:_SHOWN])) + (', ...' if len(entries) > _SHOWN else '')


def summary(path: Path, fit: Fit) -> str:
    """What will be loaded, in words."""
    needed = len(fit.entries) - len(fit.of(LEFT_OUT))
    in_part = len(fit.of(IN_PART))
    return f'{path}: {len(fit.of(TAKEN))} of {needed} tensors of the model' + (
        f', {in_part} in part' if in_part else ''
    )
