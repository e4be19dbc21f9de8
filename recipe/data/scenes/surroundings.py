"""Background and ground: sky, far skyline, ground, road markings, and the camera car's own hood."""

from __future__ import annotations

import dataclasses
from typing import List, Sequence, Tuple

import cv2
import numpy as np

from . import palette, texture
from .camera import Frame
from .canvas import Canvas

FAR_M = 160.0
# Depths at which strips along the road are sampled, so that they follow a bend.
_DEPTHS = np.concatenate(([1.5, 3.0], np.geomspace(5.0, FAR_M, 16)))


@dataclasses.dataclass(frozen=True)
class Strip:
    """A lengthwise strip of ground.

    Args:
        label: Cityscapes label.
        left: Sideways position of its left edge in metres.
        right: Sideways position of its right edge in metres.
        color: RGB.
        grain: Strength of its texture.
        grain_m: Size of one grain in metres.
    """

    label: str
    left: float
    right: float
    color: Sequence[float]
    grain: float
    grain_m: float


def sky(canvas: Canvas) -> None:
    """Paint the sky down to just below the horizon."""
    light, rng = canvas.light, canvas.rng
    height, width = canvas.pixels.shape[:2]
    bottom = int(min(max(canvas.camera.horizon + 2, 1), height))
    # The ramp is smooth, so a small one can be stretched.
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[:, None, None] ** 0.8
    picture = np.float32(light.zenith) * (1 - ramp) + np.float32(light.skyline) * ramp
    noise = np.zeros((64, 128), np.float32)
    for scale, weight in ((16, 1.0), (8, 0.6), (4, 0.35), (2, 0.2)):
        row, column = rng.integers(0, texture.FIELD_PX, 2)
        noise += weight * texture.sample(scale, 64, 128, row, column)
    cover = np.clip((noise - 1.2 * (1 - 2 * light.cloudiness)) * 0.6 + 0.5, 0, 1)[..., None] * (1 - 0.5 * ramp)
    shaded = np.float32(light.cloud) * (1 - 0.06 * np.clip(noise, -1, 2))[..., None]
    picture = np.clip(picture * (1 - cover) + shaded * cover, 0, 255).astype(np.uint8)
    canvas.pixels[:bottom] = cv2.resize(picture, (width, bottom), interpolation=cv2.INTER_CUBIC)
    with canvas.thing('sky'):
        canvas.cover(np.array([(0, 0), (width, 0), (width, bottom), (0, bottom)], np.float64))


def skyline(canvas: Canvas) -> None:
    """Paint far houses and trees all along the horizon, so that the road's far end is closed."""
    camera, light, rng = canvas.camera, canvas.light, canvas.rng
    width = canvas.pixels.shape[1]
    z = rng.uniform(90, 150)
    scale = camera.pixels_per_metre(z)
    foot = camera.horizon + camera.eye_height * scale + 1
    left = -10.0
    while left < width:
        wide = rng.uniform(5, 16) * scale
        tall = rng.uniform(3, 13) * scale
        right = left + wide
        if rng.random() < 0.5:
            color = light.lit(palette.pick(rng, palette.FACADE), (0, 0, -1), z)
            with canvas.thing('building'):
                top = foot - tall
                roof = top - rng.uniform(0, 0.3) * tall
                middle = (left + right) / 2
                corners = [(left, foot), (left, top), (middle, roof), (right, top), (right, foot)]
                canvas.fill(np.array(corners), color, 0.08, 3)
                panes = []
                for row in np.arange(top + 0.15 * tall, foot - 0.25 * tall, max(3.0 * scale, 3.0)):
                    for column in np.arange(left + 0.1 * wide, right - 0.15 * wide, max(2.6 * scale, 3.0)):
                        panes.append(_box(column, row, max(1.1 * scale, 1.2), max(1.4 * scale, 1.5)))
                canvas.fill_many(panes, np.multiply(color, 0.72))
        else:
            color = light.lit(palette.pick(rng, palette.FOLIAGE), (0, 0.6, -0.8), z)
            with canvas.thing('vegetation'):
                steps = np.linspace(0, np.pi, 14)
                reach = rng.uniform(0.8, 1.15, 14)
                columns = (left + right) / 2 - np.cos(steps) * wide * 0.62 * reach
                rows = foot - np.sin(steps) * tall * 0.75 * reach
                crown = np.stack((columns, rows), 1)
                crown = np.concatenate((crown, [(right, foot + 1), (left, foot + 1)]))
                canvas.fill(crown, color, 0.16, max(2.0, scale * 0.8))
        left = right - rng.uniform(0, 0.25) * wide


