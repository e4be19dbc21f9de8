"""A window of a resized picture, made from the pixels that it needs."""

import math
from functools import lru_cache
from typing import NamedTuple, Tuple

import cv2
import numpy as np

# Period, in resized pixels, up to which OpenCV's weights are the same
# wherever resizing begins: they are multiples of 1/2, 1/4, 1/6 or 1/8, which
# its float32 coordinates and its rounding to 1/2048 cannot tip over.
_MAX_PERIOD = 4


class Span(NamedTuple):
    """How to get a part of a resized axis.

    Attributes:
        start (int): First source pixel that is needed.
        stop (int): One behind the last source pixel that is needed.
        skip (int): Pixels to drop at the beginning of the resized part.
        factor (float): Resized pixels per source pixel, as OpenCV has it.
    """

    start: int
    stop: int
    skip: int
    factor: float


def bilinear_span(source: int, resized: int, begin: int, end: int) -> Span:
    """Find the source pixels for a part of a bilinearly resized axis.

    OpenCV samples resized pixel x at (x + 0.5) * scale - 0.5, counted from
    the edge of the array that it is given, and the last bit of its weights
    depends on that distance. So resizing begins at the edge of the picture,
    or, at ratios such as 2 or 3/2, at a later pixel on the same grid: either
    way the part equals that of the whole resized axis bit by bit.

    Args:
        source (int): Length of the axis.
        resized (int): Its length after resizing.
        begin (int): First resized pixel wanted.
        end (int): One behind the last resized pixel wanted.
    """
    period = resized // math.gcd(source, resized)
    factor = resized / source
    last = (end - 0.5) / factor - 0.5
    # the pixel below, the next one, and one for OpenCV's rounding
    stop = int(max(last, 0)) + 3
    origin = 0
    if period <= _MAX_PERIOD:
        # The first pixel wanted must not reach to the left of the part.
        reach = math.ceil(factor / 2)
        origin = max(begin - reach, 0) // period * period
    if factor != 1:
        # OpenCV copies an array whose size, rounded, would stay what it is.
        least = int(0.5 / abs(1 - factor)) + 2
        if source - origin * source // resized < least:
            origin = 0
        stop = max(stop, origin * source // resized + least)
    return Span(origin * source // resized, min(source, stop), begin - origin, factor)


def bilinear_window(pixels: np.ndarray, rows: Span, columns: Span, size: Tuple[int, int]) -> np.ndarray:
    """Resize a part of a picture as OpenCV resizes the whole.

    Args:
        pixels (np.ndarray): uint8, the rows and columns that the spans name.
        rows (Span): From :func:`bilinear_span`.
        columns (Span): From :func:`bilinear_span`.
        size (tuple[int]): Height and width of the window.

    Returns:
        np.ndarray: The window, bit by bit that of the whole resized picture.
    """
    if rows.factor != 1 or columns.factor != 1:
        pixels = cv2.resize(pixels, None, fx=columns.factor, fy=rows.factor, interpolation=cv2.INTER_LINEAR)
    return pixels[rows.skip : rows.skip + size[0], columns.skip : columns.skip + size[1]]


@lru_cache(maxsize=256)
def nearest_positions(source: int, resized: int) -> np.ndarray:
    """Which source pixel each pixel of an axis takes with ``INTER_NEAREST``.

    OpenCV itself is asked, by resizing the numbers of the pixels.

    Args:
        source (int): Length of the axis.
        resized (int): Its length after resizing.

    Returns:
        np.ndarray: int64, shape (resized, ).
    """
    numbers = np.arange(source, dtype=np.float32)[None]
    return cv2.resize(numbers, (resized, 1), interpolation=cv2.INTER_NEAREST)[0].astype(np.int64)


def nearest_window(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Take the pixels at some rows and columns.

    Args:
        pixels (np.ndarray): uint8, shape (H, W).
        rows (np.ndarray): Ascending, part of :func:`nearest_positions`.
        columns (np.ndarray): Likewise.

    Returns:
        np.ndarray: uint8, shape (len(rows), len(columns)).
    """
    part = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Whole rows are copied fast, single pixels are not: so both axes are
    # gathered as rows, with OpenCV's transposition in between. The fewer rows
    # there are to transpose, the better.
    rows = rows - rows[0]
    columns = columns - columns[0]
    if len(rows) < len(part):
        return cv2.transpose(cv2.transpose(part[rows])[columns])
    return cv2.transpose(cv2.transpose(part)[columns])[rows]
