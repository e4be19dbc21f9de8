"""Lays out one street and paints it, far to near."""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, Dict, List, Tuple

import numpy as np

from . import frontage, furniture, palette, people, surroundings, vehicles
from .camera import Frame
from .canvas import Canvas
from .surroundings import Strip

LANE_M = 3.3
# A feature with stride n is in every n-th scene (and now and then in others), so that small sets hold it.
STRIDES: Dict[str, int] = {
    'bus': 4,
    'truck': 4,
    'tram': 4,
    'wall': 3,
    'fence': 3,
    'park': 2,
    'traffic light': 2,
    'cyclist': 2,
    'motorcyclist': 3,
    'parked bicycle': 3,
    'parked motorcycle': 3,
}
_CHANCE = 0.06  # of a feature in a scene outside its stride
# The three big vehicles take turns, so that one street is not full of them.
_PHASES = {'bus': 0, 'truck': 1, 'tram': 2}


def features(seed: int, split: int, index: int, rng: np.random.Generator) -> Dict[str, bool]:
    """Return which of the less common features scene number index shows."""
    offsets = np.random.default_rng([seed, split]).integers(0, 60, len(STRIDES) + 1)
    shown = {}
    for offset, (name, stride) in zip(offsets, STRIDES.items()):
        turn = index + (offsets[-1] + _PHASES[name] if name in _PHASES else offset)
        shown[name] = turn % stride == 0 or rng.random() < _CHANCE
    return shown


@dataclasses.dataclass
class Side:
    """One side of the street, going outwards; sideways positions in metres, positive on both sides.

    Args:
        sign: -1 left, 1 right.
        lane_edge: Outer edge of the outermost lane.
        parking: Width of the parking lane; 0 for none.
        track: Width of a tram track; 0 for none.
        verge: Width of the planted strip before the pavement; 0 for none.
        pavement: Width of the pavement.
        yard: Width of the green strip behind the pavement; 0 for none.
    """

    sign: int
    lane_edge: float
    parking: float
    track: float
    verge: float
    pavement: float
    yard: float

    @property
    def kerb(self) -> float:
        """Outer edge of the road."""
        return self.lane_edge + self.parking + self.track

    @property
    def path(self) -> float:
        """Inner edge of the pavement."""
        return self.kerb + self.verge

    @property
    def back(self) -> float:
        """Outer edge of the pavement."""
        return self.path + self.pavement

    @property
    def front(self) -> float:
        """Position of the house fronts."""
        return self.back + self.yard


