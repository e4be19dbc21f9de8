"""Reads one picture or label of a set and sums it up. Called in many processes."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from recipe.data import exif_orientation, picture_faults
from recipe.data.sets import coding

_GOOD_MODES = ('RGB', 'L', 'RGBA', 'P', 'LA', 'PA', 'CMYK')
_MISSING = 'missing file: there is no such file; bring it, or take its name off the list'
_MOST_COLOURS = 4096  # of a file; one with more is no label


class Image(NamedTuple):
    """What a picture file holds.

    Attributes:
        size: (width, height) in pixels.
        digest: Of the file's bytes.
        fault: What is wrong with it; the rest then means nothing.
    """

    size: Tuple[int, int] = (0, 0)
    digest: str = ''
    fault: Optional[str] = None


@dataclass(frozen=True)
class Label:
    """What a label file holds.

    Attributes:
        size: (width, height) in pixels.
        mode: Pillow's mode.
        codes: Pixels by what they hold; numbers or colours, as the job asked for.
        palette: Colours of the palette by number, only those that occur; empty without a palette.
        fault: What is wrong with it; the rest then means nothing.
    """

    size: Tuple[int, int] = (0, 0)
    mode: str = ''
    codes: Dict[int, int] = field(default_factory=dict)
    palette: Dict[int, Tuple[int, int, int]] = field(default_factory=dict)
    fault: Optional[str] = None


class LabelJob(NamedTuple):
    """A label to read; ``is_rgb`` None means colours if it has any, else numbers."""

    path: str
    is_rgb: Optional[bool] = None


def image(path: str) -> Image:
    """Read a whole picture."""
    from PIL import Image as Pillow

    try:
        data = _content(path)
        with picture_faults.described(data, path):
            with Pillow.open(io.BytesIO(data)) as picture:
                picture.verify()  # checksums, where the format has any
            with Pillow.open(io.BytesIO(data)) as picture:
                picture.load()
                size, mode = picture.size, picture.mode
                turned = exif_orientation.turned(picture)
    except FileNotFoundError:
        return Image(fault=_MISSING)
    except picture_faults.PictureError as error:
        return Image(fault=f'unreadable: {error}')
    if mode not in _GOOD_MODES:
        return Image(fault=f'wrong kind of picture: it has Pillow mode {mode}; save it with 8 bits a channel')
    if turned:
        return Image(
            fault=f'EXIF orientation: its EXIF data says to turn it (orientation {turned}), which no label is; '
            f'if the label fits the picture as it is stored, remove that data: exiftool -all= {shlex.quote(path)}'
        )
    return Image(size, hashlib.sha256(data).hexdigest()[:32])


def size_of(path: str) -> Optional[Tuple[int, int]]:
    """(width, height) of a picture, from its head; None if it cannot be read."""
    from PIL import Image as Pillow

    try:
        with picture_faults.described(b'', path), Pillow.open(path) as picture:
            size: Tuple[int, int] = picture.size
            return size
    except picture_faults.PictureError:
        return None


def label(job: LabelJob) -> Label:
    """Read a whole label and count what its pixels hold."""
    from PIL import Image as Pillow

    try:
        data = _content(job.path)
        with picture_faults.described(data, job.path), Pillow.open(io.BytesIO(data)) as picture:
            mode = picture.mode
        is_rgb = job.is_rgb if job.is_rgb is not None else mode in ('RGB', 'RGBA')
        codes = coding.read(data, is_rgb, job.path)
    except FileNotFoundError:
        return Label(fault=_MISSING)
    except picture_faults.PictureError as error:
        return Label(fault=f'unreadable label: {error}')
    if is_rgb:
        values, counts = np.unique(codes, return_counts=True)
    else:  # numbers of 8 or 16 bits, which are counted faster
        every = np.bincount(codes.ravel())
        values = np.flatnonzero(every)
        counts = every[values]
    if is_rgb and len(values) > _MOST_COLOURS:
        return Label(
            fault=f'unreadable label: it holds {len(values)} colours, so it is a photo or was stored with losses'
        )
    height, width = codes.shape
    found = dict(zip(values.tolist(), counts.tolist()))
    palette = _palette(data, values.tolist()) if mode == 'P' and not is_rgb else {}
    return Label((width, height), mode, found, palette)


def _palette(data: bytes, values: List[int]) -> Dict[int, Tuple[int, int, int]]:
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(data)) as picture:
        flat = picture.getpalette() or []
    return {
        value: (flat[3 * value], flat[3 * value + 1], flat[3 * value + 2])
        for value in values
        if 3 * value + 2 < len(flat)
    }


def _content(path: str) -> bytes:
    """Content of a file; FileNotFoundError if neither it nor a link of its name is there."""
    if not os.path.lexists(path):
        raise FileNotFoundError(path)
    return picture_faults.content(path)
