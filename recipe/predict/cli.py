"""Predicts pictures and videos with a trained model.

    python tools/predict.py street.png drive.mp4 --checkpoint RUN --out predicted
    python tools/predict.py 'frames/*.png' --checkpoint best.pth --out predicted --side_by_side --classes car,person
    find /data -name '*.jpg' | python tools/predict.py - --checkpoint best.pth --out predicted

Of street.png it makes street_overlay.png, and street_labels.png whose pixels are the classes; of drive.mp4 it makes
drive_overlay.mp4. What cannot be read is named and passed over; then the exit status is 66.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any, List, Optional, Sequence

from recipe.core import console, exit_status, imported_packages, inputs, run_folder
from recipe.core.inputs import integer


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='predict.py', description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('input', nargs='+', metavar='INPUT', help="file, folder or pattern; '-' reads a list from the standard input")
    add('--checkpoint', required=True, metavar='FILE|RUN', help='a checkpoint, or a run folder: its best checkpoint')
    add('--out', required=True, metavar='DIR', help='folder of the results; made if it is not there')
    add('--config', metavar='FILE', help='config of the training, if the checkpoint holds none; it runs as Python')
    add('--device', default='auto', help='auto, cpu, cuda or npu, or such as cuda:1 (default: auto)')
    add(
        '--batch_size',
        type=integer(1),
        default=1,
        metavar='N',
        help='pictures predicted together (default: 1)',
    )
    add('--classes', metavar='NAME,...', help='classes to colour in overlays, by name or number (default: all)')
    add('--opacity', type=_share, default=0.5, metavar='X', help='of the colours, 0 to 1 (default: 0.5)')
    add('--side_by_side', action='store_true', help='put the picture to the left of its overlay')
    add('--scores', action='store_true', help='also write the scores of pictures: float32 (classes, height, width)')
    add('--force', action='store_true', help='overwrite results that are there')
    add('--fast', type=int, choices=(0, 1), default=1, help="0 leaves upstream's modules in the model (default: 1)")
    add('--trust_checkpoint', action='store_true', help='load the checkpoint even if it could run code')
    return parser.parse_args(argv)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text} is not between 0 and 1')
    return value


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see the module's docstring.

    Returns:
        The exit status.
    """
    asked = parse(argv)
    if asked.trust_checkpoint:
        os.environ['MMSEG_TRUST_CHECKPOINT'] = '1'
    imported_packages.require()
    warnings.filterwarnings('ignore', message='torch.meshgrid')  # mmdet's code, nothing that a user can change
    from recipe.predict import sources

    out = inputs.absolute(asked.out)
    run_folder.require_writable(out, '--out')
    found = sources.find(asked.input, sys.stdin, out)
    return _predict(asked, found, out)


def _predict(asked: argparse.Namespace, found: List[Any], out: Path) -> int:
    from recipe.predict import drawing, video
    from recipe.predict.predictions import Outputs, Predictor
    from recipe.predict.trained_model import load_trained_model

    outputs = Outputs(out, asked.scores)
    if not asked.force:
        _require_unused([path for source in found for path in outputs.of(source)])
    for source in found:
        if source.is_video:
            video.require(source.path)
            break
    trained = load_trained_model(asked.checkpoint, asked.device, asked.config, bool(asked.fast))
    shown = None if asked.classes is None else _shown(asked.classes, trained.classes)
    overlay = drawing.Overlay(trained.palette, asked.opacity, shown, asked.side_by_side)
    predictor = Predictor(trained, outputs, overlay, asked.batch_size)
    predictor.run(found)
    parts = [f'{predictor.pictures} pictures'] * bool(predictor.pictures or not predictor.frames)
    parts += [f'{predictor.frames} frames of videos'] * bool(predictor.frames)
    console.say(
        f'{out}: {" and ".join(parts)} predicted, {predictor.rate:.2f} images/s with reading and writing'
        + (f'; {predictor.unreadable} files passed over' if predictor.unreadable else '')
    )
    return exit_status.UNREADABLE if predictor.unreadable else 0


def _require_unused(paths: Sequence[Path]) -> None:
    there = [path for path in paths if os.path.lexists(path)]
    if there:
        more = f' (and {len(there) - 1} more)' if there[1:] else ''
        raise console.UserError(f'--out: {there[0]} is there already{more}', 'give another --out, or --force')


def _shown(asked: str, classes: Sequence[str]) -> Any:
    """Which classes are coloured, as a bool array."""
    import numpy as np

    shown = np.zeros(len(classes), bool)
    for name in filter(None, (part.strip() for part in asked.split(','))):
        if name.isdigit() and int(name) < len(classes):
            shown[int(name)] = True
        elif name in classes:
            shown[list(classes).index(name)] = True
        else:
            raise console.UserError(
                f'--classes: there is no class {name}', f'give some of {", ".join(classes)}, or their numbers'
            )
    if not shown.any():
        raise console.UserError('--classes names no class', f'give some of {", ".join(classes)}')
    return shown
