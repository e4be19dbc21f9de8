"""People on foot, and bicycles and motorcycles with and without riders."""

from __future__ import annotations

import math
from typing import List, Sequence, Tuple

import numpy as np

from . import palette
from .camera import Frame
from .canvas import Canvas
from .surroundings import footprint_shadow

_TYRE = (32, 32, 34)
_ROUND = np.linspace(0, 2 * math.pi, 16, endpoint=False)
TOWARDS = (0.0, 1.0, 0.0)
Corner = Tuple[float, float, float]


def person(canvas: Canvas, x: float, z: float, height: float) -> None:
    """Paint a person on foot, seen from any side: standing or in mid-stride.

    Args:
        canvas: The canvas.
        x: Sideways position in metres.
        z: Depth in metres.
        height: Body height in metres.
    """
    rng = canvas.rng
    frame = Frame(x, z, math.pi / 2)
    size = height / 1.75
    top, legs = palette.pick(rng, palette.CLOTH), palette.pick(rng, palette.TROUSERS)
    skin, hair = palette.pick(rng, palette.SKIN, 5), palette.pick(rng, palette.HAIR, 5)
    stride = rng.uniform(-0.32, 0.32) if rng.random() < 0.75 else 0.05
    broad = rng.uniform(0.19, 0.26) * (0.75 if abs(stride) > 0.2 else 1.0)
    footprint_shadow(canvas, frame, 0.5, 0.35)
    with canvas.thing('person'):
        draw = _Body(canvas, frame, size)
        draw.limb((0.05, 0.88), (stride, 0.06), 0.17, np.multiply(legs, 0.8))
        draw.limb((-0.05, 0.88), (-stride, 0.06), 0.17, legs)
        for foot in (stride, -stride):
            draw.limb((foot - 0.04, 0.04), (foot + 0.14, 0.04), 0.1, (40, 36, 34))
        draw.limb((broad - 0.02, 1.38), (broad + stride * 0.6, 0.85), 0.11, np.multiply(top, 0.8))
        if rng.random() < 0.25:  # coat or dress
            draw.shape([(-broad, 1.45), (broad, 1.45), (broad * 1.25, 0.55), (-broad * 1.25, 0.55)], top)
        draw.shape(
            [
                (-broad, 1.4),
                (-broad * 0.6, 1.48),
                (broad * 0.6, 1.48),
                (broad, 1.4),
                (broad * 0.8, 0.82),
                (-broad * 0.8, 0.82),
            ],
            top,
        )
        draw.limb((-broad + 0.02, 1.38), (-broad - stride * 0.6, 0.85), 0.11, np.multiply(top, 0.9))
        draw.shade_half(broad, 0.82, 1.46, np.multiply(top, 0.75))
        if rng.random() < 0.35:  # bag
            bag = palette.pick(rng, palette.CLOTH)
            side = -broad - 0.05 if rng.random() < 0.5 else broad - 0.12
            draw.shape([(side, 0.75), (side + 0.2, 0.75), (side + 0.18, 1.1), (side + 0.02, 1.1)], bag)
        draw.disc((0, 1.61), 0.115, 0.145, skin)
        draw.shape(
            [(-0.12, 1.6), (-0.11, 1.72), (0, 1.77), (0.11, 1.72), (0.12, 1.6), (0.05, 1.68), (-0.05, 1.68)], hair
        )


def bicycle(canvas: Canvas, frame: Frame) -> None:
    """Paint a bicycle; the frame's along axis points in its direction of travel."""
    rng = canvas.rng
    paint = palette.pick(rng, palette.CAR_PAINT + palette.CLOTH)
    scale = canvas.camera.pixels_per_metre(frame.z)
    footprint_shadow(canvas, frame, 1.6, 0.2)
    with canvas.thing('bicycle'):
        for along in (-0.55, 0.55):
            _wheel(canvas, frame, along, 0.36, 0.1)
        hub, crank, seat, head, front = (-0.55, 0.36), (-0.08, 0.34), (-0.22, 0.88), (0.4, 0.92), (0.55, 0.36)
        color = canvas.shade(frame, paint, _outward(frame))
        for a, b in ((hub, crank), (hub, seat), (seat, crank), (seat, head), (crank, head), (head, front)):
            _tube(canvas, frame, a, b, color, 0.1 * scale)
        dark = canvas.shade(frame, (38, 36, 36), _outward(frame))
        saddle = canvas.project(frame, [(-0.38, 0, 0.96), (-0.08, 0, 0.94)])
        bars = canvas.project(frame, [(0.36, -0.28, 1.08), (0.36, 0.28, 1.08)])
        stem = canvas.project(frame, [(0.4, 0, 0.9), (0.36, 0, 1.08)])
        for stroke in (saddle, bars, stem):
            canvas.line(stroke, dark, 0.09 * scale)
        # Annotators outline the whole machine, not each spoke.
        canvas.cover(
            canvas.project(frame, [(-0.55, 0, 0.4), (-0.3, 0, 0.95), (0.4, 0, 1.0), (0.55, 0, 0.4), (0, 0, 0.2)])
        )