def ground(canvas: Canvas, strips: Sequence[Strip]) -> None:
    """Paint strips of ground in the order given."""
    noise = _ground_noise(canvas)
    top = canvas.pixels.shape[0] - noise.shape[0]
    strength = np.zeros(noise.shape, np.float32)
    for strip in strips:
        corners = strip_outline(canvas, strip.left, strip.right)
        with canvas.thing(strip.label):
            canvas.fill(corners, canvas.light.lit(strip.color, (0, 1, 0), 10.0))
        cv2.fillPoly(strength, [np.round(corners - (0, top)).astype(np.int32)], strip.grain)
    # The noise was sampled on the ground plane, so the grain is in perspective.
    gain = 1 + noise * strength
    rows = canvas.pixels[top:]
    rows[:] = cv2.multiply(rows, cv2.merge([gain] * 3), dtype=cv2.CV_8U)


def strip_outline(canvas: Canvas, left: float, right: float, near: float = 1.5, far: float = FAR_M) -> np.ndarray:
    """Return the outline, canvas pixels (N, 2), of the ground between two sideways positions in metres."""
    depths = np.concatenate(([near], _DEPTHS[(near < _DEPTHS) & (far > _DEPTHS)], [far]))
    edge = np.stack((np.full_like(depths, left), np.zeros_like(depths), depths), 1)
    other = np.stack((np.full_like(depths, right), np.zeros_like(depths), depths), 1)[::-1]
    return canvas.camera.project(np.concatenate((edge, other)))


def mark(canvas: Canvas, left: float, right: float, near: float, far: float, color: Sequence[float]) -> None:
    """Paint a marking on the ground; positions in metres."""
    shown = canvas.light.lit(color, (0, 1, 0), near)
    canvas.fill(strip_outline(canvas, left, right, near, far), shown, 0.05, 2.0)


def slabs(canvas: Canvas, left: float, right: float, size: float, color: Sequence[float]) -> None:
    """Paint the joints of paving slabs as far as they can be seen."""
    shown = canvas.light.lit(color, (0, 1, 0), 8.0)
    camera = canvas.camera
    joints: List[np.ndarray] = []
    for z in np.arange(4.0, 26.0, size):
        half = 0.5 * max(0.03, 0.4 / camera.pixels_per_metre(z) * z / camera.eye_height)
        joints.append(_ground_quad(canvas, left, right, z - half, z + half))
    for x in np.arange(left, right, size)[1:]:
        joints.append(_ground_quad(canvas, x - 0.02, x + 0.02, 3.0, 24.0))
    canvas.fill_many(joints, shown)


