"""Reads labels, however they are coded, and turns what their pixels hold into train ids through one table."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any, Optional, Sequence, Tuple, Union

import numpy as np

from recipe.core import console
from recipe.data import picture_faults
from recipe.data.picture_faults import PictureError
from recipe.data.sets.file import UNKNOWN

# Factor by which Pillow multiplies the values of grey PNG files with few bits.
_MULTIPLIED = {2: 85, 4: 17}
_LOSSY = ('JPEG', 'MPO', 'JPEG2000')


class LabelError(PictureError):
    """A file is no label of its coding; the message says why, in a few words without a path."""


def read(data: bytes, is_rgb: bool, path: Union[str, Path] = 'FILE') -> np.ndarray:
    """Read what the pixels of a label hold.

    Args:
        data: The file.
        is_rgb: Whether classes are colours; otherwise they are the numbers of a grey picture or of a palette.
        path: The file, for the command that mends it.

    Returns:
        Numbers as ``file.code_of`` makes them, uint8, uint16 or int32, (H, W).

    Raises:
        PictureError: It is damaged, or its pixels hold something else.
    """
    from PIL import Image

    with picture_faults.described(data, path), Image.open(io.BytesIO(data)) as picture:
        if picture.format in _LOSSY:
            raise LabelError(f'holds {picture.format} data, which changes the values of pixels; bring the original')
        picture.load()
        return _codes(picture, data, is_rgb)


def _codes(picture: Any, data: bytes, is_rgb: bool) -> np.ndarray:
    mode = picture.mode
    if is_rgb:
        if mode not in ('RGB', 'RGBA', 'P', 'L', '1', 'LA', 'PA'):
            raise LabelError(f'has Pillow mode {mode}, and the classes of this set are colours; save it as 8-bit RGB')
        red, green, blue = np.moveaxis(np.asarray(picture.convert('RGB')).astype(np.int32), -1, 0)
        codes: np.ndarray = red << 16 | green << 8 | blue
        return codes
    if mode not in ('L', 'P', '1', 'I', 'I;16', 'I;16B', 'I;16L'):
        raise LabelError(
            f'has colours (Pillow mode {mode}), and the classes of this set are numbers; '
            'save each pixel as the number of its class in one channel'
        )
    values = np.array(picture)
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype == np.uint8:
        # Bytes 24 and 25 of a PNG file: bits of a channel, and 0 for grey.
        depth, colour_type = data[24:26] if data[:4] == b'\x89PNG' and len(data) > 26 else (8, 0)
        return values // _MULTIPLIED[depth] if depth in _MULTIPLIED and colour_type == 0 else values
    if values.min() < 0 or values.max() > 0xFFFF:
        raise LabelError('holds numbers outside of 0 to 65535')
    return values.astype(np.uint16)


def class_values(codes: np.ndarray, instances: Optional[Tuple[int, int]]) -> np.ndarray:
    """The class in what a pixel holds, if that numbers instances too.

    Args:
        codes: From ``read``.
        instances: Divisor, and the smallest number that is divided; None: there are no instances.
    """
    if instances is None:
        return codes
    divisor, least = instances
    return np.where(codes >= least, codes // divisor, codes)


@functools.lru_cache(maxsize=4)
def table(pairs: Tuple[Tuple[int, int], ...], is_rgb: bool, instances: Optional[Tuple[int, int]]) -> np.ndarray:
    """A table from what a pixel holds to its train id; uint8, ``UNKNOWN`` for all that the set does not name.

    Args:
        pairs: ``DataSet.codes``.
        is_rgb: As for ``read``; the table then has 2^24 entries (16 MiB), otherwise 2^16.
        instances: As for ``class_values``.
    """
    found = np.full(1 << 24 if is_rgb else 1 << 16, UNKNOWN, np.uint8)
    for code, train_id in pairs:
        found[code] = train_id
    if instances is not None:
        found = found[class_values(np.arange(len(found)), instances)]
    found.flags.writeable = False
    return found


class Decoder:
    """Turns labels into train ids.

    Args:
        coding: ``rgb`` or another one; see ``file.CODINGS``.
        codes: ``DataSet.codes``.
        instances: ``DataSet.instances``.
    """

    def __init__(self, coding: str, codes: Sequence[Sequence[int]], instances: Optional[Sequence[int]] = None) -> None:
        self._is_rgb = coding == 'rgb'
        self._arguments = (
            tuple((int(code), int(train_id)) for code, train_id in codes),
            self._is_rgb,
            (int(instances[0]), int(instances[1])) if instances else None,
        )

    def decode(self, data: bytes) -> np.ndarray:
        """Train ids of a label file, uint8 (H, W); 255 is ignored.

        Raises:
            PictureError: It is damaged, or holds a value that the set does not name.
        """
        return self.train_ids(read(data, self._is_rgb))

    def train_ids(self, codes: np.ndarray) -> np.ndarray:
        """Train ids of what pixels hold, uint8, the same shape.

        Raises:
            LabelError: A value is not named.
        """
        found: np.ndarray = table(*self._arguments)[codes]
        unknown = found == UNKNOWN
        if unknown.any():
            value = int(codes[unknown][0])
            text = [value >> 16, value >> 8 & 255, value & 255] if self._is_rgb else value
            raise LabelError(f'holds {text}, which dataset.json does not name')
        return found

    def read(self, path: str) -> np.ndarray:
        """Train ids of a label file, uint8 (H, W).

        Raises:
            console.UserError: It cannot be read, or holds a value that the set does not name.
        """
        try:
            return self.decode(Path(path).read_bytes())
        except OSError as error:
            raise console.UserError(f'cannot read {path}: {console.reason(error)}') from None
        except PictureError as error:
            raise console.UserError(f'{path}: {error}') from None
