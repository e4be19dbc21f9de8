"""Counts one picture: pairs of true and predicted class, pixels near boundaries, pixels of instances.

It runs in many processes, so it imports neither torch nor mmseg. The counts of pictures add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import numpy as np

from recipe.core import console
from recipe.evaluate import classes
from recipe.evaluate.classes import ClassSet

# Of the diagonal: Boundary IoU (arXiv:2103.16562), section 4.
BOUNDARY = 0.02


@dataclass(frozen=True)
class Job:
    """The files of one picture.

    Attributes:
        prediction: 8-bit PNG of label ids; of another set than Cityscapes, of train ids.
        labels: Train ids, 8-bit PNG, or as the set codes them.
        instances: ``*_instanceIds.png``; None if they are not there for all pictures.
        sizes: Mean size of an instance of each class in pixels, by train id; empty without ``instances``.
        classes: What is evaluated.
    """

    prediction: str
    labels: str
    instances: Optional[str] = None
    sizes: Optional[Dict[int, float]] = None
    classes: ClassSet = classes.CITYSCAPES


@dataclass
class Counts:
    """Counts of pictures. C is the number of classes.

    Attributes:
        confusion: Pixels by true (first) and predicted class, int64 (C, C).
        boundary: Pixels of both, of the prediction and of the label that are near a boundary, int64 (3, C).
        instances: Weighted pixels found and missed of instances by class, float64 (2, C).
        categories: The same, where any class of the category counts as found, by true class, float64 (2, C).
    """

    confusion: np.ndarray
    boundary: np.ndarray
    instances: np.ndarray
    categories: np.ndarray

    @classmethod
    def zero(cls, side: int = classes.COUNT) -> Counts:
        """Counts of no picture, of so many classes."""
        return cls(
            np.zeros((side, side), np.int64), np.zeros((3, side), np.int64), np.zeros((2, side)), np.zeros((2, side))
        )

    def add(self, other: Counts) -> None:
        """Add the counts of other pictures."""
        self.confusion += other.confusion
        self.boundary += other.boundary
        self.instances += other.instances
        self.categories += other.categories


def count(job: Job) -> Counts:
    """Count one picture.

    Args:
        job: Its files.

    Raises:
        console.UserError: A file is damaged, or they do not fit each other.
    """
    prediction, labels = read_prediction(job.prediction, job.classes), read_labels(job.labels, job.classes)
    side = job.classes.count
    _require_size(job.labels, labels, prediction)
    found = Counts.zero(side)
    kept = labels != classes.IGNORED
    pairs = labels[kept].astype(np.int64) * side + prediction[kept]
    found.confusion += np.bincount(pairs, minlength=side**2).reshape(found.confusion.shape)
    found.boundary += count_boundaries(prediction, labels, side)
    if job.instances is not None:
        instances = read(job.instances)
        _require_size(job.instances, instances, prediction)
        found.instances, found.categories = count_instances(prediction, instances, job.sizes or {})
    return found


def read(path: str) -> np.ndarray:
    """Read a PNG file of one channel; (H, W).

    Raises:
        console.UserError: It is missing, damaged or coloured.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = np.array(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise console.UserError(f'cannot read {path}: {getattr(error, "strerror", None) or error}') from None
    if pixels.ndim != 2:
        raise console.UserError(f'{path} is coloured, and should hold one number for each pixel')
    return pixels


def read_labels(path: str, of: ClassSet) -> np.ndarray:
    """Read a label as train ids, uint8 (H, W).

    Raises:
        console.UserError: It is missing or damaged, or holds what its set does not name.
    """
    return read(path) if of.decoder is None else of.decoder.read(path)


def read_prediction(path: str, of: ClassSet = classes.CITYSCAPES) -> np.ndarray:
    """Read a prediction as train ids, uint8 (H, W).

    Raises:
        console.UserError: It is damaged, or holds a number that no prediction can have.
    """
    pixels = read(path)
    prediction = of.to_train_id[pixels] if pixels.dtype == np.uint8 else np.full(pixels.shape, classes.IGNORED)
    if (prediction == classes.IGNORED).any():
        raise console.UserError(
            f'{path} holds other values than the {of.count} evaluated {"label" if of.is_cityscapes else "train"} ids',
            'remove it and start the same command again',
        )
    return prediction


def _require_size(path: str, pixels: np.ndarray, prediction: np.ndarray) -> None:
    if pixels.shape != prediction.shape:
        (height, width), (rows, columns) = pixels.shape, prediction.shape
        raise console.UserError(f'{path} is {width}x{height} pixels, and the prediction {columns}x{rows}')


def boundary_width(shape: Tuple[int, int]) -> int:
    """Width of the zone along boundaries in pixels, for a picture of (height, width)."""
    return max(1, round(BOUNDARY * math.hypot(*shape)))


def near_boundary(labels: np.ndarray, width: int) -> np.ndarray:
    """Pixels from which another class, or the end of the picture, is at most ``width`` pixels away.

    It is what is left of each class's mask if the mask is eroded ``width`` times with a 3 x 3 square: a pixel stays
    away from the boundary if its whole neighbourhood has one class, so if minimum and maximum are equal there.

    Args:
        labels: (H, W), uint8, values 0 to 253 or ``IGNORED``.
        width: In pixels.

    Returns:
        Bool, (H, W).
    """
    import cv2

    around = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    shifted = np.minimum(labels, 254) + 1  # 0 is outside the picture
    least = cv2.erode(shifted, around, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    most = cv2.dilate(shifted, around, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.not_equal(least, most)


def count_boundaries(prediction: np.ndarray, labels: np.ndarray, side: int = classes.COUNT) -> np.ndarray:
    """Count the pixels near boundaries: of both, of the prediction, of the labels; int64 (3, C).

    Boundary IoU (arXiv:2103.16562), equation 2. Predictions of ignored pixels count as ignored: the edge of an ignored
    region is a boundary on both sides.

    Args:
        prediction: Train ids, (H, W).
        labels: Train ids or ``IGNORED``, (H, W).
        side: Number of classes C.
    """
    width = boundary_width(labels.shape)
    prediction = np.where(labels == classes.IGNORED, np.uint8(classes.IGNORED), prediction)
    theirs, ours = near_boundary(labels, width), near_boundary(prediction, width)
    parts = (prediction[theirs & ours & (prediction == labels)], prediction[ours], labels[theirs])
    return np.stack([np.bincount(part, minlength=256)[:side] for part in parts])


def count_instances(
    prediction: np.ndarray, instances: np.ndarray, sizes: Dict[int, float]
) -> Tuple[np.ndarray, np.ndarray]:
    """Count the pixels of instances, each pixel weighted by mean size of the class over size of the instance.

    As cityscapesscripts does (``evalPixelLevelSemanticLabeling.py``).

    Args:
        prediction: Train ids, (H, W).
        instances: Label id x 1000 + number of the instance, (H, W); below 1000 are no instances.
        sizes: Mean size of an instance in pixels, by train id.

    Returns:
        ``Counts.instances`` and ``Counts.categories``.
    """
    by_class, by_category = np.zeros((2, classes.COUNT)), np.zeros((2, classes.COUNT))
    inside = instances > 1000
    numbers, index = np.unique(instances[inside], return_inverse=True)
    predicted = prediction[inside]
    true = classes.TO_TRAIN_ID[numbers // 1000]
    pixels = np.bincount(index.ravel(), minlength=len(numbers))
    category_of = np.full(256, -1)
    for number, ids in enumerate(classes.CATEGORIES.values()):
        category_of[ids] = number
    same = (predicted == true[index.ravel()], category_of[predicted] == category_of[true[index.ravel()]])
    for counts, found in zip((by_class, by_category), same):
        hits = np.bincount(index.ravel(), weights=found, minlength=len(numbers))
        for one, size, hit in zip(true, pixels, hits):
            if one in sizes:
                weight = sizes[one] / float(size)
                counts[:, one] += hit * weight, (size - hit) * weight
    return by_class, by_category
