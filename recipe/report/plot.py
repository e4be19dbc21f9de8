"""Plots a run: curves over the iterations, and predictions beside their ground truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import matplotlib

from recipe.core import files

matplotlib.use('Agg')
import numpy
from matplotlib import pyplot
from matplotlib.patches import Patch
from PIL import Image

from recipe.core import config_text, console
from recipe.data.sets import pairs
from recipe.data.sets.file import split_of
from recipe.report.result import MOST_CURVE_POINTS, Result
from recipe.report.run import Run

matplotlib.rcdefaults()  # ignores the user's matplotlibrc, such as text.usetex, which needs LaTeX
matplotlib.rcParams['text.parse_math'] = False  # a dollar in the name of a class or a run is a dollar

MAX_ROWS = 8
TILE_WIDTH = 640  # pixels; Cityscapes' 2048 would make a sheet of 100 MB in memory
# mmseg's SegVisualizationHook: <mode>_<image file name>_<iteration>.png
_PICTURE = re.compile(r'^val_(?P<image>.+)_(?P<iter>\d+)\.png$')
# Losses of earlier decoder layers have d0, d1 ... in their names; the last layer's do not.
_EARLIER_LAYER = re.compile(r'(^|\.)d\d+\.')


class Picture(NamedTuple):
    """A picture saved by validation: ground truth left, prediction right."""

    path: Path
    image: str
    iter: int


def _run_of(result: Result) -> Run:
    assert result.run is not None, 'collect leaves the run in its result'
    return result.run


def curves(result: Result, path: Path) -> Path:
    """Draw losses, learning rate, mIoU and step time over the iterations.

    Args:
        result: From ``metrics.collect``.
        path: PNG to write.
    """
    run = _run_of(result)
    figure, axes = pyplot.subplots(2, 2, figsize=(14, 9), layout='constrained')
    state = '' if result.complete else f' (stopped at {result.iters_done} of {result.iters_planned})'
    figure.suptitle(console.printable(f'{result.run_name}{state}'))
    _draw_losses(axes[0][0], run.points.detailed())
    _draw_learning_rate(axes[0][1], result.learning_rate_curve)
    _draw_miou(axes[1][0], run.validations, result)
    _draw_step_time(axes[1][1], result)
    for axis in axes.flat:
        axis.set_xlabel('iteration')
        axis.grid(alpha=0.3)
        axis.set_xlim(0, max(result.iters_done, 1) * 1.02)
        for number, at in enumerate(result.resumed_at_iter):
            axis.axvline(at, color='black', linestyle=':', linewidth=1, label='resumed' if number == 0 else None)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize='small', ncols=2 if axis is axes[1][1] else 1)
    return save(figure, path, 110)


def predictions(result: Result, path: Path) -> Optional[Path]:
    """Compose image, ground truth and prediction of the last validation.

    The image column is there only if the data set is still where the config says.

    Args:
        result: From ``metrics.collect``.
        path: PNG to write.

    Returns:
        The path, or None, after a warning, if validation saved no picture.
    """
    found = _last_pictures(result)
    rows = [row for row in (_row(picture, result) for picture in _spread(found)) if row]
    if not rows:
        console.warn(
            f'no predictions.png: validation of {result.run_name} saved no picture '
            '(default_hooks.visualization.draw=True)'
        )
        return None
    names = [name for name in ('image', 'ground truth', 'prediction') if all(name in tiles for _, tiles in rows)]
    height, width = rows[0][1]['prediction'].shape[:2]
    column = 5.0
    legend = _legend(result)
    figure, axes = pyplot.subplots(
        len(rows),
        len(names),
        figsize=(column * len(names), (column * height / width + 0.3) * len(rows) + (1.2 if legend else 0.5)),
        layout='constrained',
        squeeze=False,
    )
    accuracy = '' if result.miou_last_percent is None else f', mIoU {result.miou_last_percent:.2f} %'
    name = console.printable(result.run_name)
    figure.suptitle(f'{name}, validation at iteration {rows[0][0].iter}{accuracy}')
    for number, (picture, tiles) in enumerate(rows):
        for axis, name in zip(axes[number], names):
            axis.imshow(tiles[name], interpolation='antialiased')
            axis.set_axis_off()
            if number == 0:
                axis.set_title(name)
        axes[number][0].text(
            0,
            -0.02,
            console.printable(picture.image),
            transform=axes[number][0].transAxes,
            fontsize='x-small',
            va='top',
        )
    if legend:
        figure.legend(handles=legend, loc='outside lower center', ncols=7, fontsize='small', frameon=False)
    return save(figure, path, 130)


def _draw_losses(axis: Any, points: List[Any]) -> None:
    axis.set_title('training loss (mean over the log window)')
    axis.set_ylabel('loss')
    if not points:
        return _note(axis)
    iters = [point.iter for point in points]
    axis.plot(iters, [point.loss for point in points], color='black', linewidth=1.6, label='total')
    for name in points[0].terms:
        if not _EARLIER_LAYER.search(name):
            axis.plot(
                iters,
                [point.terms.get(name, numpy.nan) for point in points],
                linewidth=1,
                label=console.printable(name),
            )
    axis.set_ylim(bottom=0)
    return None


def _draw_learning_rate(axis: Any, curve: List[Tuple[int, float]]) -> None:
    axis.set_title('base learning rate')
    axis.set_ylabel('learning rate')
    if not curve:
        return _note(axis)
    axis.plot(*zip(*curve), color='tab:purple')
    axis.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    axis.set_ylim(bottom=0)
    return None


def _draw_miou(axis: Any, validations: List[Any], result: Result) -> None:
    axis.set_title('validation')
    axis.set_ylabel('percent')
    if not validations:
        return _note(axis)
    for label, attribute, style in (
        ('aAcc', 'aacc_percent', {'color': 'silver'}),
        ('mAcc', 'macc_percent', {'color': 'tab:orange', 'linewidth': 1}),
        ('mIoU', 'miou_percent', {'color': 'tab:blue', 'linewidth': 2}),
    ):
        known = [(item.iter, getattr(item, attribute)) for item in validations if getattr(item, attribute) is not None]
        if known:
            axis.plot(*zip(*known), marker='o', markersize=4, label=label, **style)
    if result.miou_best_percent is not None:
        axis.plot(
            result.miou_best_iter,
            result.miou_best_percent,
            marker='*',
            markersize=14,
            color='tab:red',
            linestyle='none',
            label=f'best mIoU {result.miou_best_percent:.2f} at {result.miou_best_iter}',
        )
    axis.set_ylim(0, 100)
    return None


def _draw_step_time(axis: Any, result: Result) -> None:
    run = _run_of(result)
    steps = run.steps
    axis.set_title('step time' if steps else 'step time (mean over the log window)')
    axis.set_ylabel('seconds')
    times = [(step.iter, step.step_s) for step in steps] or run.points.pairs('step_s', MOST_CURVE_POINTS)
    if not times:
        return _note(axis)
    iters, seconds = (numpy.array(column) for column in zip(*times))
    axis.plot(iters, seconds, '.', markersize=3, color='tab:gray', label='step')
    # One slow step (the first one compiles) would flatten the rest of the curve.
    top = 1.15 * float(numpy.percentile(seconds, 98)) if len(seconds) > 20 else 1.15 * float(seconds.max())
    above = int((seconds > top).sum())
    for label, value, color in (
        ('p50', result.step_time_p50_s, 'tab:green'),
        ('p95', result.step_time_p95_s, 'tab:red'),
    ):
        if value is not None:
            axis.axhline(value, color=color, linewidth=1.2, label=f'{label} {value:.3g} s')
            top = max(top, 1.15 * value)
    for number, (first, last) in enumerate(result.fps_window.warm_up_iters if result.fps_window else ()):
        only_once = 'warm-up, not in the figures' if number == 0 else None
        axis.axvspan(first - 0.5, last + 0.5, color='gold', alpha=0.25, linewidth=0, label=only_once)
    if above:
        axis.plot([], [], linestyle='none', label=f'{above} slower step(s) above, max {seconds.max():.3g} s')
    axis.set_ylim(0, 1.3 * top)  # room for the legend above the points
    return None


def _note(axis: Any) -> None:
    axis.text(0.5, 0.5, 'not logged', transform=axis.transAxes, ha='center', va='center', color='gray')


def _last_pictures(result: Result) -> List[Picture]:
    """Pictures of the last validation that saved any."""
    for start in reversed(_run_of(result).starts):
        if start.images is None:
            continue
        found = []
        for file in start.images.iterdir():
            name = _PICTURE.match(file.name)
            if name and int(name['iter']) <= result.iters_done:
                found.append(Picture(file, name['image'], int(name['iter'])))
        if found:
            last = max(picture.iter for picture in found)
            return sorted(picture for picture in found if picture.iter == last)
    return []


def _spread(pictures: List[Picture]) -> List[Picture]:
    """At most ``MAX_ROWS`` pictures, evenly spread, so that several cities are shown."""
    count = min(MAX_ROWS, len(pictures))
    return [pictures[index * len(pictures) // count] for index in range(count)]


def _row(picture: Picture, result: Result) -> Optional[Tuple[Picture, Dict[str, numpy.ndarray]]]:
    """Tiles of one picture by column, uint8 (height, width, 3); None, after a warning, if it is unreadable."""
    try:
        with Image.open(picture.path) as opened:
            both = opened.convert('RGB')
        if both.width < 2:
            raise ValueError(f'it is {both.width} pixel wide')
    except Exception as error:  # a damaged picture raises errors of many kinds
        console.warn(f'{picture.path} cannot be read: {console.reason(error)}')
        return None
    half = both.width // 2
    tiles = {
        'ground truth': both.crop((0, 0, half, both.height)),
        'prediction': both.crop((half, 0, 2 * half, both.height)),
    }
    source = _source_image(picture.image, result)
    if source is not None:
        try:
            with Image.open(source) as opened:
                tiles['image'] = opened.convert('RGB').resize((half, both.height))
        except Exception as error:
            console.warn(f'{source} cannot be read: {console.reason(error)}')
    for tile in tiles.values():
        tile.thumbnail((TILE_WIDTH, TILE_WIDTH))
    return picture, {name: numpy.asarray(tile) for name, tile in tiles.items()}


def _source_image(name: str, result: Result) -> Optional[Path]:
    """The source image of a picture, if the config's validation set is still there."""
    config = _run_of(result).starts[-1].config
    if config_text.lookup(config, 'val_dataloader.dataset.type') == 'FileDataset':
        return _image_of_file_dataset(name, config_text.lookup(config, 'val_dataloader.dataset'))
    root = config_text.lookup(config, 'val_dataloader.dataset.data_root')
    below = config_text.lookup(config, 'val_dataloader.dataset.data_prefix.img_path')
    if not isinstance(root, str) or not isinstance(below, str):
        return None
    folder = Path(root) / below
    # Cityscapes has one folder for each city, whose name begins the file name; other sets have none.
    for candidate in (folder / name.split('_')[0] / name, folder / name):
        if candidate.is_file():
            return candidate
    return None