def hood(canvas: Canvas) -> None:
    """Paint the camera car's own hood and the border left by rectification; both are ignored regions."""
    rng = canvas.rng
    height, width = canvas.pixels.shape[:2]
    rise = rng.uniform(0.06, 0.13) * height
    middle = width * rng.uniform(0.46, 0.54)
    columns = np.linspace(0, width, 15)
    rows = height - rise * (1 - 0.75 * np.abs((columns - middle) / (width * 0.5)) ** 2.2)
    shape = np.concatenate((np.stack((columns, rows), 1), [(width, height), (0, height)]))
    color = palette.pick(rng, ((40, 42, 46), (70, 74, 80), (24, 26, 30)))
    with canvas.thing('ego vehicle'):
        canvas.fill(shape, color, 0.03, 8)
    gleam = np.concatenate((shape[2:13], np.add(shape[2:13][::-1], (0, 0.16 * rise))))
    canvas.fill(gleam, np.add(np.multiply(canvas.light.skyline, 0.45), np.multiply(color, 0.4)), silhouette=False)
    border = max(1, round(canvas.width / 400))
    right, bottom = canvas.width - 1, canvas.height - 1
    edge = border * canvas.factor
    for label, box in (
        ('out of roi', (0, 0, right, border - 1)),
        ('out of roi', (0, bottom - border + 1, right, bottom)),
        ('rectification border', (0, 0, border - 1, bottom)),
        ('rectification border', (right - border + 1, 0, right, bottom)),
    ):
        canvas.add_polygon(label, [(box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])])
    for side in (canvas.pixels[:, :edge], canvas.pixels[:, -edge:]):
        side[:] = side // 4


def _ground_noise(canvas: Canvas) -> np.ndarray:
    """Return noise on the ground plane for each canvas pixel below the horizon: float32, shape (rows, W)."""
    camera = canvas.camera
    height, width = canvas.pixels.shape[:2]
    top = int(np.clip(camera.horizon + 1, 0, height - 1))
    # Finer than one sample per output pixel cannot be seen.
    step = canvas.factor
    rows = np.maximum(np.arange(top, height, step) + 0.5 * step - camera.horizon, 0.5)
    columns = np.arange(0, width, step) + 0.5 * step
    depth = (camera.focal * camera.eye_height / rows).astype(np.float32)[:, None]
    side = ((columns - camera.center_x) / camera.focal).astype(np.float32)[None] * depth
    depth = np.broadcast_to(depth, side.shape)
    start = canvas.rng.uniform(0, texture.FIELD_PX, 2).astype(np.float32)
    noise = np.zeros(side.shape, np.float32)
    for cells_per_m, scale, weight in ((40.0, 2, 0.5), (12.0, 4, 0.6), (6.0, 16, 0.6)):
        map_x = np.mod(side * cells_per_m + start[0], texture.FIELD_PX)
        map_y = np.mod(depth * cells_per_m * 0.7 + start[1], texture.FIELD_PX)
        layer = cv2.remap(texture.field(scale), map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        # Grains that are smaller than a pixel average out.
        noise += weight * layer * np.clip(camera.focal / step / (depth * cells_per_m) * scale, 0, 1)
    return cv2.resize(noise, (width, height - top), interpolation=cv2.INTER_LINEAR)


def _ground_quad(canvas: Canvas, left: float, right: float, near: float, far: float) -> np.ndarray:
    return canvas.project(Frame(0.0, 0.0), [(near, left, 0), (near, right, 0), (far, right, 0), (far, left, 0)])


def _box(x: float, y: float, width: float, height: float) -> np.ndarray:
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


def footprint_shadow(canvas: Canvas, frame: Frame, length: float, width: float) -> None:
    """Darken the ground under a thing; its footprint is length by width metres, centred on the frame."""
    sun_x, _, sun_z = canvas.light.sun
    shift = 0.35 if canvas.light.sunny else 0.0
    corners: List[Tuple[float, float, float]] = []
    for along, across in ((-1, -1), (-1, 1), (1, 1), (1, -1)):
        corners.append((along * (length / 2 + 0.12), across * (width / 2 + 0.12), 0.0))
    world = frame.to_world(corners) - np.array([sun_x * shift, 0, sun_z * shift])
    soft = 0.12 * canvas.camera.pixels_per_metre(frame.z)
    canvas.darken(canvas.camera.project(world), 0.42 if canvas.light.sunny else 0.55, soft)
