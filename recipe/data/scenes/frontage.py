"""Houses, walls, fences, hedges and trees along the street."""

from __future__ import annotations

import math
from typing import List, Sequence, Tuple

import numpy as np

from . import palette
from .camera import Frame
from .canvas import Canvas

UP = (0.0, 0.0, 1.0)
Pane = Tuple[float, float, float, float]
_AWAY = (-1.0, 0.0, 0.0)  # towards the camera, in a frame whose along axis points away from it


def house(canvas: Canvas, side: int, x: float, near: float, far: float, height: float) -> None:
    """Paint one house with its street front and the gable that faces the camera.

    Args:
        canvas: The canvas.
        side: -1 left of the road, 1 right of it.
        x: Sideways position of the front in metres.
        near: Depth of its near corner in metres.
        far: Depth of its far corner in metres.
        height: Height of the front in metres.
    """
    rng = canvas.rng
    color = palette.pick(rng, palette.FACADE)
    roof = palette.pick(rng, palette.ROOF)
    deep = rng.uniform(8, 14)
    grain = rng.uniform(0.03, 0.09)
    frame = Frame(x, near)
    middle = Frame(x, (near + far) / 2)
    length = far - near
    inward = (0.0, -float(side), 0.0)
    with canvas.thing('building'):
        if rng.random() < 0.6:
            rise = rng.uniform(1.2, 3.0)
            slope = [(0, 0, height), (length, 0, height), (length, side * 3.5, height + rise)]
            slope.append((0, side * 3.5, height + rise))
            canvas.face(frame, slope, roof, (0, -0.6 * side, 0.8), 0.07, 0.3)
            gable = [(0, 0, height), (0, side * 3.5, height + rise), (0, side * deep, height)]
            canvas.face(frame, gable, np.multiply(color, 0.95), _AWAY, grain, 0.5)
        canvas.face(
            frame, [(0, 0, 0), (0, side * deep, 0), (0, side * deep, height), (0, 0, height)], color, _AWAY, grain, 0.5
        )
        _gable_windows(canvas, frame, side, deep, height)
        front = [(0, 0, 0), (length, 0, 0), (length, 0, height), (0, 0, height)]
        canvas.fill(
            canvas.project(frame, front),
            canvas.shade(middle, color, inward),
            grain,
            0.5 * canvas.camera.pixels_per_metre(middle.z),
        )
        _front(canvas, middle, frame, length, height, inward, color)


def _front(
    canvas: Canvas,
    middle: Frame,
    frame: Frame,
    length: float,
    height: float,
    normal: Tuple[float, float, float],
    color: Sequence[float],
) -> None:
    """Paint a street front's storeys: ground floor, windows, ledges."""
    rng = canvas.rng
    ground_floor = rng.uniform(3.0, 4.2)
    kind = rng.integers(3)
    dark = canvas.shade(middle, palette.pick(rng, palette.GLASS), normal)
    if kind == 0:  # shop windows under a fascia
        base = canvas.shade(middle, palette.pick(rng, palette.FACADE + palette.CLOTH), normal)
        canvas.fill(_panel(canvas, frame, 0, length, 0, ground_floor), base, 0.04, 4, silhouette=False)
        panes = [(s + 0.3, s + 2.7, 0.5, ground_floor - 0.9) for s in np.arange(0, length - 2.6, 3.1)]
        canvas.fill_panes(frame, panes, dark)
        if rng.random() < 0.6:
            sign = canvas.shade(middle, palette.pick(rng, palette.FLEET_PAINT), normal)
            canvas.fill_panes(frame, [(0.4, length - 0.4, ground_floor - 0.7, ground_floor - 0.2)], sign)
    elif kind == 1:  # plinth and doors
        plinth = canvas.shade(middle, np.multiply(color, 0.72), normal)
        canvas.fill(_panel(canvas, frame, 0, length, 0, rng.uniform(0.5, 1.2)), plinth, 0.05, 3, silhouette=False)
        doors = [(s, s + 1.2, 0.0, 2.3) for s in np.arange(rng.uniform(1, 3), length - 1.4, 7.0)]
        canvas.fill_panes(frame, doors, canvas.shade(middle, palette.pick(rng, palette.WOOD), normal))
        _window_rows(canvas, middle, frame, length, 1.1, 1.2, normal, rows=1)
    else:  # garages, gates
        gates = [(s, s + 2.4, 0.0, 2.4) for s in np.arange(0.8, length - 2.6, 3.4)]
        canvas.fill_panes(frame, gates, canvas.shade(middle, palette.pick(rng, palette.STONE), normal))
    _window_rows(canvas, middle, frame, length, ground_floor + 0.6, height, normal)
    ledge = canvas.shade(middle, np.multiply(color, 1.12), normal)
    canvas.fill_panes(frame, [(0, length, height - 0.45, height)], ledge)
    if rng.random() < 0.7:
        canvas.fill_panes(frame, [(0, length, ground_floor, ground_floor + 0.25)], ledge)


