"""Reads pictures in any common format, turned as their EXIF data asks."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Union

import cv2
import numpy as np
from PIL import Image, ImageOps

from recipe.data import exif_orientation

Picture = Union[str, Path, np.ndarray, Image.Image]
# The turn that each EXIF orientation asks for.
_TURNS: Dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
_BYTES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'LAB')  # Pillow's modes of 8 bits a channel


class UnreadableError(ValueError):
    """A picture or a video cannot be read; the message says why."""


def read(path: Path) -> np.ndarray:
    """Read a picture.

    The pixels are OpenCV's, as in mmseg's loading transforms; formats that OpenCV does not know are Pillow's.

    Args:
        path: The file.

    Returns:
        uint8, shape (H, W, 3), BGR.

    Raises:
        UnreadableError: It cannot be read, is damaged or is no picture.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe could wait forever
            raise UnreadableError('is no file')
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f'cannot be read ({error.strerror})') from None
    if not data:
        raise UnreadableError('is empty (0 bytes)')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow warns of large pictures and odd metadata
            with _open(io.BytesIO(data)) as opened:
                opened.load()  # OpenCV fills what is missing of a cut file with grey
                turn = exif_orientation.turned(opened)
                pixels = _decode(data, opened)
    except Image.UnidentifiedImageError:
        raise UnreadableError('is not a picture in a known format') from None
    # Pillow's decoders raise many kinds of errors for damaged files.
    except Exception as error:
        raise UnreadableError(f'is damaged ({error})') from None
    return np.ascontiguousarray(_TURNS[turn](pixels) if turn else pixels)


def is_known(path: Path) -> bool:
    """Whether a file begins as a picture in a format that ``read`` knows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            _open(path).close()
    except Exception:  # as in read
        return False
    return True


def _open(source: Any) -> Image.Image:
    """Open a picture; not in the format EPS, which is a program that Pillow has Ghostscript run."""
    Image.init()
    return Image.open(source, formats=[name for name in Image.ID if name != 'EPS'])


def _decode(data: bytes, opened: Image.Image) -> np.ndarray:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is not None and pixels.shape[1::-1] == opened.size:
        return np.asarray(pixels)
    return _rgb(opened)[..., ::-1]


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode not in _BYTES:
        raise UnreadableError(f'has pixels of mode {image.mode}, not 8 bits a channel')
    return np.asarray(image.convert('RGB'))


def as_bgr(image: Picture) -> np.ndarray:
    """The pixels of a picture in any of the forms that ``recipe.load`` takes.

    Args:
        image: Path of a file, Pillow image, or array: uint8, shape (H, W, 3), RGB.

    Returns:
        uint8, shape (H, W, 3), BGR.

    Raises:
        UnreadableError: The picture cannot be read; names the file.
        TypeError: It is something else.
    """
    if isinstance(image, (str, Path)):
        try:
            return read(Path(image))
        except UnreadableError as error:
            raise UnreadableError(f'{image} {error}') from None
    if isinstance(image, Image.Image):
        return np.ascontiguousarray(_rgb(ImageOps.exif_transpose(image))[..., ::-1])
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f'{image.dtype} of shape {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f'the image has to be a path, a Pillow image or an array, uint8 of shape (H, W, 3), not {got}')
    if not image.size:
        raise UnreadableError(f'the image has no pixels: its shape is {image.shape}')
    return np.ascontiguousarray(image[..., ::-1])
