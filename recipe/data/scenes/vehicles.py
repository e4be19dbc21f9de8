"""Cars, vans, lorries, buses and trams, as solids seen in perspective.

Local axes: along points to the vehicle's front, across to its right, up from the ground; metres.
"""

from __future__ import annotations

import math
from typing import List, Sequence, Tuple

import numpy as np

from . import palette
from .camera import Frame
from .canvas import Canvas
from .surroundings import footprint_shadow

Corner = Tuple[float, float, float]
UP = (0.0, 0.0, 1.0)
_TYRE, _RUBBER = (28, 28, 30), (34, 34, 36)
_TAIL_LIGHT, _HEADLIGHT = (176, 26, 24), (236, 234, 214)
_PLATE = (226, 226, 214)
_ROUND = np.linspace(0, 2 * math.pi, 14, endpoint=False)

# length, width, belt height, total height, then the cabin's along positions as shares of the length:
# rear foot, rear top, front top, front foot
_CARS = (
    (4.4, 1.8, 0.92, 1.46, -0.36, -0.20, 0.10, 0.24),  # saloon
    (4.0, 1.75, 0.95, 1.50, -0.48, -0.40, 0.08, 0.24),  # hatchback
    (4.6, 1.82, 0.95, 1.50, -0.49, -0.43, 0.08, 0.22),  # estate
    (4.6, 1.9, 1.08, 1.72, -0.48, -0.42, 0.10, 0.24),  # off-roader
    (4.9, 1.95, 1.15, 2.05, -0.49, -0.48, 0.26, 0.42),  # van
)


class Solid:
    """A box-like vehicle: which of its faces are visible, and how to paint on them.

    Args:
        canvas: The canvas.
        frame: Centre of the vehicle on the ground, along = forward.
        length: Metres.
        width: Metres.
    """

    def __init__(self, canvas: Canvas, frame: Frame, length: float, width: float) -> None:
        self.canvas, self.frame, self.length, self.width = canvas, frame, length, width
        half_l, half_w = length / 2, width / 2
        self.end = 1 if frame.faces_camera(half_l, 0, (1, 0)) else -1
        self.side = 1 if frame.faces_camera(0, half_w, (0, 1)) else -1
        self.end_visible = frame.faces_camera(self.end * half_l, 0, (self.end, 0))
        self.side_visible = frame.faces_camera(0, self.side * half_w, (0, self.side))
        self.scale = canvas.camera.pixels_per_metre(frame.z)

    def on_side(self, profile: Sequence[Tuple[float, float]], color: Sequence[float], inset: float = 0.0, **kw) -> None:
        """Paint a polygon of (along, up) corners on the visible side, inset metres inwards."""
        if not self.side_visible:
            return
        across = self.side * (self.width / 2 - inset)
        self.canvas.face(self.frame, [(a, across, u) for a, u in profile], color, (0, self.side, 0), **kw)

    def on_end(self, profile: Sequence[Tuple[float, float]], color: Sequence[float], inset: float = 0.0, **kw) -> None:
        """Paint a polygon of (across, up) corners on the visible end, inset metres inwards."""
        if not self.end_visible:
            return
        along = self.end * (self.length / 2 - inset)
        self.canvas.face(self.frame, [(along, a, u) for a, u in profile], color, (self.end, 0, 0), **kw)

    def roof(self, corners: Sequence[Corner], color: Sequence[float]) -> None:
        """Paint a level face, which is visible only to an eye above it."""
        if self.canvas.camera.eye_height > corners[0][2]:
            self.canvas.face(self.frame, corners, color, UP)

    def free(self, corners: Sequence[Corner], color: Sequence[float], normal: Corner, **kw) -> None:
        """Paint any face."""
        self.canvas.face(self.frame, corners, color, normal, **kw)

    def wheels(self, positions: Sequence[float], radius: float) -> None:
        """Paint the wheels of the visible side, and their parts visible below the visible end."""
        half = self.width / 2
        if self.end_visible:
            for across in (-1, 1):
                left, right = sorted((across * half * 0.98, across * half * 0.68))
                self.on_end(_rect(left, right, 0.0, radius * 1.1), _TYRE, inset=0.3)
        for along in positions:
            for share, color in ((1.0, _TYRE), (0.58, (128, 130, 132)), (0.2, (70, 72, 74))):
                ring = [(along + share * radius * math.cos(a), radius * (1 + share * math.sin(a))) for a in _ROUND]
                self.on_side(ring, color)

    def plate(self, up: float) -> None:
        """Paint the number plate; Cityscapes gives it a label of its own that is never drawn."""
        if not self.end_visible or self.scale < 8 * self.canvas.factor:
            return
        corners = [(self.end * self.length / 2, a, u) for a, u in _rect(-0.26, 0.26, up, up + 0.13)]
        outline = self.canvas.project(self.frame, corners)
        self.canvas.fill_many([outline], self.canvas.shade(self.frame, _PLATE, (self.end, 0, 0)))

    def plate_polygon(self, up: float) -> None:
        """Write the number plate's polygon, once the vehicle's own is written."""
        if not self.end_visible or self.scale < 8 * self.canvas.factor:
            return
        corners = [(self.end * self.length / 2, a, u) for a, u in _rect(-0.26, 0.26, up, up + 0.13)]
        points = self.canvas.project(self.frame, corners) / self.canvas.factor
        inside = (points >= 0).all() and (points < (self.canvas.width, self.canvas.height)).all()
        if inside:
            self.canvas.add_polygon('license plate', [(round(x), round(y)) for x, y in points])