def _window_rows(
    canvas: Canvas,
    middle: Frame,
    frame: Frame,
    length: float,
    low: float,
    high: float,
    normal: Tuple[float, float, float],
    rows: int = 8,
) -> None:
    """Paint rows of windows on a front between two heights in metres."""
    rng = canvas.rng
    storey, spacing = rng.uniform(2.8, 3.4), rng.uniform(1.9, 3.2)
    wide, tall = rng.uniform(0.9, min(1.5, spacing - 0.6)), rng.uniform(1.2, 1.8)
    frames: List[Pane] = []
    panes: List[List[Pane]] = [[], [], []]
    for row in range(rows):
        foot = low + row * storey
        if row and foot + tall > high - 0.5:
            break
        for s in np.arange(0.7, length - wide - 0.3, spacing):
            frames.append((s - 0.12, s + wide + 0.12, foot - 0.18, foot + tall + 0.1))
            panes[rng.integers(3)].append((s, s + wide, foot, foot + tall))
    canvas.fill_panes(frame, frames, canvas.shade(middle, palette.pick(rng, palette.FACADE + palette.STONE), normal))
    glass = palette.pick(rng, palette.GLASS)
    for group, gain in zip(panes, (0.8, 1.0, 1.35)):
        canvas.fill_panes(frame, group, canvas.shade(middle, np.multiply(glass, gain), normal))


def _gable_windows(canvas: Canvas, frame: Frame, side: int, deep: float, height: float) -> None:
    """Paint the few windows of the wall that faces the camera; sizes in metres."""
    rng = canvas.rng
    if rng.random() < 0.35:
        return
    spacing = rng.uniform(2.2, 3.5)
    panes = [
        (reach, reach + 1.0, foot, foot + 1.4)
        for reach in np.arange(1.5, deep - 1.2, spacing)
        for foot in np.arange(1.2, height - 2.0, 3.1)
    ]
    outwards = Frame(frame.x, frame.z, side * math.pi / 2)
    canvas.fill_panes(outwards, panes, canvas.shade(frame, palette.pick(rng, palette.GLASS), _AWAY))


def _panel(canvas: Canvas, frame: Frame, start: float, stop: float, low: float, high: float) -> np.ndarray:
    """Return a rectangle on the plane across = 0 of a frame, in canvas pixels."""
    return canvas.project(frame, [(start, 0, low), (stop, 0, low), (stop, 0, high), (start, 0, high)])


def wall(canvas: Canvas, side: int, x: float, near: float, far: float, height: float) -> None:
    """Paint a free-standing wall along the road: courses or concrete panels under a coping."""
    rng = canvas.rng
    color = palette.pick(rng, palette.STONE)
    normal = (0.0, -float(side), 0.0)
    frame, middle = Frame(x, near), Frame(x, near + 0.4 * (far - near))
    length = far - near
    shown = canvas.shade(middle, color, normal)
    with canvas.thing('wall'):
        end = [(0, 0, 0), (0, side * 0.35, 0), (0, side * 0.35, height), (0, 0, height)]
        canvas.face(frame, end, color, _AWAY, 0.06, 0.15)
        front = _panel(canvas, frame, 0, length, 0, height)
        canvas.fill(front, shown, 0.1, 0.25 * canvas.camera.pixels_per_metre(middle.z))
        joint = np.multiply(shown, 0.74)
        if rng.random() < 0.5:
            course = rng.uniform(0.25, 0.4)
            joints = [(0.0, length, y, y + 0.05) for y in np.arange(course, height - 0.2, course)]
            for row, y in enumerate(np.arange(0, height - 0.2, course)):
                shift = 0.4 * (row % 2)
                for s in np.arange(0.4 + shift, min(length, 14), 0.8):
                    joints.append((s, s + 0.05, y, y + course))
        else:
            joints = [(s, s + 0.1, 0.0, height) for s in np.arange(2.0, length, 2.2)]
        canvas.fill_panes(frame, joints, joint)
        if rng.random() < 0.3:  # graffiti
            s = rng.uniform(0.1, 0.6) * length
            paint = canvas.shade(middle, palette.pick(rng, palette.FLEET_PAINT), normal)
            strokes = np.sort(rng.uniform(0, 3, 7)) + s
            points = [(a, 0, b) for a, b in zip(strokes, rng.uniform(0.3, 0.8, 7) * height)]
            canvas.line(canvas.project(frame, points), paint, 0.12 * canvas.camera.pixels_per_metre(middle.z), False)
        coping = [(0, 0, height), (length, 0, height), (length, side * 0.35, height), (0, side * 0.35, height)]
        canvas.face(middle, [(a - middle.z + near, b, c) for a, b, c in coping], np.multiply(color, 1.1), UP)
        canvas.fill_panes(frame, [(0, length, height - 0.14, height)], np.multiply(shown, 1.14))


