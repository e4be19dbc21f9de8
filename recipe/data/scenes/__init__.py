"""Procedural street scenes in the form of Cityscapes: pictures and their polygons.

A scene depends only on its seed, split and number, not on how many others are made or by how many processes.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Dict, List, Union

import numpy as np

from . import layout, light
from .camera import Camera
from .canvas import Canvas

GENERATOR_VERSION = 1  # increased whenever the same seed gives another picture

Annotation = Dict[str, Union[int, List[dict]]]


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and its annotation.

    Args:
        image: uint8, shape (height, width, 3), RGB.
        annotation: Content of a Cityscapes ``*_gtFine_polygons.json``: imgHeight, imgWidth, and objects far to near,
            each
            a label and a polygon of [x, y] pixels.
    """

    image: np.ndarray
    annotation: Annotation


def render(seed: int, split: str, index: int, width: int, height: int) -> Scene:
    """Make one scene.

    Args:
        seed: Seed of the whole set, not negative.
        split: Name of the split; each has its own stream of scenes.
        index: Number of the scene within its split.
        width: Picture width in pixels.
        height: Picture height in pixels.
    """
    stream = zlib.crc32(split.encode())
    rng = np.random.default_rng([seed, stream, index])
    factor = _supersampling(height)
    shown = layout.features(seed, stream, index, rng)
    camera = Camera(
        width=width * factor,
        height=height * factor,
        focal=max(width, 2 * height) * factor * rng.uniform(0.98, 1.18),
        center_x=width * factor * rng.uniform(0.43, 0.57),
        horizon=height * factor * rng.uniform(0.37, 0.47),
        eye_height=rng.uniform(1.25, 1.65),
        bend=float(np.clip(rng.normal(0, 0.001), -0.002, 0.002)),
    )
    canvas = Canvas(width, height, factor, camera, light.sample_light(rng), rng)
    layout.Street(canvas, shown).paint()
    image = light.record(canvas.finished(), rng)
    return Scene(image, {'imgHeight': height, 'imgWidth': width, 'objects': canvas.objects})


def _supersampling(height: int) -> int:
    """Return canvas pixels per output pixel: small pictures need more to draw thin things well."""
    if height <= 160:
        return 3
    return 2 if height <= 640 else 1