def _rect(left: float, right: float, low: float, high: float) -> List[Tuple[float, float]]:
    return [(left, low), (right, low), (right, high), (left, high)]


def car(canvas: Canvas, frame: Frame, label: str = 'car') -> None:
    """Paint a passenger car or a small van.

    Args:
        canvas: The canvas.
        frame: Its centre on the ground; along is forward.
        label: 'car', or 'cargroup' if single cars cannot be told apart.
    """
    rng = canvas.rng
    length, width, belt, height, *cabin = _CARS[rng.choice(len(_CARS), p=(0.28, 0.26, 0.18, 0.18, 0.1))]
    rear_foot, rear_top, front_top, front_foot = (share * length for share in cabin)
    paint = palette.pick(rng, palette.CAR_PAINT)
    glass = palette.pick(rng, palette.GLASS[:4], 5)
    half_l, half_w, roof_w = length / 2, width / 2, width / 2 - 0.17
    footprint_shadow(canvas, frame, length, width)
    solid = Solid(canvas, frame, length, width)
    with canvas.thing(label):
        # Underbody and wheels come first: the body hides their tops.
        solid.on_end(_rect(-half_w + 0.1, half_w - 0.1, 0.16, 0.5), _RUBBER, inset=0.1)
        solid.on_side(_rect(-half_l + 0.1, half_l - 0.1, 0.2, 0.5), _RUBBER, inset=0.1)
        low = 0.32
        side_body = [
            (-half_l, low),
            (half_l, low),
            (half_l, belt - 0.2),
            (half_l - 0.12, belt - 0.1),
            (front_foot, belt),
            (rear_foot, belt),
            (-half_l + 0.06, belt - 0.06),
        ]
        solid.on_side(side_body, paint)
        deck_end = front_foot if solid.end > 0 else rear_foot
        edge = belt - (0.15 if solid.end > 0 else 0.06)
        tip = solid.end * half_l
        deck = [(tip, -half_w, edge), (tip, half_w, edge), (deck_end, half_w, belt), (deck_end, -half_w, belt)]
        solid.free(deck, np.multiply(paint, 1.05), UP)
        solid.on_end(_rect(-half_w, half_w, low, edge), paint)
        # Cabin: body colour all over, then the glass.
        foot, top = (front_foot, front_top) if solid.end > 0 else (rear_foot, rear_top)
        screen = [
            (foot, -half_w + 0.04, belt),
            (foot, half_w - 0.04, belt),
            (top, roof_w, height),
            (top, -roof_w, height),
        ]
        side = solid.side
        flank = [
            (rear_foot, side * half_w, belt),
            (front_foot, side * half_w, belt),
            (front_top, side * roof_w, height),
            (rear_top, side * roof_w, height),
        ]
        if solid.side_visible:
            solid.free(flank, paint, (0, side * 0.95, 0.3))
            solid.free(_shrink(flank, 0.13), glass, (0, side * 0.95, 0.3))
            middle = (front_foot + rear_foot) / 2
            pillar = [(middle - 0.05, side * half_w, belt), (middle + 0.05, side * half_w, belt)]
            pillar += [(middle + 0.02, side * roof_w, height), (middle - 0.07, side * roof_w, height)]
            solid.free(pillar, paint, (0, side, 0))
        if solid.end_visible:
            solid.free(screen, paint, (solid.end * 0.8, 0, 0.6))
            solid.free(_shrink(screen, 0.12), np.multiply(glass, rng.uniform(0.9, 1.3)), (solid.end * 0.8, 0, 0.6))
        roof = [(front_top, -roof_w, height), (front_top, roof_w, height)]
        roof += [(rear_top, roof_w, height), (rear_top, -roof_w, height)]
        solid.roof(roof, np.multiply(paint, 1.08))
        # Trim.
        solid.on_end(_rect(-half_w, half_w, low, low + 0.18), np.multiply(paint, 0.6))
        lamp = _TAIL_LIGHT if solid.end < 0 else _HEADLIGHT
        high = edge - 0.08
        for across in (-1, 1):
            left, right = sorted((across * half_w * 0.97, across * half_w * 0.62))
            solid.on_end(_rect(left, right, high - 0.2, high), lamp)
        if solid.end > 0:
            solid.on_end(_rect(-half_w * 0.5, half_w * 0.5, low + 0.22, edge - 0.14), _RUBBER)
        solid.plate(0.42)
        solid.on_side([(0.0, low), (0.04, low), (0.04, belt), (0.0, belt)], np.multiply(paint, 0.6))
        for along in (-0.3 * length, 0.31 * length):
            arch = [(along + 0.4 * math.cos(a), max(0.36 + 0.4 * math.sin(a), 0.25)) for a in _ROUND]
            solid.on_side(arch, np.multiply(paint, 0.3))
        solid.wheels((-0.3 * length, 0.31 * length), 0.33)
    solid.plate_polygon(0.42)


