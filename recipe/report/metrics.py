"""Figures of a training run: mIoU, speed, memory, losses, as result.json, pictures and the legacy lines.

    python tools/metrics.py RUN

RUN is a run folder of the launchers, a work_dir of plain mmsegmentation, or one mmengine log (scalars.json or text).
The exit status is 0 only if every required figure is there and none is NaN; the "Final" lines are printed only then.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any, List, Optional, Sequence

from recipe.core import console, files, imported_packages, paths
from recipe.report import legacy
from recipe.report.collect import FIGURES, REQUIRED, collect
from recipe.report.result import Result


def legacy_lines(result: Result) -> List[str]:
    """The lines that tools grep for, of a complete training only; a figure that was not measured is left out."""
    return legacy.lines(result) if result.complete else []


def write_legacy(result: Result, folder: Path, mode: str = 'full', network: str = 'mask2former_swin') -> List[Path]:
    """Write the legacy files.

    Args:
        result: Of a complete training with FPS and E2E duration.
        folder: Made if it does not exist.
        mode: ``full`` or ``performance``.
        network: First part of the file names.

    Returns:
        The files of each case name: figures, losses.

    Raises:
        UserError: A figure that these files must hold is missing.
    """
    missing = [
        name
        for name in ('fps_images_per_s', 'e2e_duration_s', 'loss_final') + ('miou_last_percent',) * (mode == 'full')
        if getattr(result, name) is None
    ]
    if missing or not result.complete:
        raise console.UserError(
            f'no legacy files for {result.run_name}: '
            + (f'missing {", ".join(missing)}: give the run folder' if missing else 'the training is incomplete')
        )
    return [
        files.write_text(folder / name, text)
        for case in legacy.case_names(result, network, mode)
        for name, text in (
            (f'{case}.log', legacy.figures(result, network, case)),
            (f'train_{case}_loss.txt', _loss_text(result)),
        )
    ]


def write(result: Result, folder: Path, pictures: bool = True) -> List[Path]:
    """Write result.json, loss.txt, curves.png and predictions.png.

    Args:
        result: From ``collect``.
        folder: Made if it does not exist.
        pictures: Whether to draw the two pictures.

    Returns:
        The files written. A picture that cannot be drawn is a warning.
    """
    written = [
        files.write_text(folder / 'result.json', _json_text(result)),
        files.write_text(folder / 'loss.txt', _loss_text(result)),
    ]
    if not pictures or result.run is None:
        return written
    try:
        from recipe.report import plot
    except ImportError as error:
        console.warn(f'no pictures: {error}: pip install matplotlib')
        return written
    written.append(plot.curves(result, folder / 'curves.png'))
    sheet = plot.predictions(result, folder / 'predictions.png')
    return written + ([sheet] if sheet else [])


def summary(result: Result) -> List[str]:
    """The figures for people, one line each."""
    planned = f' of {result.iters_planned}' if result.iters_planned else ''
    state = 'complete' if result.complete else 'INCOMPLETE'
    lines = [f'run          {result.run_name}: {state}, {result.iters_done}{planned} iterations']
    if result.early_stop_iter is not None:
        lines[0] += ', stopped early because mIoU did not improve'
    if result.resumed_at_iter:
        lines[0] += f', resumed after {", ".join(map(str, result.resumed_at_iter))}'
    if result.miou_last_percent is not None:
        lines.append(
            f'mIoU         {result.miou_last_percent:.2f} % at iteration {result.miou_last_iter}, '
            f'best {result.miou_best_percent:.2f} % at {result.miou_best_iter}'
        )
    if result.macc_last_percent is not None and result.aacc_last_percent is not None:
        lines.append(f'accuracy     mAcc {result.macc_last_percent:.2f} %, aAcc {result.aacc_last_percent:.2f} %')
    occurring = {name: iou for name, iou in result.class_iou_last_percent.items() if iou is not None}
    for name, iou in sorted(occurring.items(), key=lambda item: -item[1]):
        lines.append(f'  IoU        {name}: {iou:.2f} %')
    if result.fps_window is not None:
        accumulated = f', {result.accumulate} accumulated batches' if result.accumulate > 1 else ''
        lines += [
            f'FPS          {result.fps_images_per_s:.2f} images/s ({result.world_size} processes x '
            f'{result.batch_size_per_card} images{accumulated})',
            f'  window     {result.fps_window}',
            f'step time    p50 {result.step_time_p50_s:.4f} s, p95 {result.step_time_p95_s:.4f} s',
        ]
    if result.fps_logged_mean_images_per_s is not None:
        lines.append(
            f'  logged     {result.fps_logged_mean_images_per_s:.2f} images/s by the mean of all logged times, warm-up '
            "included, as Ascend's scripts compute it"
        )
    if result.num_points is not None:
        lines.append(f'points       {result.num_points} of each mask in the losses')
    if result.data_time_mean_s is not None:
        lines.append(f'data time    mean {result.data_time_mean_s:.4f} s, p95 {result.data_time_p95_s:.4f} s')
    if result.memory_peak_mb is not None:
        lines.append(f'peak memory  {result.memory_peak_mb:.0f} MB on the card of rank 0')
    if result.loss_final is not None:
        lines.append(f'loss         {result.loss_final:.4f} at iteration {result.loss_final_iter}')
    if result.e2e_duration_s is not None:
        lines.append(f'duration     {result.e2e_duration_s:.0f} s')
    return lines


def _json_text(result: Result) -> str:
    text = json.dumps(result.as_dict(), indent=2, allow_nan=False)
    # Pairs of numbers go on one line: a curve of 1800 points is for plotting, not for reading.
    return re.sub(r'\[\s+([^][{}"]+?)\s+\]', lambda pair: f'[{" ".join(pair[1].split())}]', text) + '\n'


def _loss_text(result: Result) -> str:
    return ''.join(f'{loss:.4f}\n' for _, loss in result.loss_curve)


def _positive(kind: type) -> Any:
    def read(text: str) -> Any:
        value = kind(text)
        if not value > 0 or value == math.inf:
            raise ValueError(text)
        return value

    read.__name__ = f'positive {kind.__name__}'
    return read


def _figures(text: str) -> List[str]:
    names = [name.strip() for name in text.split(',') if name.strip()]
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise argparse.ArgumentTypeError(f'unknown figure {unknown[0]!r}, choose from {",".join(FIGURES)}')
    return names


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('run', type=Path, metavar='RUN', help='run folder or mmengine log')
    parser.add_argument('--mode', choices=sorted(REQUIRED), default='full', help='default of --require; legacy names')
    parser.add_argument(
        '--require',
        type=_figures,
        help=f'figures that must be there, of {",".join(FIGURES)} (default: fps,miou; performance mode: fps)',
    )
    parser.add_argument('--batch_size', type=_positive(int), help='images per card, where the log does not tell')
    parser.add_argument('--nproc', type=_positive(int), help='processes, where the log does not tell')
    parser.add_argument('--e2e_duration_s', type=_positive(float), help='measured duration of the last start, seconds')
    parser.add_argument('--partial', action='store_true', help='accept an unfinished training (no "Final" lines)')
    parser.add_argument(
        '--out_dir',
        type=Path,
        help='where to write (default: the run folder; for a log, a new folder <log>_metrics beside it)',
    )
    parser.add_argument('--no_pictures', action='store_true', help='skip curves.png and predictions.png')
    parser.add_argument(
        '--legacy', metavar='NAME', help='also write the legacy files of network NAME, e.g. mask2former_swin'
    )
    parser.add_argument(
        '--legacy_dir',
        type=Path,
        default=paths.OUTPUT,
        help='where to write them (default: test/output)',
    )
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the tool."""
    args = parse(argv)
    imported_packages.require(checkouts=False)
    result = collect(
        args.run,
        REQUIRED[args.mode] if args.require is None else args.require,
        args.batch_size,
        args.nproc,
        args.e2e_duration_s,
        args.partial,
    )
    for warning in result.warnings:
        console.warn(warning)
    out_dir = args.out_dir or (args.run if args.run.is_dir() else args.run.with_name(f'{args.run.stem}_metrics'))
    written = write(result, out_dir, not args.no_pictures)
    if args.legacy:
        written += write_legacy(result, args.legacy_dir, args.mode, args.legacy)
    for line in summary(result):
        console.say(line)
    for path in written:
        console.say(f'wrote        {path}')
    for line in legacy_lines(result):
        console.say(line)
    return 0