class Street:
    """One street scene under construction.

    Args:
        canvas: The canvas.
        shown: Its features, from ``features``.
    """

    def __init__(self, canvas: Canvas, shown: Dict[str, bool]) -> None:
        self.canvas, self.shown, self.rng = canvas, shown, canvas.rng
        rng = self.rng
        self.lanes = {-1: int(rng.choice((1, 2), p=(0.6, 0.4))), 1: int(rng.choice((0, 1), p=(0.75, 0.25)))}
        # A side street would leave little of a wall or a fence.
        barriers = shown['wall'] or shown['fence']
        self.tram_crosses = shown['tram'] and not barriers and rng.random() < 0.5
        self.crossing = self.tram_crosses or (not barriers and rng.random() < 0.4)
        self.crossing_z = rng.uniform(15, 21) if self.crossing else math.inf
        self.crossing_width = 9.0
        # Side of the wall; a fence is on the other side.
        self.wall_side = 1 if rng.random() < 0.5 else -1
        self.park_side = 1 if rng.random() < 0.5 else -1
        self.sides = {sign: self._side(sign) for sign in (-1, 1)}
        self.things: List[Tuple[float, Callable[[], None]]] = []
        self.taken: List[Tuple[float, float, float, float]] = []

    def paint(self) -> None:
        """Paint the whole scene."""
        canvas = self.canvas
        surroundings.sky(canvas)
        surroundings.skyline(canvas)
        self._ground()
        self._markings()
        self._frontages()
        self._big_vehicles()
        self._two_wheelers()
        self._walkers()
        self._furniture()
        self._cars()
        self._greenery()
        for _, paint in sorted(self.things, key=lambda thing: -thing[0]):
            paint()
        surroundings.hood(canvas)

    def _side(self, sign: int) -> Side:
        rng = self.rng
        along_track = self.shown['tram'] and not self.tram_crosses and sign < 0
        park = self.shown['park'] and sign == self.park_side
        barrier = self.shown['wall' if sign == self.wall_side else 'fence']
        # Parked cars would hide low things behind them.
        open_side = along_track or park or barrier
        return Side(
            sign=sign,
            lane_edge=(self.lanes[sign] + 0.5) * LANE_M + rng.uniform(0, 0.6),
            parking=2.3 if rng.random() < 0.5 and not open_side else 0.0,
            track=3.6 if along_track else 0.0,
            verge=rng.uniform(1.8, 3.6) if rng.random() < (0.75 if park else 0.2) else 0.0,
            pavement=rng.uniform(1.8, 2.8) if barrier or park else rng.uniform(2.4, 5.0),
            yard=rng.uniform(5.0, 10.0) if park else (rng.uniform(1.0, 3.0) if rng.random() < 0.2 else 0.0),
        )

    # --- ground -----------------------------------------------------------------------------------------------------

    def _ground(self) -> None:
        canvas, rng = self.canvas, self.rng
        road = palette.pick(rng, palette.ASPHALT, 6)
        paving = palette.pick(rng, palette.PAVING, 7)
        strips = [Strip('ground', -120, 120, palette.pick(rng, palette.GROUND_COVER), 0.1, 0.3)]
        for side in self.sides.values():
            grass = palette.pick(rng, palette.GROUND_COVER)
            wide = 'terrain' if side.yard > 0 else 'sidewalk'
            color, grain = (grass, 0.17) if side.yard > 0 else (paving, 0.05)
            strips.append(self._strip(wide, side.sign, side.back - 0.1, side.front + 40, color, grain))
            strips.append(self._strip('sidewalk', side.sign, side.path, side.back, paving, 0.05))
            if side.verge:
                strips.append(self._strip('terrain', side.sign, side.kerb, side.path, grass, 0.17))
        left, right = (self.sides[sign] for sign in (-1, 1))
        strips.append(Strip('road', -left.kerb, right.kerb, road, 0.05, 0.05))
        for side in self.sides.values():
            if side.parking and rng.random() < 0.3:
                bay = np.multiply(road, rng.uniform(0.85, 1.2))
                strips.append(self._strip('parking', side.sign, side.lane_edge, side.kerb, bay, 0.06))
            if side.track:
                ballast = palette.pick(rng, ((112, 102, 94), *palette.GROUND_COVER))
                strips.append(self._strip('rail track', side.sign, side.lane_edge, side.kerb, ballast, 0.18))
        surroundings.ground(canvas, strips)
        for side in self.sides.values():
            self._pavement_edges(side, paving)
        self._cross_street(road)
        if self.canvas.light.sunny:
            self._house_shadow()

    @staticmethod
    def _strip(label: str, sign: int, near: float, far: float, color: np.ndarray, grain: float) -> Strip:
        left, right = sorted((sign * near, sign * far))
        return Strip(label, left, right, color, grain, 0.1)

    def _pavement_edges(self, side: Side, paving: np.ndarray) -> None:
        canvas = self.canvas
        left, right = sorted((side.sign * side.path, side.sign * side.back))
        surroundings.slabs(canvas, left, right, self.rng.uniform(0.6, 1.1), np.multiply(paving, 0.78))
        kerb_inner, kerb_outer = sorted((side.sign * (side.kerb - 0.04), side.sign * (side.kerb + 0.2)))
        surroundings.mark(canvas, kerb_inner, kerb_outer, 1.5, 70, np.multiply(paving, 1.18))
        gutter = sorted((side.sign * (side.kerb - 0.22), side.sign * (side.kerb - 0.04)))
        surroundings.mark(canvas, gutter[0], gutter[1], 1.5, 60, np.multiply(paving, 0.55))
        if side.track:
            middle = side.sign * (side.lane_edge + side.track / 2)
            for rail in (middle - 0.72, middle + 0.72):
                surroundings.mark(canvas, rail - 0.07, rail + 0.07, 1.5, 90, (74, 72, 72))
                surroundings.mark(canvas, rail - 0.02, rail + 0.03, 1.5, 60, (186, 186, 184))

    def _cross_street(self, road: np.ndarray) -> None:
        if not self.crossing:
            return
        canvas = self.canvas
        near, far = self.crossing_z - self.crossing_width / 2, self.crossing_z + self.crossing_width / 2
        outline = surroundings.strip_outline(canvas, -60, 60, near, far)
        with canvas.thing('road'):
            canvas.fill(outline, canvas.light.lit(road, (0, 1, 0), self.crossing_z), 0.03, 4)
        if self.tram_crosses:
            for rail in (self.crossing_z - 0.72, self.crossing_z + 0.72):
                surroundings.mark(canvas, -60, 60, rail - 0.06, rail + 0.06, (66, 64, 64))

    def _house_shadow(self) -> None:
        sun_x, sun_y, _ = self.canvas.light.sun
        side = self.sides[1 if sun_x > 0 else -1]
        reach = min(9.0 * abs(sun_x) / max(sun_y, 0.2), 12.0)
        edges = sorted((side.sign * (side.front + 30), side.sign * (side.front - reach)))
        outline = surroundings.strip_outline(self.canvas, edges[0], edges[1], 3.0, 120)
        self.canvas.darken(outline, self.canvas.light.shadow)

    def _markings(self) -> None:
        canvas, rng = self.canvas, self.rng
        paint = palette.pick(rng, ((222, 220, 212), (198, 196, 190)), 6)
        breaks = (self.crossing_z - 7.5, self.crossing_z + 6)

        def dashes(x: float, length: float, gap: float, width: float = 0.14) -> None:
            for z in np.arange(rng.uniform(2, 4), 70, length + gap):
                if not breaks[0] - length < z < breaks[1]:
                    surroundings.mark(canvas, x - width / 2, x + width / 2, z, z + length, paint)

        solid = rng.random() < 0.3
        dashes(-LANE_M / 2, 6.0 if solid else 3.0, 0.0 if solid else 3.5)
        for sign in (-1, 1):
            for lane in range(1, self.lanes[sign] + (sign > 0)):
                dashes(sign * (lane + 0.5) * LANE_M, 3.0, 4.0)
            if rng.random() < 0.5:
                dashes(sign * (self.sides[sign].lane_edge - 0.1), 8.0, 0.0, 0.12)
        left, right = self.sides[-1].kerb, self.sides[1].kerb
        if self.crossing or rng.random() < 0.25:  # zebra crossing
            z = breaks[0] + 0.5 if self.crossing else rng.uniform(9, 20)
            for x in np.arange(-left + 0.4, right - 0.6, 1.1):
                surroundings.mark(canvas, x, x + 0.55, z, z + 2.6, paint)
            if rng.random() < 0.6:
                surroundings.mark(canvas, -LANE_M / 2, right - 0.2, z - 1.6, z - 1.1, paint)
        if rng.random() < 0.3:  # arrow
            z, wide = rng.uniform(8, 14), 0.14
            surroundings.mark(canvas, -wide, wide, z, z + 2.2, paint)
            for step in range(4):
                half = 0.5 * (1 - step / 4)
                surroundings.mark(canvas, -half, half, z + 2.2 + 0.35 * step, z + 2.55 + 0.35 * step, paint)
        for _ in range(rng.integers(0, 4)):  # patches and manhole covers
            x, z = rng.uniform(-left + 0.5, right - 0.8), rng.uniform(6, 22)
            size, shade = rng.uniform(0.4, 1.6), rng.uniform(0.75, 1.15)
            corners = canvas.project(Frame(x, z), [(0, 0, 0), (size * 2, 0, 0), (size * 2, size, 0), (0, size, 0)])
            canvas.darken(corners, min(shade, 1.0))

    # --- along the street -------------------------------------------------------------------------------------------

    def _frontages(self) -> None:
        far_to_near: List[Tuple[float, Callable[[], None]]] = []
        for side in self.sides.values():
            self._line(side, far_to_near)
        for _, paint in sorted(far_to_near, key=lambda item: -item[0]):
            paint()
        self._barriers()

    def _line(self, side: Side, far_to_near: List[Tuple[float, Callable[[], None]]]) -> None:
        """Line one side with houses and green gaps."""
        rng, canvas = self.rng, self.canvas
        tallest = rng.uniform(6, 15)
        z = 5.0
        while z < 95:
            length = rng.uniform(8, 18)
            near, far = z, z + length
            z = far
            if self.crossing and near < self.crossing_z + 5.5 and far > self.crossing_z - 5.5:
                if near < self.crossing_z - 7.5:
                    far = self.crossing_z - 5.5
                elif far > self.crossing_z + 7.5:
                    near = self.crossing_z + 5.5
                else:
                    continue
            x = side.sign * (side.front + rng.uniform(0, 0.8))
            if rng.random() < (0.5 if side.yard > 3.5 else 0.82):
                height = float(np.clip(tallest * rng.uniform(0.6, 1.25), 4.5, 17))
                far_to_near.append((near, _call(frontage.house, canvas, side.sign, x, near, far, height)))
                if z < 95 and rng.random() < 0.18:
                    z += rng.uniform(1.5, 5)
            else:
                for _ in range(rng.integers(2, 5)):
                    tree_z, height = rng.uniform(near, far), rng.uniform(4.5, 9)
                    reach = x + side.sign * rng.uniform(0.5, 6)
                    far_to_near.append((tree_z, _call(frontage.tree, canvas, reach, tree_z, height, height * 0.3)))
                if rng.random() < 0.6:
                    far_to_near.append(
                        (near, _call(frontage.hedge, canvas, side.sign, x, near, far, rng.uniform(0.8, 1.8)))
                    )

    def _barriers(self) -> None:
        """Put up walls and fences at the back of the pavement."""
        rng, canvas = self.rng, self.canvas
        for name, sign in (('wall', self.wall_side), ('fence', -self.wall_side)):
            if not self.shown[name]:
                continue
            side = self.sides[sign]
            x = sign * (side.back + 0.05)
            near = max(5.0, canvas.camera.depth_in_view(x, 1.0) * rng.uniform(0.95, 1.15))
            far = near + rng.uniform(12, 22)
            if self.crossing and near < self.crossing_z + 5 and far > self.crossing_z - 5:
                if self.crossing_z - 5 - near > 4:
                    far = self.crossing_z - 5
                else:
                    near = max(near, self.crossing_z + 5)
                    far = near + rng.uniform(10, 18)
            if name == 'wall':
                frontage.wall(canvas, sign, x, near, far, rng.uniform(1.7, 3.0))
            else:
                frontage.fence(canvas, sign, x, near, far, rng.uniform(1.7, 2.6))

    # --- things on the street, collected first and painted by depth -----------------------------------------------

    def _put(self, z: float, paint: Callable[..., None], *args: object) -> None:
        self.things.append((z, _call(paint, self.canvas, *args)))

    def _free(self, x: float, z: float, half_x: float, half_z: float) -> bool:
        """Claim a footprint (metres) unless something is there already."""
        for other_x, other_z, other_half_x, other_half_z in self.taken:
            if abs(x - other_x) < half_x + other_half_x and abs(z - other_z) < half_z + other_half_z:
                return False
        self.taken.append((x, z, half_x, half_z))
        return True

    def _big_vehicles(self) -> None:
        rng = self.rng
        if self.shown['tram']:
            if self.tram_crosses:
                frame = Frame(rng.uniform(-5, 5), self.crossing_z, math.copysign(math.pi / 2, rng.random() - 0.5))
                self._free(frame.x, frame.z, 14, 1.6)
            else:
                side = self.sides[-1]
                x = -(side.lane_edge + side.track / 2)
                nearest = self.canvas.camera.depth_in_view(x, 0.75)
                frame = Frame(x, nearest + rng.uniform(9.5, 14), math.pi if rng.random() < 0.6 else 0.0)
                self._free(x - 2, frame.z, 4.5, 14)
            self._put(frame.z, vehicles.tram, frame)
        for name, paint, half in (('bus', vehicles.bus, 6.0), ('truck', vehicles.truck, 4.5)):
            if not self.shown[name]:
                continue
            for _ in range(8):
                crosses = self.crossing and not self.tram_crosses and rng.random() < 0.6
                if crosses:
                    yaw = math.pi / 2 if rng.random() < 0.5 else -math.pi / 2
                    frame = Frame(rng.uniform(-3.5, 3.5), self.crossing_z + rng.uniform(-2, 2), yaw)
                    sizes = (half, 1.4)
                else:
                    lane = int(rng.integers(-self.lanes[-1], self.lanes[1] + 1))
                    yaw = (math.pi if lane < 0 else 0.0) + rng.normal(0, 0.03)
                    frame = Frame(lane * LANE_M + rng.normal(0, 0.15), half + rng.uniform(8.5, 15), yaw)
                    sizes = (1.4, half + 1)
                if self._free(frame.x, frame.z, *sizes):
                    self._put(frame.z, paint, frame)
                    break

    def _two_wheelers(self) -> None:
        rng, canvas = self.rng, self.canvas

        def ridden(motor: bool) -> None:
            machine = people.motorcycle if motor else people.bicycle
            for _ in range(8):
                z = rng.uniform(6.5, 11)
                lane = rng.uniform(-self.sides[-1].lane_edge + 0.8, self.sides[1].lane_edge - 0.5)
                if abs(lane) > 0.3 * z:
                    continue
                yaw = rng.uniform(0.35, 1.5) * (1 if rng.random() < 0.5 else -1)
                if rng.random() < 0.5:
                    yaw = math.pi - yaw
                if self._free(lane, z, 1.0, 1.0):
                    frame = Frame(lane, z, yaw)
                    self._put(z, machine, frame)
                    self._put(z - 0.01, people.rider, frame, motor)
                    return

        def parked(machine: Callable[..., None]) -> None:
            side = self.sides[1 if rng.random() < 0.6 else -1]
            for _ in range(8):
                x = side.sign * rng.uniform(side.path + 0.4, side.back - 0.2)
                z = max(canvas.camera.depth_in_view(x, 0.85), 6.5) + rng.uniform(0, 4)
                if self._free(x, z, 0.9, 0.8):
                    frame = Frame(x, z, rng.uniform(0.6, 2.5) * (1 if rng.random() < 0.5 else -1))
                    self._put(z, machine, frame)
                    return

        if self.shown['cyclist']:
            ridden(motor=False)
            if rng.random() < 0.25:
                ridden(motor=False)
        if self.shown['motorcyclist']:
            ridden(motor=True)
        if self.shown['parked bicycle']:
            for _ in range(rng.integers(1, 4)):
                parked(people.bicycle)
        if self.shown['parked motorcycle']:
            for _ in range(rng.integers(1, 3)):
                parked(people.motorcycle)

    def _walkers(self) -> None:
        rng, canvas = self.rng, self.canvas
        for _ in range(rng.integers(4, 10)):
            side = self.sides[1 if rng.random() < 0.5 else -1]
            if rng.random() < 0.18:
                x, z = rng.uniform(-4, 3), rng.uniform(9, 20)
            else:
                x = side.sign * rng.uniform(side.path + 0.3, side.back - 0.2)
                z = max(canvas.camera.depth_in_view(x, 0.92), 6.5) + rng.uniform(0, 7.0)
            height = rng.uniform(1.55, 1.92) if rng.random() < 0.88 else rng.uniform(1.1, 1.4)
            if self._free(x, z, 0.35, 0.3):
                self._put(z, people.person, x, z, height)
                if rng.random() < 0.3 and self._free(x + 0.75, z + 0.4, 0.3, 0.3):
                    self._put(z + 0.4, people.person, x + 0.75, z + 0.4, rng.uniform(1.5, 1.9))

    def _furniture(self) -> None:
        rng = self.rng
        lamp_side = 1 if rng.random() < 0.5 else -1
        spacing = rng.uniform(12, 20)
        for sign in (-1, 1):
            side = self.sides[sign]
            edge = sign * (side.kerb + 0.5)
            near = max(self.canvas.camera.depth_in_view(edge, 0.9), 7.0)
            if sign == lamp_side or rng.random() < 0.4:
                for z in np.arange(near + rng.uniform(0, 5), 34, spacing):
                    self._place(edge, z, furniture.lamp, sign)
            for _ in range(rng.integers(1, 3)):
                self._place(edge, near + rng.uniform(0, 9), furniture.sign)
            if rng.random() < 0.3:
                self._place(sign * (side.path + 1.2), near + rng.uniform(3, 12), furniture.signpost)
            if rng.random() < 0.35:
                self._place(sign * (side.back - 0.6), near + rng.uniform(2, 10), furniture.bin_or_box)
            if rng.random() < 0.25:
                self._place(edge, near + rng.uniform(0, 4), furniture.bollards, int(rng.integers(3, 7)))
        if self.shown['traffic light']:
            for sign in (1, -1):
                side = self.sides[sign]
                edge = sign * (side.kerb + 0.4)
                z = self.crossing_z - 8 if self.crossing else rng.uniform(9, 16)
                z = max(z, self.canvas.camera.depth_in_view(edge, 0.9))
                overhead = rng.random() < 0.35
                self._put(z, furniture.traffic_light, edge, z, sign, overhead)

    def _place(self, x: float, z: float, paint: Callable[..., None], *args: object) -> None:
        """Put furniture on the ground unless the place is taken or in the side street."""
        in_side_street = self.crossing and abs(z - self.crossing_z) < self.crossing_width / 2
        if not in_side_street and self._free(x, z, 0.3, 0.3):
            self._put(z, paint, x, z, *args)

    def _cars(self) -> None:
        rng, canvas = self.rng, self.canvas
        for side in self.sides.values():
            if not side.parking:
                continue
            x = side.sign * (side.lane_edge + side.parking / 2 + 0.05)
            start = max(canvas.camera.depth_in_view(x, 0.95), 7.0)
            for z in np.arange(start + rng.uniform(0, 4), 44, rng.uniform(5.4, 6.6)):
                if rng.random() < 0.3 or abs(z - self.crossing_z) < self.crossing_width / 2 + 2.5:
                    continue
                self._car(x + rng.normal(0, 0.08), z, 0.0 if side.sign > 0 else math.pi)
        for lane in range(-self.lanes[-1], self.lanes[1] + 1):
            z = rng.uniform(9, 26)
            while z < 44:
                if rng.random() < 0.65:
                    self._car(lane * LANE_M + rng.normal(0, 0.2), z, math.pi if lane < 0 else 0.0)
                z += rng.uniform(8, 22)
        if self.crossing and rng.random() < 0.5:
            yaw = math.pi / 2 if rng.random() < 0.5 else -math.pi / 2
            self._car(rng.uniform(-6, 6), self.crossing_z + rng.uniform(-2, 2), yaw)

    def _car(self, x: float, z: float, yaw: float) -> None:
        half = (2.6, 1.1) if abs(math.sin(yaw)) > 0.5 else (1.1, 2.6)
        if self._free(x, z, *half):
            self._put(z, vehicles.car, Frame(x, z, yaw + self.rng.normal(0, 0.04)), 'cargroup' if z > 38 else 'car')

    def _greenery(self) -> None:
        rng, canvas = self.rng, self.canvas
        for side in self.sides.values():
            barrier = self.shown['wall' if side.sign == self.wall_side else 'fence']
            planted = not barrier and (side.verge > 0 or rng.random() < 0.35)
            if planted:
                x = side.sign * (side.kerb + (side.verge / 2 if side.verge else 0.7))
                near = max(canvas.camera.depth_in_view(x, 1.05), 9.0)
                for z in np.arange(near + rng.uniform(0, 6), 60, rng.uniform(8, 15)):
                    if rng.random() < 0.75:
                        height = rng.uniform(4.5, 8)
                        self._place(x, z, frontage.tree, height, height * rng.uniform(0.22, 0.32))
            if side.yard > 0:
                for _ in range(rng.integers(0, 3)):
                    x = side.sign * rng.uniform(side.back + 0.5, side.front)
                    z = max(canvas.camera.depth_in_view(x, 0.95), 7.0) + rng.exponential(6)
                    self._place(x, z, frontage.bush, rng.uniform(0.8, 2.5), rng.uniform(0.7, 1.5))


def _call(paint: Callable[..., None], *args: object) -> Callable[[], None]:
    return lambda: paint(*args)