def bus(canvas: Canvas, frame: Frame) -> None:
    """Paint a city bus: one tall box on wheels, glazed nearly all round."""
    rng = canvas.rng
    length, width, height = rng.uniform(9, 12), 2.55, rng.uniform(2.95, 3.3)
    paint = palette.livery(rng, palette.BUS_PAINT)
    band = palette.pick(rng, palette.FLEET_PAINT)
    glass = palette.pick(rng, palette.GLASS, 5)
    half_l, half_w = length / 2, width / 2
    footprint_shadow(canvas, frame, length, width)
    solid = Solid(canvas, frame, length, width)
    with canvas.thing('bus'):
        solid.on_end(_rect(-half_w + 0.15, half_w - 0.15, 0.12, 0.5), _RUBBER, inset=0.1)
        solid.on_side(_rect(-half_l, half_l, 0.3, height), paint, grain=0.02)
        solid.on_end(_rect(-half_w, half_w, 0.3, height), paint)
        solid.on_side(_rect(-half_l, half_l, 0.3, 0.8), band)
        # Side glazing with pillars, then the doors.
        solid.on_side(_rect(-half_l + 0.3, half_l - 0.3, 1.35, 2.5), glass)
        for along in np.arange(-half_l + 1.6, half_l - 0.5, 1.5):
            solid.on_side(_rect(along, along + 0.13, 1.35, 2.5), np.multiply(paint, 0.55))
        if solid.side > 0:
            for along in (half_l - 1.9, -0.6):
                solid.on_side(_rect(along, along + 1.25, 0.4, 2.5), np.multiply(glass, 0.75))
                solid.on_side(_rect(along + 0.58, along + 0.67, 0.4, 2.5), paint)
        # End: big pane, sign box, lamps.
        low = 1.05 if solid.end > 0 else 1.5
        solid.on_end(_rect(-half_w + 0.15, half_w - 0.15, low, 2.55), np.multiply(glass, 1.1))
        solid.on_end(_rect(-half_w + 0.4, half_w - 0.4, 2.62, 2.88), (26, 26, 26))
        solid.on_end(_rect(-half_w + 0.55, half_w - 0.8, 2.68, 2.82), (228, 170, 60))
        lamp = _TAIL_LIGHT if solid.end < 0 else _HEADLIGHT
        for across in (-1, 1):
            left, right = sorted((across * half_w * 0.95, across * half_w * 0.7))
            solid.on_end(_rect(left, right, 0.6, 0.85), lamp)
        solid.plate(0.5)
        for along in (-half_l + 2.6, half_l - 2.6):
            arch = [(along + 0.62 * math.cos(a), max(0.5 + 0.6 * math.sin(a), 0.3)) for a in _ROUND]
            solid.on_side(arch, _RUBBER)
        solid.wheels((-half_l + 2.6, half_l - 2.6), 0.5)
    solid.plate_polygon(0.5)


