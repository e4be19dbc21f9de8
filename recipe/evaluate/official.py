"""The official evaluation of cityscapesscripts, on the same predictions, beside ours."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

import numpy as np

from recipe.core import console
from recipe.evaluate import classes
from recipe.evaluate.scores import Scores

TOLERANCE = 1e-6  # of a fraction
# The module of cityscapesscripts looks for data and writes its results where these say, already when it is imported.
_VARIABLES = ('CITYSCAPES_DATASET', 'CITYSCAPES_RESULTS', 'CITYSCAPES_EXPORT_DIR')


def instance_sizes() -> Dict[int, float]:
    """Mean size of an instance of each class in pixels, by train id, from the official evaluation."""
    with _module() as module:
        sizes = module.args.avgClassSize
    return {one: sizes[classes.NAMES[one]] for one in classes.WITH_INSTANCES}


@contextlib.contextmanager
def _module() -> Iterator[Any]:
    """The module of the evaluation; it needs numpy.in1d, which numpy 2.4 has dropped."""
    kept = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    added = not hasattr(np, 'in1d')
    if added:
        np.in1d = np.isin  # type: ignore[attr-defined]  # only their arguments' shapes differ, and it reshapes anyway
    try:
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling

        yield evalPixelLevelSemanticLabeling
    finally:
        os.environ.update(kept)
        if added:
            del np.in1d  # type: ignore[attr-defined]


def evaluate(predictions: Sequence[Path], label_ids: Sequence[str], has_instances: bool) -> Dict[str, float]:
    """Run the official evaluation.

    Args:
        predictions: PNG files of label ids.
        label_ids: The files ``*_gtFine_labelIds.png`` of the same pictures.
        has_instances: Whether each of them has a file ``*_instanceIds.png`` beside it.

    Returns:
        Its scores as fractions, with the names of ``flat``.

    Raises:
        console.UserError: It gave up; says what it printed.
    """
    said = io.StringIO()
    with _module() as module:
        args = module.args
        before = dict(vars(args))
        vars(args).update(quiet=True, JSONOutput=False, evalInstLevelScore=has_instances, evalPixelAccuracy=False)
        try:
            with contextlib.redirect_stdout(said):
                found = module.evaluateImgLists([*map(str, predictions)], [*map(str, label_ids)], args)
        except SystemExit:
            reason = ' '.join(said.getvalue().split()) or 'it gave no reason'
            raise console.UserError(f'the official evaluation gave up: {reason}') from None
        finally:
            vars(args).clear()
            vars(args).update(before)
    scores = {
        'miou': found['averageScoreClasses'],
        'category_miou': found['averageScoreCategories'],
        **{f'class_iou/{name}': found['classScores'][name] for name in classes.NAMES},
        **{f'category_iou/{name}': found['categoryScores'][name] for name in classes.CATEGORIES},
    }
    if has_instances:
        scores['iiou'] = found['averageScoreInstClasses']
        scores['category_iiou_mean'] = found['averageScoreInstCategories']
        for one in classes.WITH_INSTANCES:
            scores[f'class_iiou/{classes.NAMES[one]}'] = found['classInstScores'][classes.NAMES[one]]
        for name in classes.CATEGORIES_WITH_INSTANCES:
            scores[f'category_iiou/{name}'] = found['categoryInstScores'][name]
    return scores


def flat(scores: Scores) -> Dict[str, float]:
    """Our scores by the names of ``evaluate``: means, and ``group/name``."""
    groups = scores.groups()
    return {
        **scores.means(),
        **{f'{group}/{name}': value for group, values in groups.items() for name, value in values.items()},
    }


def differences(ours: Dict[str, float], theirs: Dict[str, float]) -> List[str]:
    """Scores that differ by more than ``TOLERANCE``, as text; NaN equals NaN only.

    Args:
        ours: From ``flat``.
        theirs: From ``evaluate``.
    """
    return [
        f'{name}: {ours.get(name, float("nan"))!r} here, {value!r} there'
        for name, value in theirs.items()
        if not distance(ours.get(name, float('nan')), value) <= TOLERANCE
    ]


def distance(one: float, other: float) -> float:
    """Difference of two scores; 0 between NaN and NaN, infinity between NaN and a number."""
    if np.isnan(one) or np.isnan(other):
        return 0.0 if np.isnan(one) and np.isnan(other) else float('inf')
    return abs(one - other)
