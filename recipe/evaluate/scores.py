"""The metrics, from the counts of all pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Sequence

import numpy as np

from recipe.evaluate import classes
from recipe.evaluate.counts import Counts

DEFINITIONS = {
    'miou_percent': 'Mean of class_iou_percent, over the classes that occur.',
    'macc_percent': 'Mean of class_acc_percent, over the classes that occur.',
    'aacc_percent': 'Pixels with the right class / all pixels that are not ignored.',
    'class_iou_percent': 'Pixels of both / pixels of label or prediction; null: the class does not occur.',
    'class_acc_percent': 'Pixels found / pixels of the label; null: the class does not occur in the labels.',
    'category_iou_percent': "The same as class_iou_percent for Cityscapes' seven categories.",
    'class_iiou_percent': (
        'iIoU of cityscapesscripts, classes with instances: found and missed pixels are weighted by the mean size of '
        "the class's instances / the size of the instance. Only if the files *_instanceIds.png are there."
    ),
    'class_boundary_iou_percent': (
        'Boundary IoU (arXiv:2103.16562): IoU of the pixels that are at most boundary_width_px away from the boundary '
        'of their class, 2 % of the diagonal. Pixels of all pictures are counted together.'
    ),
}


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float('nan')


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float('nan')


def class_iou(confusion: np.ndarray) -> List[float]:
    """IoU of each class, as a fraction; NaN if it does not occur.

    Args:
        confusion: (C, C), true class first.
    """
    both, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return [_ratio(*one) for one in zip(both, true + predicted - both)]


@dataclass(frozen=True)
class Scores:
    """The metrics as fractions, by name of class or category. NaN: it does not occur.

    Attributes:
        class_iiou: Empty if there are no instances; so is ``category_iiou``.
        category_iou: Empty for another set than Cityscapes.
    """

    aacc: float
    class_iou: Dict[str, float]
    class_acc: Dict[str, float]
    category_iou: Dict[str, float]
    class_boundary_iou: Dict[str, float]
    class_iiou: Dict[str, float] = field(default_factory=dict)
    category_iiou: Dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, counts: Counts, has_instances: bool, names: Sequence[str] = classes.NAMES) -> Scores:
        """Compute the metrics.

        Args:
            counts: Of all pictures.
            has_instances: Whether instances were counted.
            names: Of the classes; other ones than Cityscapes' have no categories.
        """
        confusion = counts.confusion
        by_class = [_ratio(*one) for one in zip(confusion.diagonal(), confusion.sum(1))]
        both, predicted, true = counts.boundary
        categories = classes.CATEGORIES if names is classes.NAMES else {}
        boundary = [_ratio(*one) for one in zip(both, predicted + true - both)]
        return cls(
            aacc=_ratio(confusion.trace(), confusion.sum()),
            class_iou=dict(zip(names, class_iou(confusion))),
            class_acc=dict(zip(names, by_class)),
            category_iou={name: _category_iou(confusion, ids) for name, ids in categories.items()},
            class_boundary_iou=dict(zip(names, boundary)),
            class_iiou=_class_iiou(counts) if has_instances else {},
            category_iiou=_category_iiou(counts) if has_instances else {},
        )

    def means(self) -> Dict[str, float]:
        """The mean of each metric over what occurs, by its name in result.json without the unit."""
        found = {
            'miou': mean([*self.class_iou.values()]),
            'macc': mean([*self.class_acc.values()]),
            'aacc': self.aacc,
            **({'category_miou': mean([*self.category_iou.values()])} if self.category_iou else {}),
            'boundary_miou': mean([*self.class_boundary_iou.values()]),
        }
        if self.class_iiou:
            found['iiou'] = mean([*self.class_iiou.values()])
            found['category_iiou_mean'] = mean([*self.category_iiou.values()])
        return found

    def groups(self) -> Dict[str, Dict[str, float]]:
        """The metrics by class and by category, by their names in result.json without the unit."""
        names = ('class_iou', 'class_acc', 'class_iiou', 'class_boundary_iou', 'category_iou', 'category_iiou')
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def _category_iou(confusion: np.ndarray, ids: List[int]) -> float:
    both = confusion[np.ix_(ids, ids)].sum()
    return _ratio(both, confusion[ids].sum() + confusion[:, ids].sum() - both)


def _class_iiou(counts: Counts) -> Dict[str, float]:
    wrong = counts.confusion.sum(0) - counts.confusion.diagonal()
    found, missed = counts.instances
    return {
        classes.NAMES[one]: _ratio(found[one], found[one] + wrong[one] + missed[one]) for one in classes.WITH_INSTANCES
    }


def _category_iiou(counts: Counts) -> Dict[str, float]:
    values = {}
    for name in classes.CATEGORIES_WITH_INSTANCES:
        ids = classes.CATEGORIES[name]
        others = [one for one in range(classes.COUNT) if one not in ids]
        wrong = counts.confusion[np.ix_(others, ids)].sum()
        found, missed = counts.categories[:, ids].sum(1)
        values[name] = _ratio(found, found + wrong + missed)
    return values