def truck(canvas: Canvas, frame: Frame) -> None:
    """Paint a lorry: a cab, a gap, and a windowless box, tarpaulin or tank behind it."""
    rng = canvas.rng
    length, width = rng.uniform(7.0, 9.0), 2.5
    cab_height, box_height = rng.uniform(2.5, 2.9), rng.uniform(3.2, 3.8)
    cab_paint = palette.livery(rng, palette.FLEET_PAINT)
    box_paint = palette.livery(rng, palette.TRUCK_PAINT)
    glass = palette.pick(rng, palette.GLASS, 5)
    half_l, half_w = length / 2, width / 2
    cab_rear, box_front = half_l - 2.0, half_l - 2.3
    footprint_shadow(canvas, frame, length, width)
    solid = Solid(canvas, frame, length, width)

    def box() -> None:
        solid.on_side(_rect(-half_l, box_front, 1.05, box_height), box_paint, grain=0.03, grain_m=0.5)
        ribs = np.arange(-half_l, box_front, rng.uniform(0.7, 1.3))
        for along in ribs:
            solid.on_side(_rect(along, along + 0.07, 1.05, box_height), np.multiply(box_paint, 0.8))
        for up in (1.05, box_height - 0.14):
            solid.on_side(_rect(-half_l, box_front, up, up + 0.14), np.multiply(box_paint, 0.7))
        if rng.random() < 0.6:  # lettering
            ink = palette.pick(rng, palette.FLEET_PAINT)
            solid.on_side(_rect(-half_l * 0.6, half_l * 0.2, 2.0, 2.5), ink)
        along = -half_l if solid.end < 0 else box_front
        normal = (float(solid.end), 0.0, 0.0)
        end = [(along, a, u) for a, u in _rect(-half_w, half_w, 1.0, box_height)]
        if solid.end_visible:
            solid.free(end, np.multiply(box_paint, 0.95), normal, grain=0.02)
        if solid.end < 0:
            for across in (-half_w, -0.04, half_w - 0.1):
                solid.on_end(_rect(across, across + 0.1, 1.05, box_height), np.multiply(box_paint, 0.6))
            for up in (1.02, box_height - 0.12):
                solid.on_end(_rect(-half_w, half_w, up, up + 0.12), np.multiply(box_paint, 0.6))
            for across in (-0.5, 0.4):
                solid.on_end(_rect(across, across + 0.07, 1.2, box_height - 0.3), np.multiply(box_paint, 0.72))

    def cab() -> None:
        solid.on_side(_rect(cab_rear, half_l, 0.5, cab_height), cab_paint)
        solid.on_side(
            [(cab_rear + 0.5, 1.55), (half_l - 0.15, 1.55), (half_l - 0.35, 2.35), (cab_rear + 0.5, 2.35)], glass
        )
        if solid.end > 0:
            solid.on_end(_rect(-half_w, half_w, 0.45, cab_height), cab_paint)
            solid.on_end(_rect(-half_w + 0.12, half_w - 0.12, 1.5, 2.4), glass)
            solid.on_end(_rect(-half_w + 0.3, half_w - 0.3, 0.75, 1.3), _RUBBER)
            for across in (-1, 1):
                left, right = sorted((across * half_w * 0.95, across * half_w * 0.72))
                solid.on_end(_rect(left, right, 0.55, 0.8), _HEADLIGHT)

    with canvas.thing('truck'):
        solid.on_side(_rect(-half_l, half_l, 0.55, 1.05), _RUBBER, inset=0.2)
        solid.on_end(_rect(-half_w + 0.1, half_w - 0.1, 0.5, 1.05), _RUBBER, inset=0.1)
        for part in (box, cab) if solid.end > 0 else (cab, box):
            part()
        if solid.end < 0:
            for across in (-1, 1):
                left, right = sorted((across * half_w * 0.95, across * half_w * 0.66))
                solid.on_end(_rect(left, right, 0.72, 0.92), _TAIL_LIGHT)
            solid.on_end(_rect(-half_w, half_w, 0.5, 0.62), (170, 40, 36))
        solid.plate(0.66)
        solid.wheels((-half_l + 1.2, -half_l + 2.4, half_l - 1.1), 0.5)
    solid.plate_polygon(0.66)


