"""Draws label maps: as a palette picture, and laid over the picture that they belong to."""

from __future__ import annotations

import io
from typing import Any, Optional

import cv2
import numpy as np
from PIL import Image


class Overlay:
    """Lays the colours of label maps over pictures.

    Args:
        palette: Colours of the classes, uint8, shape (C, 3), RGB.
        opacity: From 0, the picture alone, to 1, the colours alone.
        shown: Whether a class is coloured, bool, shape (C,). None: all are.
        side_by_side: Put the picture itself to the left of it.
    """

    def __init__(
        self, palette: np.ndarray, opacity: float, shown: Optional[np.ndarray] = None, side_by_side: bool = False
    ) -> None:
        self._bgr = np.ascontiguousarray(palette[:, ::-1])
        self._opacity, self._shown, self._side_by_side = opacity, shown, side_by_side

    def __call__(self, picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Draw one picture.

        Args:
            picture: uint8, shape (H, W, 3), BGR.
            labels: uint8, shape (H, W).

        Returns:
            uint8, BGR, shape (H, W, 3), or (H, 2 * W, 3) side by side.
        """
        drawn: Any = cv2.addWeighted(picture, 1 - self._opacity, self._bgr[labels], self._opacity, 0)
        if self._shown is not None:
            drawn = np.where(self._shown[labels][..., None], drawn, picture)
        return np.hstack([picture, drawn]) if self._side_by_side else drawn


def png(picture: np.ndarray) -> bytes:
    """Encode a picture, uint8 of shape (H, W, 3) in BGR order, as PNG."""
    return cv2.imencode('.png', picture)[1].tobytes()


def palette_png(labels: np.ndarray, palette: np.ndarray) -> bytes:
    """Encode a label map as PNG whose pixels are the labels, shown in the colours of a palette.

    Args:
        labels: uint8, shape (H, W).
        palette: uint8, shape (C, 3), RGB.
    """
    image = Image.fromarray(labels)
    image.putpalette(palette.tobytes())
    written = io.BytesIO()
    image.save(written, 'PNG')
    return written.getvalue()
