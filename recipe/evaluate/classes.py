"""The classes of an evaluation: Cityscapes', by train id, as cityscapesscripts has them, or those of another set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np
from cityscapesscripts.helpers.labels import labels

from recipe.data.sets.coding import Decoder
from recipe.data.sets.file import DataSet

IGNORED = 255
_EVALUATED = sorted((label for label in labels if not label.ignoreInEval), key=lambda label: label.trainId)
NAMES = [label.name for label in _EVALUATED]
COUNT = len(NAMES)
LABEL_IDS = [label.id for label in _EVALUATED]
# The seven categories with an evaluated class.
CATEGORIES = {
    category: [label.trainId for label in _EVALUATED if label.category == category]
    for category in dict.fromkeys(label.category for label in _EVALUATED)
}
WITH_INSTANCES = [label.trainId for label in _EVALUATED if label.hasInstances]
# Categories whose every class has instances.
CATEGORIES_WITH_INSTANCES = [name for name, ids in CATEGORIES.items() if set(ids) <= set(WITH_INSTANCES)]

# Tables to index with a label map. What has no counterpart becomes IGNORED, or unlabeled (0).
TO_TRAIN_ID = np.full(256, IGNORED, np.uint8)
TO_TRAIN_ID[LABEL_IDS] = np.arange(COUNT)
TO_LABEL_ID = np.zeros(256, np.uint8)
TO_LABEL_ID[:COUNT] = LABEL_IDS
# Colour of each train id, uint8 RGB; black for what is ignored.
COLORS = np.zeros((256, 3), np.uint8)
COLORS[:COUNT] = [label.color for label in _EVALUATED]


@dataclass(frozen=True)
class ClassSet:
    """The classes that are evaluated, and how files hold them.

    Attributes:
        names: By train id.
        colours: RGB, by train id.
        is_cityscapes: Whether predictions are written as label ids; otherwise as train ids.
        decoder: Reads labels; None: they hold train ids.
    """

    names: Tuple[str, ...]
    colours: Tuple[Tuple[int, ...], ...]
    is_cityscapes: bool = False
    decoder: Optional[Decoder] = None

    @property
    def count(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def to_train_id(self) -> np.ndarray:
        """Table from what predictions hold to train ids, uint8 (256,)."""
        if self.is_cityscapes:
            return TO_TRAIN_ID
        table = np.full(256, IGNORED, np.uint8)
        table[: self.count] = np.arange(self.count)
        return table

    @property
    def colour_table(self) -> np.ndarray:
        """Colour of each train id, uint8 (256, 3); black for what is ignored."""
        table: Any = np.zeros((256, 3), np.uint8)
        table[: self.count] = self.colours
        found: np.ndarray = table
        return found


CITYSCAPES = ClassSet(tuple(NAMES), tuple(tuple(label.color) for label in _EVALUATED), is_cityscapes=True)


def of_set(data: Optional[DataSet]) -> ClassSet:
    """The classes of a set; Cityscapes' without one."""
    if data is None:
        return CITYSCAPES
    decoder = Decoder(data.coding, data.codes, data.instances)
    return ClassSet(tuple(data.names), tuple(one.colour for one in data.trained), decoder=decoder)
