"""Cityscapes' classes, by train id, as cityscapesscripts defines them."""

from __future__ import annotations

import numpy as np
from cityscapesscripts.helpers.labels import labels

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
