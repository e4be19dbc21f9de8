"""The archive for Cityscapes' test server: one PNG of label ids for each picture, under the picture's name."""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np

from recipe.core import console, files
from recipe.evaluate import classes
from recipe.evaluate.pictures import Picture, size


def write(archive: Path, pictures: List[Picture], predictions: Path) -> None:
    """Write the archive, checked before it gets its name.

    Args:
        archive: The zip; must not exist.
        pictures: The pictures of the split.
        predictions: Folder of their predictions.

    Raises:
        console.UserError: A prediction has a fault.
    """
    sizes = {picture.name: size(picture) for picture in pictures}
    checked = functools.partial(check, expected=sizes)
    with files.whole(archive, checked, to_disk=True) as partial, zipfile.ZipFile(partial, 'w') as packed:
        for picture in pictures:  # stored as they are: a PNG is compressed already
            packed.write(predictions / picture.name, picture.name)


def check(archive: str, expected: Dict[str, Tuple[int, int]]) -> None:
    """Check an archive: names, count, sizes and values.

    Args:
        archive: The zip.
        expected: Size (width, height) of each picture, by the name of its member.

    Raises:
        console.UserError: The first fault.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            names = packed.namelist()
            _require_names(names, list(expected))
            for name in names:
                _require_labels(name, packed.read(name), expected[name])  # reading checks the checksum
    except (zipfile.BadZipFile, EOFError) as error:
        raise console.UserError(f'the archive is damaged: {error}', 'start the same command again') from None


def _require_names(names: List[str], expected: List[str]) -> None:
    for what, wrong in (
        ('holds twice', [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []),
        ('lacks', sorted(set(expected) - set(names))),
        ('holds, and should not,', sorted(set(names) - set(expected))),
    ):
        if wrong:
            more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
            raise console.UserError(f'the archive {what} {wrong[0]}{more}; it should hold {len(expected)} pictures')


def _require_labels(name: str, content: bytes, expected: Tuple[int, int]) -> None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            kind, mode, found = picture.format, picture.mode, picture.size
            pixels = np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise console.UserError(f'the archive: {name} is damaged: {error}') from None
    if kind != 'PNG' or mode != 'L':
        raise console.UserError(f'the archive: {name} is {kind} of mode {mode}, not PNG with one byte for each pixel')
    if found != expected:
        raise console.UserError(f'the archive: {name} is {_text(found)} pixels, not {_text(expected)}')
    stray = sorted(set(np.unique(pixels).tolist()) - set(classes.LABEL_IDS))
    if stray:
        raise console.UserError(
            f'the archive: {name} holds {stray[0]}, which is no evaluated label id', 'give label ids, not train ids'
        )


def _text(size: Tuple[int, int]) -> str:
    return 'x'.join(map(str, size))