def motorcycle(canvas: Canvas, frame: Frame) -> None:
    """Paint a motorcycle or a scooter: fat wheels, tank, engine, seat, lamp."""
    rng = canvas.rng
    paint = palette.pick(rng, palette.CAR_PAINT + palette.FLEET_PAINT)
    outward = _outward(frame)
    scale = canvas.camera.pixels_per_metre(frame.z)
    footprint_shadow(canvas, frame, 2.0, 0.6)
    with canvas.thing('motorcycle'):
        for along in (-0.72, 0.74):
            _wheel(canvas, frame, along, 0.34, 0.17)

        def panel(profile: Sequence[Tuple[float, float]], color: Sequence[float], half: float = 0.16) -> None:
            for across in (half, -half):
                corners = [(a, across, u) for a, u in profile]
                canvas.fill(canvas.project(frame, corners), canvas.shade(frame, color, outward))

        panel([(-0.5, 0.22), (0.42, 0.22), (0.5, 0.6), (-0.55, 0.62)], (56, 56, 60))
        panel([(-0.3, 0.28), (0.1, 0.26), (0.18, 0.5), (-0.3, 0.5)], (140, 142, 144), 0.18)
        panel([(-0.1, 0.62), (0.48, 0.6), (0.52, 0.9), (0.1, 0.98)], paint, 0.18)
        panel([(-1.0, 0.72), (-0.1, 0.62), (-0.05, 0.85), (-0.5, 0.84), (-1.02, 0.92)], paint)
        panel([(-0.85, 0.84), (-0.05, 0.8), (0.0, 0.92), (-0.8, 0.94)], (36, 34, 36), 0.17)
        panel([(0.45, 0.62), (0.78, 0.66), (0.66, 1.12), (0.48, 1.05)], paint, 0.2)
        for stroke in ([(0.74, 0, 0.34), (0.52, 0, 1.0)], [(0.48, -0.36, 1.12), (0.48, 0.36, 1.12)]):
            canvas.line(canvas.project(frame, stroke), canvas.shade(frame, (70, 72, 74), outward), 0.1 * scale)
        if frame.faces_camera(0.7, 0, (1, 0)):
            lamp = [(0.74, 0.13 * math.cos(a), 0.88 + 0.13 * math.sin(a)) for a in _ROUND[::2]]
            canvas.fill(canvas.project(frame, lamp), (236, 234, 214))
        else:
            lamp = [(-1.02, -0.12, 0.72), (-1.02, 0.12, 0.72), (-1.02, 0.12, 0.84), (-1.02, -0.12, 0.84)]
            canvas.fill(canvas.project(frame, lamp), (190, 28, 26))


def rider(canvas: Canvas, frame: Frame, motor: bool) -> None:
    """Paint a rider on a two-wheeler; call it after the machine, with the machine's frame."""
    rng = canvas.rng
    outward = _outward(frame)
    bright = rng.random() < 0.6
    top = palette.pick(rng, palette.HI_VIS if bright else palette.CLOTH)
    legs, skin = palette.pick(rng, palette.TROUSERS), palette.pick(rng, palette.SKIN, 5)
    helmet = palette.pick(rng, palette.CAR_PAINT) if motor or rng.random() < 0.5 else palette.pick(rng, palette.HAIR)
    seat, neck = ((-0.3, 0.92), (0.02, 1.5)) if motor else ((-0.22, 0.98), (0.1, 1.56))
    hand = (0.46, 1.14) if motor else (0.36, 1.12)
    knee, foot = ((0.12, 0.82), (-0.05, 0.36)) if motor else ((0.12, 0.78), (-0.06, 0.32))

    def limb(a: Tuple[float, float], b: Tuple[float, float], across: Tuple[float, float], width: float, color) -> None:
        ends = canvas.project(frame, [(a[0], across[0], a[1]), (b[0], across[1], b[1])])
        canvas.fill(_capsule(ends, width * scale), canvas.shade(frame, color, outward))

    scale = canvas.camera.pixels_per_metre(frame.z)
    with canvas.thing('rider'):
        far = -1 if frame.faces_camera(0, 0.1, (0, 1)) else 1
        for across, gain in ((far, 0.75), (-far, 1.0)):
            reach = 0.12 * across
            limb(seat, knee, (reach, reach * 1.5), 0.19, np.multiply(legs, gain))
            limb(knee, foot, (reach * 1.5, reach * 1.2), 0.15, np.multiply(legs, gain * 0.95))
            limb(foot, (foot[0] + 0.18, foot[1] - 0.03), (reach, reach), 0.1, (38, 36, 36))
            if across == far:
                limb(neck, hand, (0.16 * across, 0.26 * across), 0.11, np.multiply(top, 0.75))
                torso = [(seat[0], -0.17, seat[1]), (seat[0], 0.17, seat[1])]
                torso += [(neck[0], 0.21, neck[1] - 0.06), (neck[0], -0.21, neck[1] - 0.06)]
                canvas.fill(canvas.project(frame, torso), canvas.shade(frame, top, outward))
                limb(seat, (neck[0], neck[1] - 0.1), (0, 0), 0.34, top)
            else:
                limb((neck[0], neck[1] - 0.05), hand, (0.17 * across, 0.28 * across), 0.12, np.multiply(top, 0.9))
        head = (neck[0] + 0.1, neck[1] + 0.18)
        centre = canvas.project(frame, [(head[0], 0, head[1])])[0]
        for color, lift, radius in ((skin, 0.0, 0.125), (helmet, 0.05, 0.15 if motor else 0.13)):
            start = 0 if motor and color is helmet else math.pi
            arc = np.linspace(start, 2 * math.pi, 14)
            ring = np.stack((np.cos(arc), np.sin(arc) - lift / radius * 0.6), 1) * radius * scale + centre
            if color is skin:
                ring = np.stack((np.cos(_ROUND), np.sin(_ROUND)), 1) * radius * scale + centre
            canvas.fill(ring, canvas.shade(frame, color, outward))