def tram(canvas: Canvas, frame: Frame) -> None:
    """Paint a tram: long, skirted to the rails, glazed in one ribbon, with a current collector and its wire."""
    rng = canvas.rng
    length, width, height = rng.uniform(17, 24), 2.5, rng.uniform(3.3, 3.6)
    paint = palette.livery(rng, palette.TRAM_PAINT)
    lower = palette.pick(rng, palette.FLEET_PAINT) if rng.random() < 0.5 else np.multiply(paint, 0.7)
    glass = palette.pick(rng, palette.GLASS[:4], 5)
    half_l, half_w = length / 2, width / 2
    nose, waist = 0.9, 1.15
    footprint_shadow(canvas, frame, length, width)
    solid = Solid(canvas, frame, length, width)
    tip = solid.end * half_l
    shoulder = solid.end * (half_l - nose)
    with canvas.thing('train'):
        flank = [(-half_l + nose, height), (-half_l, waist), (-half_l, 0.12)]
        flank += [(half_l, 0.12), (half_l, waist), (half_l - nose, height)]
        solid.on_side(flank, paint, grain=0.02)
        solid.on_side(_rect(-half_l, half_l, 0.12, waist), lower)
        solid.on_side(_rect(-half_l + 1.2, half_l - 1.2, 1.4, 2.6), glass)
        for along in np.arange(-half_l + 2.2, half_l - 1.2, 1.4):
            solid.on_side(_rect(along, along + 0.1, 1.4, 2.6), np.multiply(paint, 0.5))
        for along in np.arange(-half_l + 3.2, half_l - 3, 6.0):
            solid.on_side(_rect(along, along + 1.3, 0.3, 2.65), np.multiply(glass, 0.8))
            solid.on_side(_rect(along + 0.6, along + 0.7, 0.3, 2.65), paint)
        for along in np.arange(-half_l + 7.0, half_l - 5, 7.0):  # bellows between the sections
            solid.on_side(_rect(along, along + 0.5, 0.2, height), (52, 52, 54))
        if solid.end_visible:
            normal = (float(solid.end), 0.0, 0.0)
            solid.on_end(_rect(-half_w, half_w, 0.12, waist), lower)
            face = [(tip, -half_w, waist), (tip, half_w, waist)]
            face += [(shoulder, half_w, height), (shoulder, -half_w, height)]
            solid.free(face, paint, (solid.end * 0.9, 0, 0.4))
            solid.free(_shrink(face, 0.16), glass, (solid.end * 0.9, 0, 0.4))
            line = [(tip, a, u) for a, u in _rect(-0.6, 0.6, waist - 0.02, waist + 0.16)]
            solid.free(line, (228, 170, 60), normal)
            for across in (-0.75, 0.0, 0.75):
                lamp = _HEADLIGHT if solid.end > 0 else _TAIL_LIGHT
                solid.on_end(_rect(across - 0.13, across + 0.13, 0.6, 0.85), lamp)
        pod = [(-2.5, solid.side * 0.9, height), (2.5, solid.side * 0.9, height)]
        pod += [(2.2, solid.side * 0.9, height + 0.35), (-2.2, solid.side * 0.9, height + 0.35)]
        solid.free(pod, (120, 122, 124), (0, solid.side, 0))
    wire = 0.05 * solid.scale
    collector = canvas.project(frame, [(0, 0, height + 0.3), (-0.9, 0, height + 0.9), (0.2, 0, height + 1.6)])
    canvas.line(collector, (58, 60, 62), max(wire, 1.0))
    canvas.line(
        canvas.project(frame, [(-half_l - 6, 0, height + 1.6), (half_l + 6, 0, height + 1.6)]), (60, 62, 66), wire
    )


def _shrink(corners: Sequence[Corner], share: float) -> List[Corner]:
    """Return a face's corners pulled towards its middle by a share of the way."""
    points = np.asarray(corners)
    return [tuple(point) for point in points + (points.mean(0) - points) * share]
