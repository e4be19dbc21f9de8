"""Draws the confusion matrix, and the worst pictures beside their labels and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Sequence, Tuple

import numpy as np
from matplotlib import pyplot
from matplotlib.patches import Patch
from PIL import Image

from recipe.evaluate.classes import ClassSet
from recipe.evaluate.counts import read_labels, read_prediction
from recipe.evaluate.pictures import Picture
from recipe.report.plot import TILE_WIDTH, save


def confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix: how the pixels of each class were predicted, in percent.

    Args:
        counts: (C, C), true class first.
        names: Of the classes.
        path: PNG to write.
    """
    total = counts.sum(1)
    share = np.full(counts.shape, np.nan)
    np.divide(100.0 * counts, total[:, None], out=share, where=total[:, None] > 0)
    side = max(11.0, 0.45 * len(counts))  # inches; Cityscapes' 19 classes fit into 11
    figure, axis = pyplot.subplots(figsize=(side + 2, side), layout='constrained')
    colors = pyplot.get_cmap('Blues').with_extremes(bad='whitesmoke')
    image = axis.imshow(share, cmap=colors, vmin=0, vmax=100)
    ticks = range(len(counts))
    axis.set_xticks(ticks, names, rotation=45, ha='right')
    axis.set_yticks(ticks, [f'{name} ({_short(pixels)})' for name, pixels in zip(names, total.tolist())])
    axis.set_xlabel('predicted class')
    axis.set_ylabel('true class (pixels); grey: it does not occur')
    axis.set_title('How the pixels of each class were predicted (%)')
    for row, values in enumerate(share):
        for column, value in enumerate(values):
            if value >= 0.5:
                color = 'white' if value > 60 else 'black'
                axis.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize='small', color=color)
    figure.colorbar(image, label='% of the pixels of the true class', shrink=0.8)
    return save(figure, path, 100)


def _short(pixels: int) -> str:
    """Such as ``12.3 M``."""
    for unit, size in (('G', 10**9), ('M', 10**6), ('k', 10**3)):
        if pixels >= size:
            return f'{pixels / size:.3g} {unit}'
    return str(pixels)


def worst(rows: List[Tuple[Picture, float]], of: ClassSet, predictions: Path, path: Path) -> Path:
    """Draw pictures beside their labels and predictions.

    Args:
        rows: Pictures and their mIoU as a fraction.
        of: The classes.
        predictions: Folder of the predictions.
        path: PNG to write.
    """
    tiles = [_tiles(picture, of, predictions) for picture, _ in rows]
    height, width = tiles[0][0].shape[:2]
    figure, axes = pyplot.subplots(
        len(rows), 3, figsize=(15, (5 * height / width + 0.35) * len(rows) + 1.5), layout='constrained', squeeze=False
    )
    figure.suptitle(f'The {len(rows)} pictures with the lowest mIoU')
    for axis, title in zip(axes[0], ('picture', 'labels (black: ignored)', 'prediction')):
        axis.set_title(title)
    for line, (picture, value), images in zip(axes, rows, tiles):
        for axis, image in zip(line, images):
            axis.imshow(image, interpolation='antialiased')
            axis.set_axis_off()
        text = f'{picture.name}: mIoU {100 * value:.1f} %'
        line[0].text(0, -0.02, text, transform=line[0].transAxes, fontsize='small', va='top')
    legend: List[Any] = [
        Patch(color=(of.colour_table[one] / 255.0).tolist(), label=name) for one, name in enumerate(of.names)
    ]
    figure.legend(handles=legend, loc='outside lower center', ncols=10, fontsize='small', frameon=False)
    return save(figure, path, 100)


def _tiles(picture: Picture, of: ClassSet, predictions: Path) -> List[np.ndarray]:
    """Picture, labels and prediction in colours, uint8 (height, width, 3)."""
    with Image.open(picture.path) as opened:
        photo = opened.convert('RGB')
    maps = [read_labels(picture.labels, of), read_prediction(str(predictions / picture.name), of)]
    images = [photo, *(Image.fromarray(of.colour_table[one]) for one in maps)]
    for image in images:
        image.thumbnail((TILE_WIDTH, TILE_WIDTH))
    return [np.asarray(image) for image in images]
