"""Computes a window of a resized picture from only the source pixels that it needs."""

import math
from functools import lru_cache
from typing import NamedTuple, Tuple

import cv2
import numpy as np

# Longest period, in resized pixels, for which resizing may begin at any multiple of the period. The exact weights are
# then multiples of 1/2, 1/4, 1/6 or 1/8, so float32 coordinates and OpenCV's rounding to 1/2048 always give the same.
_MAX_PERIOD = 4


class Span(NamedTuple):
    """Source pixels for a part of a resized axis, and how to resize them.

    Attributes:
        start (int): First source pixel that is needed.
        stop (int): Last source pixel that is needed, plus 1.
        skip (int): Pixels to drop at the beginning of the resized part.
        factor (float): Resized pixels per source pixel, OpenCV's ``fx`` or ``fy``.
    """

    start: int
    stop: int
    skip: int
    factor: float


def bilinear_span(source: int, resized: int, begin: int, end: int) -> Span:
    """Find the source pixels for a part of a bilinearly resized axis.

    OpenCV samples resized pixel x at (x + 0.5) * scale - 0.5, counted from the edge of its input array. The last bit of
    its weights depends on this distance. So resizing begins at the edge of the picture or, for ratios such as 2 or 3/2,
    at a later pixel of the same grid. In both cases the part equals that of the whole resized axis bit by bit.

    Args:
        source (int): Length of the axis.
        resized (int): Its length after resizing.
        begin (int): First resized pixel of the part.
        end (int): Last resized pixel of the part, plus 1.

    Returns:
        Span: The source pixels.
    """
    period = resized // math.gcd(source, resized)
    factor = resized / source
    last = (end - 0.5) / factor - 0.5
    # Both neighbours of the last sample, and one more pixel for OpenCV's rounding.
    stop = int(max(last, 0)) + 3
    origin = 0
    if period <= _MAX_PERIOD:
        # The first pixel of the part must not sample to the left of the origin.
        reach = math.ceil(factor / 2)
        origin = max(begin - reach, 0) // period * period
    if factor != 1:
        # OpenCV only copies an array if its rounded size does not change, so the array has to be long enough.
        least = int(0.5 / abs(1 - factor)) + 2
        if source - origin * source // resized < least:
            origin = 0
        stop = max(stop, origin * source // resized + least)
    return Span(origin * source // resized, min(source, stop), begin - origin, factor)


def bilinear_window(pixels: np.ndarray, rows: Span, columns: Span, size: Tuple[int, int]) -> np.ndarray:
    """Resize a part of a picture as OpenCV resizes the whole picture.

    Args:
        pixels (np.ndarray): uint8, the rows and columns of the spans, shape (h, w) or (h, w, 3).
        rows (Span): From :func:`bilinear_span`.
        columns (Span): From :func:`bilinear_span`.
        size (tuple[int]): Height and width of the window.

    Returns:
        np.ndarray: uint8, the window; bit by bit equal to that of the whole resized picture.
    """
    if rows.factor != 1 or columns.factor != 1:
        pixels = cv2.resize(pixels, None, fx=columns.factor, fy=rows.factor, interpolation=cv2.INTER_LINEAR)
    return pixels[rows.skip : rows.skip + size[0], columns.skip : columns.skip + size[1]]


@lru_cache(maxsize=256)
def nearest_positions(source: int, resized: int) -> np.ndarray:
    """Source pixel of each resized pixel of an axis with ``INTER_NEAREST``.

    OpenCV itself computes it: it resizes an array of pixel indices.

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
        rows (np.ndarray): Row indices, a slice of the result of :func:`nearest_positions`.
        columns (np.ndarray): Column indices, likewise.

    Returns:
        np.ndarray: uint8, shape (len(rows), len(columns)).
    """
    part = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Copying whole rows is fast, copying single pixels is slow. So both axes are gathered as rows, with OpenCV's
    # transpose in between. The rows are gathered first if that leaves less to transpose.
    rows = rows - rows[0]
    columns = columns - columns[0]
    if len(rows) < len(part):
        return cv2.transpose(cv2.transpose(part[rows])[columns])
    return cv2.transpose(cv2.transpose(part)[columns])[rows]
