"""Counts the predictions, and writes what an evaluation found: result.json, tables and pictures."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from recipe.core import console, files
from recipe.data import parallel
from recipe.evaluate import classes, official, scores
from recipe.evaluate import counts as counting
from recipe.evaluate.classes import ClassSet
from recipe.evaluate.pictures import Picture, missing, size
from recipe.evaluate.predict import predictions_of
from recipe.evaluate.scores import Scores

SCHEMA = 1
WORST = 10
_FEW_PIXELS = 1 << 23  # counting so few takes less time than starting processes
_DEFINITIONS = {
    **scores.DEFINITIONS,
    'images_per_s': (
        'Images per second over all cards in the newest start that predicted any: images / seconds from the first '
        'batch to the last file of the slowest rank. Loading and writing are in it, starting the model is not.'
    ),
    'worst_pictures': 'The pictures with the lowest mean IoU over the classes in their labels or predictions.',
    'official': "The same predictions, evaluated by cityscapesscripts' evalPixelLevelSemanticLabeling.",
}


@dataclass(frozen=True)
class Evaluated:
    """The result of counting.

    Attributes:
        scores: The metrics.
        counts: Sums over all pictures.
        picture_miou: mIoU of each picture as a fraction, by name, the lowest first.
        boundary_width_px: Of the pictures' size; None: they have several.
        official: Scores of the official evaluation as fractions; empty without it.
        of: The classes.
    """

    scores: Scores
    counts: counting.Counts
    picture_miou: Dict[str, float]
    boundary_width_px: Optional[int]
    official: Dict[str, float] = field(default_factory=dict)
    of: ClassSet = classes.CITYSCAPES


def evaluate(
    pictures: List[Picture], folder: Path, with_official: bool, of: ClassSet = classes.CITYSCAPES
) -> Evaluated:
    """Count all predictions.

    Args:
        pictures: Pictures with labels and predictions.
        folder: The evaluation folder.
        with_official: Whether to run the official evaluation, too.
        of: The classes.

    Raises:
        console.UserError: A file is damaged, or the official evaluation gave up.
    """
    predictions = predictions_of(folder)
    has_instances = of.is_cityscapes and _has_instances(pictures)
    sizes = official.instance_sizes() if has_instances else None
    jobs = [
        counting.Job(str(predictions / one.name), one.labels, one.instances if has_instances else None, sizes, of)
        for one in pictures
    ]
    first = counting.read_labels(pictures[0].labels, of).shape
    workers = 1 if len(jobs) * math.prod(first) < _FEW_PIXELS else None
    total, by_picture = counting.Counts.zero(of.count), {}
    for picture, found in zip(pictures, parallel.run(counting.count, jobs, 'counting', workers)):
        total.add(found)
        by_picture[picture.name] = scores.mean(scores.class_iou(found.confusion))
    if not total.confusion.sum():
        raise console.UserError('every pixel of the labels is ignored, so there is nothing to evaluate')
    worst_first = dict(sorted(by_picture.items(), key=lambda item: (math.isnan(item[1]), item[1])))
    theirs: Dict[str, float] = {}
    if with_official:
        console.say(f'official cityscapesscripts evaluates {len(pictures)} pictures in one process')
        files_of = [predictions / picture.name for picture in pictures]
        theirs = official.evaluate(files_of, [picture.label_ids for picture in pictures], has_instances)
    is_alike = of.is_cityscapes or len({size(picture) for picture in pictures}) == 1
    width = counting.boundary_width(first) if is_alike else None
    names = classes.NAMES if of.is_cityscapes else of.names
    return Evaluated(Scores.of(total, has_instances, names), total, worst_first, width, theirs, of)


def _has_instances(pictures: List[Picture]) -> bool:
    absent = missing(pictures, 'instances')
    if absent and len(absent) < len(pictures):
        console.warn(f'no iIoU: {len(absent)} of {len(pictures)} instance files are missing, first: {absent[0]}')
    return not absent


def require_agreement(found: Evaluated) -> None:
    """Check that the official evaluation found the same.

    Raises:
        console.UserError: Names the first score that differs.
    """
    apart = official.differences(official.flat(found.scores), found.official)
    if apart:
        raise console.UserError(
            f'the official evaluation differs in {len(apart)} scores (tolerance {official.TOLERANCE}), {apart[0]}',
            'do labelTrainIds and labelIds come from the same polygons? '
            'make them anew with python tools/cityscapes.py prepare --data_path ROOT --force',
        )


def describe(found: Optional[Evaluated], facts: Dict[str, Any], speed: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """Content of result.json.

    Args:
        found: None for a split without labels.
        facts: What was evaluated.
        speed: From ``predict.speed``.
    """
    content: Dict[str, Any] = {'schema': SCHEMA, **facts}
    if found is not None:
        ours = found.scores
        content.update({f'{name}_percent': _percent(value) for name, value in ours.means().items()})
        content['boundary_width_px'] = found.boundary_width_px
        for name, values in ours.groups().items():
            content[f'{name}_percent'] = {one: _percent(value) for one, value in values.items()}
        if found.official:
            own = official.flat(ours)
            content['official'] = {f'{name}_percent': _percent(value) for name, value in found.official.items()}
            content['official_largest_difference'] = max(
                official.distance(own[name], value) for name, value in found.official.items()
            )
        content['worst_pictures'] = [
            {'picture': name, 'miou_percent': _percent(value)} for name, value in [*found.picture_miou.items()][:WORST]
        ]
    content.update(speed or {'images_per_s': None})
    content['definition'] = _DEFINITIONS
    return content


def _percent(fraction: float) -> Optional[float]:
    return 100 * fraction if math.isfinite(fraction) else None


def write(found: Optional[Evaluated], content: Dict[str, Any], pictures: List[Picture], folder: Path) -> List[Path]:
    """Write result.json and, with labels, confusion.csv, confusion.png and worst.png.

    Returns:
        The files.
    """
    written = []
    if found is not None:
        from recipe.evaluate import plots

        written.append(files.write_text(folder / 'confusion.csv', _csv(found.counts, found.of.names)))
        written.append(plots.confusion(found.counts.confusion, found.of.names, folder / 'confusion.png'))
        by_name = {picture.name: picture for picture in pictures}
        rows = [(by_name[name], value) for name, value in [*found.picture_miou.items()][:WORST]]
        written.append(plots.worst(rows, found.of, predictions_of(folder), folder / 'worst.png'))
    text = json.dumps(content, indent=2, allow_nan=False) + '\n'
    return [files.write_text(folder / 'result.json', text), *written]


def _csv(counts: counting.Counts, names: Sequence[str]) -> str:
    """Pixels by true class (rows) and predicted class (columns)."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator='\n')
    rows.writerow(['pixels: label \\ prediction', *names])
    for name, row in zip(names, counts.confusion.tolist()):
        rows.writerow([name, *row])
    return text.getvalue()


