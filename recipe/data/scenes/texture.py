"""Noise fields for the grain of surfaces; made once per process and shared by all scenes."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

FIELD_PX = 512
SCALES = (1, 2, 4, 8, 16, 32, 64)  # size of one grain in pixels


@functools.lru_cache(maxsize=None)
def field(scale: int) -> np.ndarray:
    """Return a tileable noise field.

    Args:
        scale: Size of one grain in pixels, one of ``SCALES``.

    Returns:
        float32, shape (FIELD_PX, FIELD_PX), zero mean, unit variance, clipped at three standard deviations.
    """
    cells = FIELD_PX // scale
    grid: np.ndarray = np.random.default_rng(scale).standard_normal((cells, cells)).astype(np.float32)
    if scale > 1:
        wrapped = np.pad(grid, 2, mode='wrap')
        size = (cells + 4) * scale
        grid = cv2.resize(wrapped, (size, size), interpolation=cv2.INTER_CUBIC)[
            2 * scale : -2 * scale, 2 * scale : -2 * scale
        ]
    grid = (grid - grid.mean()) / grid.std()
    return np.clip(grid, -3, 3)


def nearest_scale(pixels: float) -> int:
    """Return the member of ``SCALES`` that is nearest to a grain size in pixels (on a log scale)."""
    power = round(math.log2(max(pixels, 1.0)))
    return SCALES[min(power, len(SCALES) - 1)]


def sample(scale: int, height: int, width: int, row: int, column: int) -> np.ndarray:
    """Cut a window out of the endless tiling of a field.

    Args:
        scale: One of ``SCALES``.
        height: Rows of the window.
        width: Columns of the window.
        row: First row, any integer.
        column: First column, any integer.

    Returns:
        float32, shape (height, width).
    """
    row, column = row % FIELD_PX, column % FIELD_PX
    if row + height <= FIELD_PX and column + width <= FIELD_PX:
        return field(scale)[row : row + height, column : column + width]
    rows = np.arange(row, row + height) % FIELD_PX
    columns = np.arange(column, column + width) % FIELD_PX
    return field(scale)[rows[:, None], columns]
