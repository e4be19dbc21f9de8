"""Compares an exported model with the model that it was made from."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

from recipe.core import console, files

MOST_DIFFERENCE = 1e-3  # of class scores, which are sums of probabilities
# Of the largest score, if that allows more: a score adds up all queries, and float32 rounds in proportion to it.
MOST_SHARE = 1e-4
LEAST_SAME = 0.9999  # share of the pixels
_PACKAGES = ('torch', 'onnx', 'onnxscript', 'onnxruntime', 'safetensors', 'transformers', 'mmsegmentation', 'numpy')
# From a picture, RGB, uint8, (H, W, 3), to its class scores, (C, H, W), and its labels, (H, W).
Predict = Callable[[np.ndarray], Tuple[np.ndarray, np.ndarray]]


@dataclass
class Parity:
    """How far two models agree on some pictures.

    Attributes:
        largest_difference: Largest absolute difference of two class scores.
        same_labels: Share of the pixels that have the same label.
        sizes: Height and width of each picture.
        largest_score: Largest absolute class score of the reference.
    """

    largest_difference: float = 0.0
    same_labels: float = 1.0
    sizes: List[Tuple[int, int]] = field(default_factory=list)
    largest_score: float = 0.0

    @property
    def limit(self) -> float:
        """The largest difference with which an export is kept."""
        return max(MOST_DIFFERENCE, MOST_SHARE * self.largest_score)

    def __str__(self) -> str:
        return (
            f'{len(self.sizes)} pictures: largest difference of scores {self.largest_difference:.2g} '
            f'(scores up to {self.largest_score:.2g}), {100 * self.same_labels:.4f} % of the pixels with the same label'
        )


def measure(reference: Sequence[np.ndarray], exported: Predict, pictures: Sequence[np.ndarray]) -> Parity:
    """Run the exported model on pictures and compare.

    Args:
        reference: Class scores of the model itself for each picture, (C, H, W).
        exported: The exported model.
        pictures: RGB, uint8, (H, W, 3) each.
    """
    parity = Parity()
    same = pixels = 0
    for wanted, picture in zip(reference, pictures):
        scores, labels = exported(picture)
        if scores.shape != wanted.shape or labels.shape != wanted.shape[1:]:
            raise console.UserError(f'the exported model gives scores of {scores.shape}, the model of {wanted.shape}')
        difference = float(np.abs(scores - wanted).max())
        # A comparison with NaN is false, so that it would not count.
        parity.largest_difference = max(parity.largest_difference, difference if difference == difference else np.inf)
        parity.largest_score = max(parity.largest_score, float(np.abs(wanted).max()))
        same += int((labels == wanted.argmax(0)).sum())
        pixels += labels.size
        parity.sizes.append((picture.shape[0], picture.shape[1]))
    parity.same_labels = same / pixels if pixels else 0.0
    return parity


def require(parity: Parity) -> None:
    """Refuse an export that does not compute what the model computes.

    Raises:
        console.UserError: A score differs by more than ``parity.limit``, or fewer than 99.99 % of the labels are equal.
    """
    if parity.largest_difference > parity.limit or parity.same_labels < LEAST_SAME:
        raise console.UserError(
            f'the exported model does not compute what the model computes: {parity}',
            f'limits: {parity.limit:.2g} and {100 * LEAST_SAME:g} %; the file was not kept',
        )


def write_report(path: Path, parity: Parity, settings: Dict[str, Any]) -> Path:
    """Write the report beside an exported file or folder.

    Args:
        path: The exported file or folder.
        parity: Its parity.
        settings: What was exported, and how.

    Returns:
        ``PATH.parity.json``.
    """
    versions = {'python': platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    report = {
        **settings,
        'pictures': len(parity.sizes),
        **asdict(parity),
        'limits': {'largest_difference': parity.limit, 'same_labels': LEAST_SAME},
        'versions': versions,
    }
    return files.write_text(path.with_name(f'{path.name}.parity.json'), json.dumps(report, indent=2) + '\n')
