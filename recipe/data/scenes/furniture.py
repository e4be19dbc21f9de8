"""Street furniture: lamps, posts, traffic signs, traffic lights and bins."""

from __future__ import annotations

import math
from typing import Sequence, Tuple

import numpy as np

from . import palette
from .camera import Frame
from .canvas import Canvas

TOWARDS = (0.0, 1.0, 0.0)  # the camera's side of a frame whose along axis points right
_RED, _AMBER, _GREEN = (214, 44, 36), (232, 168, 44), (52, 196, 110)
_CIRCLE = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 14, endpoint=False)]
_TRIANGLE = [(0, 1.0), (-0.95, -0.65), (0.95, -0.65)]
_SQUARE = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
_DIAMOND = [(0, 1.05), (1.05, 0), (0, -1.05), (-1.05, 0)]
_OCTAGON = [(math.cos(a), math.sin(a)) for a in np.linspace(math.pi / 8, 2 * math.pi + math.pi / 8, 8, endpoint=False)]


def _upright(x: float, z: float) -> Frame:
    return Frame(x, z, math.pi / 2)


def _post(canvas: Canvas, frame: Frame, height: float, width: float, color: Sequence[float]) -> None:
    """Paint a round post inside an open thing: lit on one side, dark on the other."""
    half = width / 2
    box = [(-half, 0, 0), (half, 0, 0), (half, 0, height), (-half, 0, height)]
    canvas.face(frame, box, color, TOWARDS)
    third = width / 3
    dark = -1 if canvas.light.sun[0] > 0 else 1
    edge = sorted((dark * half, dark * (half - third)))
    side = [(edge[0], 0, 0), (edge[1], 0, 0), (edge[1], 0, height), (edge[0], 0, height)]
    canvas.face(frame, side, np.multiply(color, 0.7), TOWARDS)


def lamp(canvas: Canvas, x: float, z: float, side: int) -> None:
    """Paint a street lamp whose arm reaches over the road."""
    rng = canvas.rng
    frame = _upright(x, z)
    height, width = rng.uniform(5.5, 8.5), rng.uniform(0.26, 0.36)
    color = palette.pick(rng, palette.POLE)
    with canvas.thing('pole'):
        _post(canvas, frame, height, width, color)
        reach = -side * rng.uniform(1.2, 2.4)
        arm = [(0, 0, height - 0.1), (reach * 0.5, 0, height + 0.35), (reach, 0, height + 0.4)]
        shown = canvas.shade(frame, color, TOWARDS)
        canvas.line(canvas.project(frame, arm), shown, 0.14 * canvas.camera.pixels_per_metre(z))
        head = [(reach - 0.35, 0, height + 0.28), (reach + 0.35, 0, height + 0.28), (reach + 0.25, 0, height + 0.5)]
        canvas.face(frame, [*head, (reach - 0.25, 0, height + 0.5)], np.multiply(color, 0.8), TOWARDS)


def bollards(canvas: Canvas, x: float, near: float, count: int) -> None:
    """Paint a row of bollards along the kerb, 1.6 m apart, far to near."""
    color = palette.pick(canvas.rng, (*palette.POLE, (170, 60, 50)))
    for index in reversed(range(count)):
        frame = _upright(x, near + 1.6 * index)
        with canvas.thing('pole'):
            _post(canvas, frame, 0.95, 0.22, color)
        canvas.face(
            frame,
            [(-0.11, 0, 0.65), (0.11, 0, 0.65), (0.11, 0, 0.82), (-0.11, 0, 0.82)],
            (215, 212, 205),
            TOWARDS,
            silhouette=False,
        )


def sign(canvas: Canvas, x: float, z: float) -> None:
    """Paint a post with one or two traffic signs."""
    rng = canvas.rng
    frame = _upright(x, z)
    size = rng.uniform(0.45, 0.62)
    top = rng.uniform(2.4, 3.4)
    with canvas.thing('pole'):
        _post(canvas, frame, top + 0.1, 0.2, palette.pick(rng, palette.POLE))
    _plate(canvas, frame, top - size, size)
    if rng.random() < 0.4:
        _plate(canvas, frame, top - 3.0 * size - 0.05, size * 0.9)


def signpost(canvas: Canvas, x: float, z: float) -> None:
    """Paint a large direction sign on two posts."""
    rng = canvas.rng
    frame = _upright(x, z)
    wide, tall, foot = rng.uniform(2.0, 3.0), rng.uniform(1.2, 1.7), rng.uniform(1.7, 2.4)
    metal = palette.pick(rng, palette.POLE)
    for offset in (-0.35 * wide, 0.35 * wide):
        with canvas.thing('pole'):
            _post(canvas, Frame(x + offset, z, math.pi / 2), foot + tall, 0.16, metal)
    back, ink = (((38, 74, 148), (236, 236, 234)), ((232, 230, 224), (30, 30, 34)), ((230, 196, 52), (32, 30, 28)))[
        rng.integers(3)
    ]
    half = wide / 2
    with canvas.thing('traffic sign'):
        _rectangle(canvas, frame, -half, half, foot, foot + tall, ink)
        _rectangle(
            canvas, frame, -half + 0.07, half - 0.07, foot + 0.07, foot + tall - 0.07, palette.pick(rng, (back,), 5)
        )
        for row in range(2):
            low = foot + 0.2 + row * (tall - 0.3) / 2
            _rectangle(canvas, frame, -0.4 * wide, rng.uniform(0, 0.4) * wide, low, low + 0.2, ink)