class _Body:
    """Draws a body's parts on an upright plane that faces the camera; positions are (sideways, up) metres."""

    def __init__(self, canvas: Canvas, frame: Frame, size: float) -> None:
        self.canvas, self.frame, self.size = canvas, frame, size

    def shape(self, outline: Sequence[Tuple[float, float]], color: Sequence[float], silhouette: bool = True) -> None:
        corners = [(a * self.size, 0, b * self.size) for a, b in outline]
        self.canvas.face(self.frame, corners, color, TOWARDS, 0.05, 0.08, silhouette)

    def limb(self, a: Tuple[float, float], b: Tuple[float, float], width: float, color: Sequence[float]) -> None:
        ends = self.canvas.project(self.frame, [(p[0] * self.size, 0, p[1] * self.size) for p in (a, b)])
        scale = self.canvas.camera.pixels_per_metre(self.frame.z) * self.size
        self.canvas.fill(_capsule(ends, width * scale), self.canvas.shade(self.frame, color, TOWARDS))

    def disc(self, centre: Tuple[float, float], wide: float, tall: float, color: Sequence[float]) -> None:
        self.shape([(centre[0] + wide * math.cos(a), centre[1] + tall * math.sin(a)) for a in _ROUND], color)

    def shade_half(self, broad: float, low: float, high: float, color: Sequence[float]) -> None:
        away = -1 if self.canvas.light.sun[0] > 0 else 1
        outer, inner = away * broad * 0.85, away * broad * 0.35
        self.shape([(outer, low), (inner, low), (inner, high), (outer, high - 0.06)], color, silhouette=False)


def _capsule(ends: np.ndarray, width: float) -> np.ndarray:
    """Return the outline, canvas pixels (N, 2), of a thick line with bevelled ends."""
    direction = ends[1] - ends[0]
    reach = math.hypot(*direction)
    unit = direction / reach if reach > 1e-6 else np.array([0.0, 1.0])
    across = np.array([-unit[1], unit[0]]) * width / 2
    tip = unit * width * 0.35
    flat = across * 0.55
    points: List[np.ndarray] = [ends[0] + across, ends[1] + across, ends[1] + flat + tip, ends[1] - flat + tip]
    points += [ends[1] - across, ends[0] - across, ends[0] - flat - tip, ends[0] + flat - tip]
    return np.stack(points)


def _wheel(canvas: Canvas, frame: Frame, along: float, radius: float, tyre: float) -> None:
    """Paint a spoked wheel as a ring of the tyre's width in metres; its silhouette is the whole disc."""
    scale = canvas.camera.pixels_per_metre(frame.z)
    ring = canvas.project(frame, [(along + radius * math.cos(a), 0, radius * (1 + math.sin(a))) for a in _ROUND])
    color = canvas.light.lit(_TYRE, (0, 0, -1), frame.z)
    canvas.cover(ring)
    canvas.line(np.concatenate((ring, ring[:1])), color, tyre * scale)
    hub = canvas.project(frame, [(along, 0, radius)])[0]
    half = 0.07 * scale
    canvas.fill(hub + np.array([(-half, -half), (half, -half), (half, half), (-half, half)]), (96, 98, 100))


def _tube(
    canvas: Canvas, frame: Frame, a: Tuple[float, float], b: Tuple[float, float], color: Sequence[float], width: float
) -> None:
    canvas.line(canvas.project(frame, [(a[0], 0, a[1]), (b[0], 0, b[1])]), color, width)


def _outward(frame: Frame) -> Corner:
    """Return the local normal of the frame's side that the camera sees."""
    return (0.0, 1.0, 0.0) if frame.faces_camera(0, 0, (0, 1)) else (0.0, -1.0, 0.0)