def _image_of_file_dataset(name: str, dataset: Any) -> Optional[Path]:
    """The picture of a name in the set of a dataset.json, if the set is still there and has one of this name."""
    try:
        split = split_of(dataset['split'])
        found = pairs.find(Path(dataset['data_root']), split, dataset['image_suffixes'], dataset['label_suffix']).pairs
    except (OSError, LookupError, TypeError, AttributeError, console.UserError):  # a config of unknown origin
        return None
    named = [Path(pair.image) for pair in found if Path(pair.image).name == name]
    return named[0] if len(named) == 1 else None


def _legend(result: Result) -> List[Any]:
    """Colours of the classes, if the config names them or they are Cityscapes' own."""
    palette = _palette(result)
    if palette:
        return [
            Patch(color=_as_fractions(*palette[name]), label=name if iou is None else f'{name} {iou:.1f} %')
            for name, iou in result.class_iou_last_percent.items()
        ]
    try:
        from cityscapesscripts.helpers.labels import name2label
    except ImportError:
        return []
    names = list(result.class_iou_last_percent)
    if not names or any(name not in name2label for name in names):
        return []
    return [
        Patch(
            color=_as_fractions(*name2label[name].color),
            label=name if iou is None else f'{name} {iou:.1f} %',
        )
        for name, iou in result.class_iou_last_percent.items()
    ]


def _palette(result: Result) -> Dict[str, Tuple[int, int, int]]:
    """Colours by the name of the class from the config of the run; empty if it does not name them all."""
    facts = config_text.lookup(_run_of(result).starts[-1].config, 'val_dataloader.dataset.metainfo')
    names, colours = (facts.get(key) if isinstance(facts, dict) else None for key in ('classes', 'palette'))
    if not isinstance(names, list) or not isinstance(colours, list):
        return {}
    known = {
        name: (red, green, blue)
        for name, (red, green, blue) in zip(names, filter(_is_colour, colours))
        if isinstance(name, str)
    }
    return known if known and set(result.class_iou_last_percent) <= set(known) else {}


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value)


def _as_fractions(red: int, green: int, blue: int) -> Tuple[float, float, float]:
    return red / 255, green / 255, blue / 255


def save(figure: Any, path: Path, dpi: int) -> Path:
    """Write a figure as a PNG, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as partial:
        figure.savefig(partial, dpi=dpi, format='png', pil_kwargs={'compress_level': 1})
    pyplot.close(figure)
    return path
