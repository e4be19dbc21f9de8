"""Exports a trained model, or makes a checkpoint from a model of another trainer.

    python tools/export.py --checkpoint RUN --format=onnx --out model.onnx
    python tools/export.py --checkpoint best.pth --format=pt2 --out model.pt2 --size=512x1024
    python tools/export.py --checkpoint best.pth --format=safetensors --out model.safetensors
    python tools/export.py --checkpoint best.pth --format=huggingface --out FOLDER
    python tools/export.py --from=huggingface --checkpoint FOLDER --out model.pth
    python tools/export.py --from=facebook --checkpoint model_final.pkl --out model.pth

An export is kept only if it computes what the model computes; OUT.parity.json says how far they agree.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any, Iterator, List, NoReturn, Optional, Sequence, Tuple

from recipe.core import console, files, imported_packages, inputs
from recipe.core.inputs import integer
from recipe.export import libraries

FORMATS = {'onnx': '.onnx', 'pt2': '.pt2', 'safetensors': '.safetensors', 'huggingface': ''}
TRAINERS = ('huggingface', 'facebook')
_SIDES = (32, 8192)  # pixels
FREE = (0, 0)  # size of any picture
_OPSETS = (17, 20)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise console.UserError(re.sub('^argument ', '', message), '--help lists the options', console.EXIT_USAGE)


def _size(text: str) -> Tuple[int, int]:
    """Read HEIGHTxWIDTH as two numbers, and free as zeros."""
    if text == 'free':
        return FREE
    found = re.fullmatch(r'([0-9]{1,5})x([0-9]{1,5})', text)
    sides = tuple(map(int, found.groups())) if found else ()
    if len(sides) != 2 or not all(_SIDES[0] <= side <= _SIDES[1] for side in sides):
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither free nor HEIGHTxWIDTH with sides of {_SIDES[0]} to {_SIDES[1]}, such as 512x1024'
        )
    return sides[0], sides[1]


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--checkpoint', required=True, metavar='FILE|RUN', help='trained model; a run means its best checkpoint')
    add('--out', required=True, metavar='FILE|DIR', help='what to write; a folder for huggingface')
    add('--format', choices=tuple(FORMATS), help='format to export to')
    add('--from', dest='trainer', choices=TRAINERS, help='make a checkpoint of ours from this trainer instead')
    add('--config', metavar='FILE', help='config of the training, if the checkpoint holds none; runs as Python')
    add('--size', type=_size, metavar='HxW|free', help="height and width (onnx: free; pt2: the training's crops)")
    for name, text in (('preprocess', 'normalisation and padding'), ('postprocess', 'choice of the labels')):
        add(f'--{name}', choices=('inside', 'outside'), default='inside', help=f'onnx, pt2: {text} (inside)')
    add(
        '--opset',
        type=integer(*_OPSETS),
        default=17,
        metavar='N',
        help="onnx: version of ONNX's operators (17)",
    )
    add('--pictures', nargs='+', metavar='FILE', help='pictures to compare on (the recipe draws street scenes)')
    add(
        '--parity_pictures',
        type=integer(1, 1000),
        default=4,
        metavar='N',
        help='how many scenes it draws (4)',
    )
    add('--force', action='store_true', help='replace OUT if it exists')
    add('--trust_checkpoint', action='store_true', help='load the checkpoint even if it could run code')
    asked = parser.parse_args(argv)
    if (asked.format is None) == (asked.trainer is None):
        raise console.UserError('give either --format or --from', '--help lists the options', console.EXIT_USAGE)
    if asked.format == 'pt2' and asked.size == FREE:
        raise console.UserError(
            '--size=free: torch.export cannot keep height and width free',
            'give --size=HEIGHTxWIDTH, or --format=onnx',
            console.EXIT_USAGE,
        )
    if asked.preprocess == 'outside' and asked.size and any(side % 32 for side in asked.size):
        raise console.UserError(
            f'--size={asked.size[0]}x{asked.size[1]}: without padding inside, sides are multiples of 32',
            'give --preprocess=inside, or other sides',
            console.EXIT_USAGE,
        )
    return asked


def _require_out(asked: argparse.Namespace) -> Path:
    """The path to write to, if nothing is in the way.

    Raises:
        console.UserError: It exists, has another suffix, or its folder cannot be written to.
    """
    out = inputs.absolute(asked.out)
    suffix = FORMATS[asked.format] if asked.format else '.pth'
    if out.suffix != suffix and suffix:
        raise console.UserError(f'--out: {out} does not end with {suffix}', 'give another name', console.EXIT_USAGE)
    if out.is_dir() and suffix:
        raise console.UserError(f'--out: {out} is a folder', 'give a file')
    if out.is_file() and not suffix:
        raise console.UserError(f'--out: {out} is a file', 'give a folder')
    if out.is_dir() and any(out.iterdir()) and not (out / 'preprocessor_config.json').is_file():
        raise console.UserError(f'--out: {out} holds files that no export wrote', 'give a new folder')
    if out.exists() and not asked.force:
        raise console.UserError(f'--out: {out} exists', 'give another one, or --force to replace it')
    if not out.parent.is_dir():
        raise console.UserError(f'--out: there is no folder {out.parent}', 'make it, or give another one')
    if not os.access(str(out.parent), os.W_OK):
        raise console.UserError(f'--out: {out.parent} cannot be written to', 'give another one')
    return out


def _pictures(asked: argparse.Namespace, size: Optional[Tuple[int, int]], crop: Tuple[int, int]) -> List[Any]:
    """Pictures to compare on, RGB, uint8, (H, W, 3): the user's, or street scenes.

    Args:
        asked: The options.
        size: Height and width that the exported model takes; None: any.
        crop: Height and width of the training's crops.
    """
    from recipe.data import scenes

    if asked.pictures:
        return [_picture(name, size) for name in asked.pictures]
    made = []
    for index in range(asked.parity_pictures):
        height, width = size or crop
        if size is None and index % 2:  # another size, which needs padding
            height, width = height // 2 + 45, width // 2 + 26
        made.append(scenes.render(0, 'val', index, max(width, 64), max(height, 64)).image)
    return made


def _picture(name: str, size: Optional[Tuple[int, int]]) -> Any:
    import numpy as np
    from PIL import Image

    path = inputs.require_file('--pictures', name)
    try:
        with Image.open(path) as opened:
            picture = opened.convert('RGB')
            return np.asarray(picture.resize((size[1], size[0])) if size else picture).copy()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise console.UserError(f'--pictures: {path} cannot be read: {error}', 'leave it out') from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the libraries say about their own work."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(
            io.StringIO()
        ), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


def export(asked: argparse.Namespace, out: Path) -> None:
    """Export a trained model and write the report of its parity.

    Raises:
        console.UserError: The model cannot be exported, or the export does not compute what the model computes.
    """
    from recipe.export import formats, huggingface, parity
    from recipe.predict.trained_model import load_trained_model

    trained = load_trained_model(asked.checkpoint, 'cpu', asked.config, fast=False)
    if type(trained.model.decode_head).__name__ != 'Mask2FormerHead':
        raise console.UserError(f'{trained.path} is no Mask2Former', 'only Mask2Former is exported')
    crop = tuple(trained.model.data_preprocessor.size or (512, 1024))
    size = asked.size or (crop if asked.format == 'pt2' else FREE)
    size = None if size == FREE else size
    pictures = _pictures(asked, size, crop)
    console.say(f'compares on {len(pictures)} pictures')
    reference = [formats.scores_of(trained, picture) for picture in pictures]
    shape = formats.Shape(size, asked.preprocess == 'inside', asked.postprocess == 'inside', asked.opset)
    write, read = {
        'onnx': (formats.write_onnx, formats.read_onnx),
        'pt2': (formats.write_pt2, formats.read_pt2),
        'safetensors': (formats.write_safetensors, formats.read_safetensors),
        'huggingface': (huggingface.write, huggingface.read),
    }[asked.format]
    whole = files.whole if FORMATS[asked.format] else files.whole_folder
    with whole(out) as partial:
        try:
            with _quiet():
                write(trained, partial, shape)
                found = parity.measure(reference, read(trained, partial, shape), pictures)
        except (console.UserError, OSError, MemoryError):
            raise
        except Exception as error:  # exporters and runtimes raise errors of many kinds
            reason = ' '.join(str(error).split())[:300]
            raise console.UserError(
                f'--format={asked.format}: this model cannot be exported: {type(error).__name__}: {reason}'
            ) from None
        parity.require(found)
        parity.write_report(out, found, _settings(asked, trained, shape))
    console.say(f'parity   {found}')
    console.say(f'wrote    {out}')


def _settings(asked: argparse.Namespace, trained: Any, shape: Any) -> Any:
    settings = {'format': asked.format, 'checkpoint': str(trained.path), 'classes': len(trained.classes)}
    if asked.format in ('onnx', 'pt2'):
        size = list(shape.size) if shape.size else 'free'
        settings.update(size=size, preprocess=asked.preprocess, postprocess=asked.postprocess)
    if asked.format == 'onnx':
        settings['opset'] = shape.opset
    return settings


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry point; see the module's docstring."""
    asked = parse(argv)
    if asked.trust_checkpoint:
        os.environ['MMSEG_TRUST_CHECKPOINT'] = '1'
    out = _require_out(asked)
    if asked.trainer:
        from recipe.export import convert

        imported_packages.require()
        source = inputs.absolute(asked.checkpoint)
        source = source if source.is_dir() else inputs.require_file('--checkpoint', str(source))
        with _quiet():
            account = convert.convert(source, asked.trainer, out)
        console.say(f'keys     {account}')
        console.say(f'wrote    {out}')
        return
    libraries.require(f'--format={asked.format}', *libraries.NEEDED[asked.format])
    imported_packages.require()
    if asked.format == 'pt2':
        libraries.require_exporter()
    export(asked, out)