def show(found: Evaluated) -> None:
    """Print the metrics as a table, and the official ones beside the means."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    groups = found.scores.groups()
    columns = {'IoU': 'class_iou', 'Acc': 'class_acc', 'iIoU': 'class_iiou', 'boundary IoU': 'class_boundary_iou'}
    columns = {title: name for title, name in columns.items() if name in groups}
    table.add_column('class (%)')
    for title in columns:
        table.add_column(title, justify='right')
    for one in found.of.names:
        table.add_row(one, *(_cell(groups[name].get(one)) for name in columns.values()))
    for category, value in found.scores.category_iou.items():
        cells = {'IoU': _cell(value), 'iIoU': _cell(found.scores.category_iiou.get(category))}
        table.add_row(f'category {category}', *(cells.get(title, '') for title in columns))
    output = Console(width=max(80, Console().width), highlight=False)
    with output.capture() as captured:
        output.print(table)
    for line in captured.get().rstrip().splitlines():
        console.say(line.rstrip())
    for name, value in found.scores.means().items():
        beside = f'  official {_cell(found.official[name])}' if name in found.official else ''
        console.say(f'{name:<20} {_cell(value)} %{beside}')


def _cell(value: Optional[float]) -> str:
    return '' if value is None else '-' if math.isnan(value) else f'{100 * value:.2f}'