def fence(canvas: Canvas, side: int, x: float, near: float, far: float, height: float) -> None:
    """Paint a fence that lets the background through; its label covers the gaps, as an annotator's does."""
    rng = canvas.rng
    kind = rng.integers(3)
    wooden = kind == 1
    color = palette.pick(rng, palette.WOOD if wooden else palette.IRON)
    normal = (0.0, -float(side), 0.0)
    frame, middle = Frame(x, near), Frame(x, near + 0.4 * (far - near))
    length = far - near
    shown = canvas.shade(middle, color, normal)
    with canvas.thing('fence'):
        canvas.cover(_panel(canvas, frame, 0, length, 0.0, height))
        spacing, thick = ((0.32, 0.1), (0.3, 0.2), (0.55, 0.07))[kind]
        bars = [(s, s + thick, 0.08, height - 0.1) for s in np.arange(0, length, spacing)]
        heights = np.arange(0.15, height, 0.35) if kind == 2 else (0.2, height - 0.25)
        rails = [(0.0, length, y, y + 0.1) for y in heights]
        posts = [(s, s + 0.16, 0.0, height) for s in np.arange(0, length, 2.4)]
        for panes, gain in ((bars, 1.0), (rails, 0.88), (posts, 0.7)):
            canvas.fill_panes(frame, panes, np.multiply(shown, gain))


def tree(canvas: Canvas, x: float, z: float, height: float, spread: float) -> None:
    """Paint a tree: trunk, boughs and a crown of leaf clumps.

    Args:
        canvas: The canvas.
        x: Sideways position in metres.
        z: Depth in metres.
        height: Height in metres.
        spread: Radius of the crown in metres.
    """
    rng = canvas.rng
    frame = Frame(x, z, math.pi / 2)  # along = to the right
    bark = palette.pick(rng, palette.BARK)
    radius = 0.018 * height + 0.06
    crown_foot = rng.uniform(0.28, 0.42) * height
    with canvas.thing('vegetation'):
        trunk = [(-radius, 0, 0), (radius, 0, 0), (radius * 0.7, 0, crown_foot + 1), (-radius * 0.7, 0, crown_foot + 1)]
        canvas.face(frame, trunk, bark, (0, 1, 0), 0.12, 0.08)
        lobes = int(rng.integers(5, 9))
        centres = [(0.0, (crown_foot + height) / 2, spread * 0.8)]
        for _ in range(lobes):
            angle = rng.uniform(0, 2 * math.pi)
            tall = (height - crown_foot) / 2
            centres.append(
                (
                    math.cos(angle) * spread * 0.55,
                    (crown_foot + height) / 2 + math.sin(angle) * tall * 0.6,
                    spread * rng.uniform(0.4, 0.6),
                )
            )
        _leaves(canvas, frame, centres, palette.pick(rng, palette.FOLIAGE))


def bush(canvas: Canvas, x: float, z: float, width: float, height: float) -> None:
    """Paint a bush that stands on the ground; sizes in metres."""
    rng = canvas.rng
    frame = Frame(x, z, math.pi / 2)
    count = max(2, int(width / max(height, 0.5) * 2))
    with canvas.thing('vegetation'):
        centres = [
            (a, height * 0.45 * rng.uniform(0.8, 1.15), height * rng.uniform(0.45, 0.6))
            for a in np.linspace(-width / 2, width / 2, count)
        ]
        _leaves(canvas, frame, centres, palette.pick(rng, palette.FOLIAGE))


