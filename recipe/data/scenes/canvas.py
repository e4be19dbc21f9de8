"""The supersampled picture, and the label polygons made from the same strokes.

Things are painted far to near. While a thing is open, each stroke also goes into its silhouette. Closing the thing
turns
the silhouette, averaged down to output pixels, into contours. So a polygon covers an output pixel if the thing covers
at least about half of it, whatever the stroke was.
"""

from __future__ import annotations

import contextlib
from typing import Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from . import texture
from .camera import Camera, Frame
from .light import Color, Light

SHIFT = 4  # fractional bits of a vertex in OpenCV's drawing functions
_FURTHEST = 30000.0 * (1 << SHIFT)  # vertices further off would overflow OpenCV's fixed point
COVERED = 112  # of 255: a little under half, so that poles one pixel wide keep their label
LABEL_TOLERANCE_PX = 0.75  # how far a polygon may be from the silhouette in pictures of 512 rows and more

Points = Sequence[Tuple[float, float, float]]
Panes = Sequence[Tuple[float, float, float, float]]


class Canvas:
    """A picture under construction.

    Args:
        width: Output width in pixels.
        height: Output height in pixels.
        factor: Canvas pixels per output pixel, along each side.
        camera: Projects world points to canvas pixels.
        light: Lights the strokes.
        rng: Source of the scene's randomness.
    """

    def __init__(
        self, width: int, height: int, factor: int, camera: Camera, light: Light, rng: np.random.Generator
    ) -> None:
        self.width, self.height, self.factor = width, height, factor
        self.camera, self.light, self.rng = camera, light, rng
        self.pixels = np.zeros((height * factor, width * factor, 3), np.uint8)
        self.objects: List[dict] = []
        self._mask = np.zeros(self.pixels.shape[:2], np.uint8)
        self._box: Optional[Tuple[int, int, int, int]] = None
        self._open = False

    @contextlib.contextmanager
    def thing(self, label: str) -> Iterator[None]:
        """Collect the silhouette of everything painted inside, and write its polygons under a Cityscapes label."""
        self._open, self._box = True, None
        try:
            yield
        finally:
            self._open = False
        if self._box is None:
            return
        factor = self.factor
        left, top, right, bottom = self._box
        left, top = left // factor * factor, top // factor * factor
        right, bottom = -(-right // factor) * factor, -(-bottom // factor) * factor
        window = self._mask[top:bottom, left:right]
        self._trace(label, window, left // factor, top // factor)
        window[:] = 0

    def fill(
        self,
        corners: np.ndarray,
        color: Sequence[float],
        grain: float = 0.0,
        grain_px: float = 2.0,
        silhouette: bool = True,
    ) -> None:
        """Fill a polygon given in canvas pixels.

        Args:
            corners: float, shape (N, 2).
            color: RGB in the picture.
            grain: Standard deviation of the brightness noise, as a share of the brightness.
            grain_px: Size of one grain in canvas pixels.
            silhouette: Whether the stroke belongs to the open thing's silhouette.
        """
        box = self._bounds(corners)
        if box is None:
            return
        left, top, right, bottom = box
        fixed = _fixed(corners - (left, top))
        if self._open and silhouette:
            cv2.fillPoly(self._mask[top:bottom, left:right], [fixed], 255, cv2.LINE_8, SHIFT)
            self._grow(box)
        target = self.pixels[top:bottom, left:right]
        if not grain:
            cv2.fillPoly(target, [fixed], _rgb(color), cv2.LINE_8, SHIFT)
            return
        stencil = np.zeros(target.shape[:2], np.uint8)
        cv2.fillPoly(stencil, [fixed], 255, cv2.LINE_8, SHIFT)
        patch = self._grainy(stencil.shape, color, grain, grain_px)
        cv2.copyTo(patch, stencil, target)

    def fill_panes(self, frame: Frame, panes: Panes, color: Sequence[float]) -> None:
        """Fill rectangles on a frame's plane across = 0 with one colour, inside what is already painted.

        Args:
            frame: The plane's frame; along runs along the plane.
            panes: (start, stop, low, high) of each rectangle in metres.
            color: RGB in the picture.
        """
        if not len(panes):
            return
        sides = np.asarray(panes, np.float64)
        local = np.zeros((len(sides), 4, 3))
        local[..., 0] = sides[:, (0, 1, 1, 0)]
        local[..., 2] = sides[:, (2, 2, 3, 3)]
        self.fill_many(self.project(frame, local.reshape(-1, 3)).reshape(-1, 4, 2), color)

    def fill_many(self, polygons: np.ndarray, color: Sequence[float]) -> None:
        """Fill disjoint polygons of equal corner count, (M, N, 2) canvas pixels, inside what is already painted."""
        polygons = np.asarray(polygons)
        if not len(polygons):
            return
        height, width = self.pixels.shape[:2]
        low, high = polygons.min(1), polygons.max(1)
        seen = (high > 0).all(1) & (low[:, 0] < width) & (low[:, 1] < height)
        if seen.any():
            cv2.fillPoly(self.pixels, list(_fixed(polygons[seen])), _rgb(color), cv2.LINE_8, SHIFT)

    def fill_each(self, polygons: np.ndarray, colors: np.ndarray, silhouette: bool) -> None:
        """Fill polygons that may overlap, one after the other.

        Args:
            polygons: float, shape (M, N, 2), canvas pixels.
            colors: float, shape (M, 3), RGB in the picture.
            silhouette: Whether they belong to the open thing's silhouette.
        """
        box = self._bounds(polygons.reshape(-1, 2))
        if box is None:
            return
        fixed = _fixed(polygons)
        for outline, color in zip(fixed, colors.tolist()):
            cv2.fillPoly(self.pixels, [outline], color, cv2.LINE_8, SHIFT)
        if self._open and silhouette:
            for outline in fixed:
                cv2.fillPoly(self._mask, [outline], 255, cv2.LINE_8, SHIFT)
            self._grow(box)

    def roughen(self, grain: float, grain_px: float) -> None:
        """Add grain to the part of the open thing painted so far; strength and size as in ``fill``."""
        if self._box is None:
            return
        left, top, right, bottom = self._box
        target = self.pixels[top:bottom, left:right]
        noise = self._noise(target.shape[:2], grain_px)
        gained = cv2.multiply(target, cv2.merge([1 + np.float32(grain) * noise] * 3), dtype=cv2.CV_8U)
        cv2.copyTo(gained, self._mask[top:bottom, left:right], target)

    def cover(self, corners: np.ndarray) -> None:
        """Add a polygon in canvas pixels to the open thing's silhouette without painting it."""
        box = self._bounds(corners)
        if box is not None:
            cv2.fillPoly(self._mask, [_fixed(corners)], 255, cv2.LINE_8, SHIFT)
            self._grow(box)

    def line(self, corners: np.ndarray, color: Sequence[float], width_px: float, silhouette: bool = True) -> None:
        """Draw an open polyline of a given width; corners and width in canvas pixels."""
        pad = width_px / 2 + 2
        box = self._bounds(corners, pad)
        if box is None:
            return
        thickness = max(1, round(width_px))
        cv2.polylines(self.pixels, [_fixed(corners)], False, _rgb(color), thickness, cv2.LINE_8, SHIFT)
        if self._open and silhouette:
            cv2.polylines(self._mask, [_fixed(corners)], False, 255, thickness, cv2.LINE_8, SHIFT)
            self._grow(box)

    def darken(self, corners: np.ndarray, factor: float, soft_px: float = 0.0) -> None:
        """Multiply the brightness inside a polygon (canvas pixels) by a factor, with an edge soft_px wide."""
        pad = int(2 * soft_px) + 1
        box = self._bounds(corners, pad)
        if box is None:
            return
        left, top, right, bottom = box
        stencil: np.ndarray = np.zeros((bottom - top, right - left), np.float32)
        cv2.fillPoly(stencil, [_fixed(corners - (left, top))], 1.0, cv2.LINE_8, SHIFT)
        if soft_px > 0.7:
            stencil = cv2.blur(stencil, (2 * int(soft_px) + 1,) * 2)
        target = self.pixels[top:bottom, left:right]
        target[:] = (target * (1 - (1 - factor) * stencil)[..., None]).astype(np.uint8)

    def project(self, frame: Frame, local: Points) -> np.ndarray:
        """Return the canvas pixels, float64 (N, 2), of points in a local frame."""
        return self.camera.project(frame.to_world(local))

    def face(
        self,
        frame: Frame,
        local: Points,
        color: Sequence[float],
        normal: Tuple[float, float, float],
        grain: float = 0.0,
        grain_m: float = 0.1,
        silhouette: bool = True,
    ) -> None:
        """Fill a planar face of a thing, lit and hazed.

        Args:
            frame: The thing's frame.
            local: Corners in that frame, metres.
            color: The face's own RGB.
            normal: Outward unit normal in local axes (along, across, up).
            grain: Standard deviation of the brightness noise.
            grain_m: Size of one grain in metres.
            silhouette: Whether the face belongs to the open thing's silhouette.
        """
        shown = self.shade(frame, color, normal)
        size = grain_m * self.camera.pixels_per_metre(frame.z) if grain else 1.0
        self.fill(self.project(frame, local), shown, grain, size, silhouette)

    def shade(self, frame: Frame, color: Sequence[float], normal: Tuple[float, float, float]) -> Color:
        """Return the colour in the picture of a face with a local normal (along, across, up) at the frame's depth."""
        normal_x, normal_z = frame.normal(normal[0], normal[1])
        return self.light.lit(color, (normal_x, normal[2], normal_z), frame.z)

    def add_polygon(self, label: str, corners: Sequence[Tuple[int, int]]) -> None:
        """Write a polygon in output pixels as it is, without painting."""
        self.objects.append({'label': label, 'polygon': [[int(x), int(y)] for x, y in corners]})

    def finished(self) -> np.ndarray:
        """Return the picture averaged down to its output size: uint8, shape (height, width, 3), RGB."""
        if self.factor == 1:
            return self.pixels
        return cv2.resize(self.pixels, (self.width, self.height), interpolation=cv2.INTER_AREA)

    def _noise(self, shape: Tuple[int, int], grain_px: float) -> np.ndarray:
        row, column = self.rng.integers(0, texture.FIELD_PX, 2)
        noise = texture.sample(texture.nearest_scale(grain_px), shape[0], shape[1], row, column)
        if shape[0] * shape[1] > 400:  # large faces are stained as well
            noise = noise + 0.5 * texture.sample(texture.nearest_scale(grain_px * 4), shape[0], shape[1], column, row)
        return noise

    def _grainy(self, shape: Tuple[int, int], color: Sequence[float], grain: float, grain_px: float) -> np.ndarray:
        gain = cv2.merge([self._noise(shape, grain_px)] * 3)
        # OpenCV clips to 0 and 255 in the addition.
        return cv2.add(gain * (np.float32(grain) * np.float32(color)), (*_rgb(color), 0.0), dtype=cv2.CV_8U)

    def _bounds(self, corners: np.ndarray, pad: float = 1.0) -> Optional[Tuple[int, int, int, int]]:
        low_x, low_y = corners.min(0).tolist()
        high_x, high_y = corners.max(0).tolist()
        height, width = self.pixels.shape[:2]
        left, top = max(int(low_x - pad), 0), max(int(low_y - pad), 0)
        right, bottom = min(int(high_x + pad) + 1, width), min(int(high_y + pad) + 1, height)
        return (left, top, right, bottom) if right > left and bottom > top else None

    def _grow(self, box: Tuple[int, int, int, int]) -> None:
        if self._box is None:
            self._box = box
        else:
            old = self._box
            self._box = min(old[0], box[0]), min(old[1], box[1]), max(old[2], box[2]), max(old[3], box[3])

    def _trace(self, label: str, window: np.ndarray, left: int, top: int) -> None:
        size = (window.shape[1] // self.factor, window.shape[0] // self.factor)
        small = cv2.resize(window, size, interpolation=cv2.INTER_AREA) if self.factor > 1 else window
        covered = (small >= COVERED).astype(np.uint8)
        contours, _ = cv2.findContours(covered, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
        for contour in contours:
            if self.height >= 512:
                contour = cv2.approxPolyDP(contour, LABEL_TOLERANCE_PX, True)
            corners = [(int(x), int(y)) for x, y in contour[:, 0]]
            # A polygon needs at least two corners; a thing of one pixel has one.
            self.add_polygon(label, corners if len(corners) > 1 else corners * 3)


def _fixed(corners: np.ndarray) -> np.ndarray:
    # OpenCV puts pixel centres at whole numbers; ours are at halves.
    scaled = (corners - 0.5) * (1 << SHIFT)
    np.maximum(scaled, -_FURTHEST, out=scaled)
    np.minimum(scaled, _FURTHEST, out=scaled)
    return np.rint(scaled, out=scaled).astype(np.int32)


def _rgb(color: Sequence[float]) -> Tuple[float, float, float]:
    return float(color[0]), float(color[1]), float(color[2])
