"""Draws some pictures of a set with their labels, to see whether they fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Tuple

import numpy as np

from recipe.core import console, files
from recipe.data.sets import coding, pairs
from recipe.data.sets.file import IGNORED, DataSet

_ROWS = 6
_TILE = 480  # pixels


def draw(data: DataSet, path: Path) -> Path:
    """Draw pictures of the training split, labels in the colours of the classes, and both together.

    Args:
        data: The set.
        path: PNG to write.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    found = pairs.find(data.root, data.splits['train'], data.image_suffixes, data.label_suffix).pairs
    decoder = coding.Decoder(data.coding, data.codes, data.instances)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(data.palette)] = data.palette
    rows = []
    for pair in (found[number * len(found) // _ROWS] for number in range(_ROWS)) if len(found) > _ROWS else found:
        try:
            rows.append((pair.name, _tiles(pair, decoder, colours)))
        except (OSError, ValueError, console.UserError) as error:
            console.warn(f'not drawn: {pair.image}: {console.reason(error)}')
    if not rows:
        raise console.UserError(f'{data.root}: no picture of the training can be drawn with its label')
    height, width = np.mean([tiles[0].shape[:2] for _, tiles in rows], axis=0)
    figure = Figure(
        figsize=(15, (5 * height / width + 0.3) * len(rows) + 1 + len(data.names) / 20), layout='constrained'
    )
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(rows), 3, squeeze=False)
    for axis, title in zip(axes[0], ('picture', 'label (black: ignored)', 'both')):
        axis.set_title(title)
    for line, (name, tiles) in zip(axes, rows):
        for axis, tile in zip(line, tiles):
            axis.imshow(tile, interpolation='antialiased')
            axis.set_axis_off()
        line[0].text(0, -0.02, console.printable(name), transform=line[0].transAxes, fontsize='small', va='top')
    legend: List[Any] = [
        Patch(facecolor=_fractions(*one.colour), edgecolor='gray', label=console.printable(one.name))
        for one in data.trained
    ]
    figure.legend(handles=legend, loc='outside lower center', ncols=8, fontsize='small', frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as partial:
        figure.savefig(partial, dpi=80, format='png')
    return path


def _fractions(red: int, green: int, blue: int) -> Tuple[float, float, float]:
    return red / 255, green / 255, blue / 255


def _tiles(pair: pairs.Pair, decoder: coding.Decoder, colours: np.ndarray) -> List[np.ndarray]:
    from PIL import Image

    with Image.open(pair.image) as opened:
        opened.draft('RGB', (2 * _TILE, 2 * _TILE))  # a JPEG file is decoded only as large as needed
        photo = opened.convert('RGB')
    train_ids = decoder.read(pair.label)
    label = Image.fromarray(colours[train_ids])
    height, width = train_ids.shape
    scale = min(1.0, _TILE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    first, second = np.asarray(photo.resize(size)), np.asarray(label.resize(size, Image.Resampling.NEAREST))
    ids = Image.fromarray(train_ids).resize(size, Image.Resampling.NEAREST)
    both = np.where((np.asarray(ids) == IGNORED)[..., None], first // 2, first // 2 + second // 2)
    return [first, second, both]