def hedge(canvas: Canvas, side: int, x: float, near: float, far: float, height: float) -> None:
    """Paint a hedge along the road."""
    rng = canvas.rng
    color = palette.pick(rng, palette.FOLIAGE)
    frame, middle = Frame(x, near), Frame(x, near + 0.4 * (far - near))
    steps = np.linspace(0, far - near, 24)
    tops = height * rng.uniform(0.9, 1.1, 24)
    scale = canvas.camera.pixels_per_metre(middle.z)
    with canvas.thing('vegetation'):
        end = [(0, 0, 0), (0, side * 1.0, 0), (0, side * 1.0, height), (0, 0, height)]
        canvas.face(frame, end, color, _AWAY, 0.2, 0.15)
        outline = [(s, 0, t) for s, t in zip(steps, tops)] + [(far - near, 0, 0), (0, 0, 0)]
        shown = canvas.shade(middle, color, (0, -0.8 * side, 0.5))
        canvas.fill(canvas.project(frame, outline), shown, 0.24, 0.15 * scale)
        shade = _panel(canvas, frame, 0, far - near, 0, height * 0.35)
        canvas.darken(shade, 0.72, 0.1 * scale)


def _leaves(canvas: Canvas, frame: Frame, lobes: Sequence[Tuple[float, float, float]], color: Sequence[float]) -> None:
    """Paint round clumps of leaves: dark below, lit above, ragged at the edge.

    Args:
        canvas: The canvas.
        frame: Frame whose along axis is to the right.
        lobes: (along, up, radius) of each clump in metres.
        color: RGB of the leaves.
    """
    rng = canvas.rng
    scale = canvas.camera.pixels_per_metre(frame.z)
    middles = np.array(sorted(lobes, key=lambda lobe: -lobe[2]))
    dark = canvas.light.lit(np.multiply(color, 0.72), (0, 0, -1), frame.z)
    bright = canvas.light.lit(np.multiply(color, 1.18), canvas.light.sun, frame.z)
    _blobs(canvas, frame, middles, 0.13, 24, np.broadcast_to(dark, (len(middles), 3)), silhouette=True)
    # Far clumps are specks, so fewer leaves are enough.
    count = 7 if middles[0, 2] * scale > 12 else 3
    parents = np.repeat(middles, count, axis=0)
    turn = rng.uniform(0, 2 * np.pi, len(parents))
    out = parents[:, 2] * rng.uniform(0, 0.75, len(parents))
    clumps = np.stack(
        (
            parents[:, 0] + out * np.cos(turn) - 0.1 * parents[:, 2],
            parents[:, 1] + out * np.sin(turn) + 0.15 * parents[:, 2],
            parents[:, 2] * rng.uniform(0.16, 0.36, len(parents)),
        ),
        axis=1,
    )
    share = rng.uniform(0.25, 0.85, (len(parents), 1))
    _blobs(canvas, frame, clumps, 0.2, 8, np.multiply(dark, 1 - share) + np.multiply(bright, share), silhouette=False)
    canvas.roughen(0.2, 0.18 * scale)


def _blobs(
    canvas: Canvas,
    frame: Frame,
    blobs: np.ndarray,
    ragged: float,
    corners: int,
    colors: np.ndarray,
    silhouette: bool,
) -> None:
    """Paint ragged discs that face the camera.

    Args:
        canvas: The canvas.
        frame: Frame whose along axis is to the right.
        blobs: float, shape (M, 3): along, up and radius of each in metres.
        ragged: Standard deviation of the radius, as a share of it.
        corners: Corners of each outline.
        colors: float, shape (M, 3): RGB in the picture.
        silhouette: Whether they belong to the open thing's silhouette.
    """
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    reach = blobs[:, 2:] * (1 + ragged * canvas.rng.standard_normal((len(blobs), corners)))
    local = np.zeros((len(blobs), corners, 3))
    local[..., 0] = blobs[:, :1] + reach * np.cos(angles)
    local[..., 2] = blobs[:, 1:2] + reach * np.sin(angles)
    outlines = canvas.project(frame, local.reshape(-1, 3)).reshape(len(blobs), corners, 2)
    canvas.fill_each(outlines, colors, silhouette)