def _plate(canvas: Canvas, frame: Frame, up: float, size: float) -> None:
    """Paint one sign plate around a height; size is its half width in metres."""
    rng = canvas.rng
    white, black = (234, 232, 226), (34, 34, 36)
    blue, yellow = (40, 82, 160), (236, 196, 60)
    kind = rng.integers(7)
    with canvas.thing('traffic sign'):
        if kind == 0:  # prohibition
            _shape(canvas, frame, up, size, _CIRCLE, _RED)
            _shape(canvas, frame, up, size * 0.7, _CIRCLE, white)
            _rectangle(canvas, frame, -0.35 * size, 0.35 * size, up - 0.3 * size, up + 0.3 * size, black)
        elif kind == 1:  # warning or give way
            flip = -1 if rng.random() < 0.5 else 1
            _shape(canvas, frame, up, size * 1.15, [(a, b * flip) for a, b in _TRIANGLE], _RED)
            _shape(canvas, frame, up, size * 0.68, [(a, b * flip) for a, b in _TRIANGLE], white)
        elif kind == 2:  # mandatory
            _shape(canvas, frame, up, size, _CIRCLE, white)
            _shape(canvas, frame, up, size * 0.9, _CIRCLE, blue)
            _rectangle(canvas, frame, -0.14 * size, 0.14 * size, up - 0.55 * size, up + 0.55 * size, white)
        elif kind == 3:  # information
            _shape(canvas, frame, up, size, _SQUARE, white)
            _shape(canvas, frame, up, size * 0.9, _SQUARE, blue)
            _rectangle(canvas, frame, -0.35 * size, 0.35 * size, up - 0.5 * size, up + 0.1 * size, white)
        elif kind == 4:  # priority road
            _shape(canvas, frame, up, size * 1.05, _DIAMOND, white)
            _shape(canvas, frame, up, size * 0.75, _DIAMOND, yellow)
        elif kind == 5:  # stop
            _shape(canvas, frame, up, size, _OCTAGON, white)
            _shape(canvas, frame, up, size * 0.9, _OCTAGON, _RED)
            _rectangle(canvas, frame, -0.65 * size, 0.65 * size, up - 0.18 * size, up + 0.18 * size, white)
        else:  # no entry
            _shape(canvas, frame, up, size, _CIRCLE, _RED)
            _rectangle(canvas, frame, -0.65 * size, 0.65 * size, up - 0.18 * size, up + 0.18 * size, white)


def traffic_light(canvas: Canvas, x: float, z: float, side: int, overhead: bool) -> None:
    """Paint a traffic light on a post, or two with one over the road."""
    rng = canvas.rng
    frame = _upright(x, z)
    metal = palette.pick(rng, palette.POLE)
    top = rng.uniform(3.2, 3.8)
    reach = -side * rng.uniform(2.6, 3.6)
    with canvas.thing('pole'):
        _post(canvas, frame, 6.0 if overhead else top, 0.26, metal)
        if overhead:
            shown = canvas.shade(frame, metal, TOWARDS)
            arm = canvas.project(frame, [(0, 0, 5.9), (reach, 0, 6.1)])
            canvas.line(arm, shown, 0.15 * canvas.camera.pixels_per_metre(z))
    lit = int(rng.integers(3))
    _signal_head(canvas, frame, 0.0, top, lit)
    if overhead:
        _signal_head(canvas, frame, reach, 6.2, lit)


def _signal_head(canvas: Canvas, frame: Frame, along: float, top: float, lit: int) -> None:
    """Paint a housing with three lamps; lit counts from the top."""
    rng = canvas.rng
    half, tall = rng.uniform(0.27, 0.34), rng.uniform(1.15, 1.4)
    housing = palette.pick(rng, ((34, 36, 38), (46, 50, 46), (60, 58, 52)), 5)
    with canvas.thing('traffic light'):
        if rng.random() < 0.35:  # backing board with a pale rim
            _rectangle(
                canvas, frame, along - half - 0.12, along + half + 0.12, top - tall - 0.12, top + 0.12, (206, 204, 198)
            )
        _rectangle(canvas, frame, along - half, along + half, top - tall, top, housing)
        for index, (color, off) in enumerate(zip((_RED, _AMBER, _GREEN), ((70, 26, 24), (78, 58, 26), (24, 60, 40)))):
            up = top - tall * (index + 0.5) / 3
            ring = [(along + a * tall * 0.135, 0, up + b * tall * 0.135) for a, b in _CIRCLE]
            # A lamp emits light: no shading.
            canvas.fill(canvas.project(frame, ring), color if index == lit else off)


def bin_or_box(canvas: Canvas, x: float, z: float) -> None:
    """Paint a litter bin or a switch box: things on the pavement without a class."""
    rng = canvas.rng
    frame = _upright(x, z)
    wide, tall = rng.uniform(0.5, 1.0), rng.uniform(0.8, 1.3)
    color = palette.pick(rng, palette.METAL + palette.FLEET_PAINT)
    with canvas.thing('static'):
        _rectangle(canvas, frame, -wide / 2, wide / 2, 0, tall, color)
        _rectangle(canvas, frame, -wide / 2, wide / 2, tall - 0.15, tall, np.multiply(color, 0.6))


def _shape(
    canvas: Canvas,
    frame: Frame,
    up: float,
    size: float,
    outline: Sequence[Tuple[float, float]],
    color: Sequence[float],
) -> None:
    canvas.face(frame, [(a * size, 0, up + b * size) for a, b in outline], color, TOWARDS)


def _rectangle(
    canvas: Canvas, frame: Frame, left: float, right: float, low: float, high: float, color: Sequence[float]
) -> None:
    canvas.face(frame, [(left, 0, low), (right, 0, low), (right, 0, high), (left, 0, high)], color, TOWARDS)
