"""Daylight and sensor: lights the colours of a scene, adds haze, and records the picture."""

from __future__ import annotations

import dataclasses
import math
from typing import Sequence, Tuple

import cv2
import numpy as np

Color = Tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Light:
    """The light of one scene. Colours are RGB, 0 to 255.

    Args:
        sunny: Whether the sun casts shadows.
        sun: Direction towards the sun (x, y, z), unit length.
        ambient: Share of light that reaches every face.
        diffuse: Further light on a face that looks into the sun.
        haze: Colour to which far things fade.
        haze_m: Depth in metres at which haze covers 63 %.
        zenith: Sky colour at the top.
        skyline: Sky colour at the horizon.
        cloud: Cloud colour.
        cloudiness: 0 (clear) to 1 (closed).
    """

    sunny: bool
    sun: Tuple[float, float, float]
    ambient: float
    diffuse: float
    haze: Color
    haze_m: float
    zenith: Color
    skyline: Color
    cloud: Color
    cloudiness: float

    def lit(self, color: Sequence[float], normal: Tuple[float, float, float], z: float) -> Color:
        """Return the colour of a face as the camera sees it.

        Args:
            color: The face's own colour.
            normal: Outward unit normal (x, y, z).
            z: Depth in metres.
        """
        facing = sum(a * b for a, b in zip(normal, self.sun))
        gain = self.ambient + self.diffuse * max(facing, 0.0)
        clear = math.exp(-z / self.haze_m)
        red, green, blue = (
            min(max(c * gain * clear + h * (1.0 - clear), 0.0), 255.0) for c, h in zip(color, self.haze)
        )
        return red, green, blue

    @property
    def shadow(self) -> float:
        """Share of light left in a cast shadow, 0 to 1."""
        return 0.55 if self.sunny else 0.8


# name: zenith, skyline, cloud, cloudiness range, sunny
_SKIES = (
    ((92, 138, 196), (188, 208, 224), (244, 244, 242), (0.05, 0.5), True),
    ((150, 160, 172), (206, 210, 212), (226, 228, 228), (0.7, 1.0), False),
    ((190, 194, 196), (228, 229, 226), (238, 238, 236), (0.8, 1.0), False),
    ((96, 116, 160), (242, 200, 150), (250, 216, 184), (0.1, 0.6), True),
    ((112, 122, 134), (166, 170, 172), (134, 140, 146), (0.6, 1.0), False),
    ((120, 162, 206), (214, 224, 228), (250, 250, 248), (0.3, 0.8), True),
)


def sample_light(rng: np.random.Generator) -> Light:
    """Draw the daylight of a scene."""
    zenith, skyline, cloud, cloudiness, sunny = _SKIES[rng.integers(len(_SKIES))]
    jitter = rng.normal(0, 7, 3)
    zenith, skyline, cloud = (tuple(np.clip(np.add(c, jitter), 0, 255)) for c in (zenith, skyline, cloud))
    azimuth = rng.uniform(-math.pi, math.pi)
    elevation = rng.uniform(0.3, 1.1)
    sun = (math.sin(azimuth) * math.cos(elevation), math.sin(elevation), -math.cos(azimuth) * math.cos(elevation))
    ambient = rng.uniform(0.6, 0.75) if sunny else rng.uniform(0.78, 0.92)
    diffuse = rng.uniform(0.35, 0.55) if sunny else rng.uniform(0.08, 0.18)
    return Light(
        sunny=sunny,
        sun=sun,
        ambient=ambient,
        diffuse=diffuse,
        haze=skyline,
        haze_m=rng.uniform(120, 220) if rng.random() < 0.25 else rng.uniform(260, 600),
        zenith=zenith,
        skyline=skyline,
        cloud=cloud,
        cloudiness=rng.uniform(*cloudiness),
    )


def record(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply the effects of a sensor to the clean picture: exposure, tint, contrast, vignette, blur and noise.

    Args:
        pixels: uint8, shape (H, W, 3), RGB.
        rng: Source of the scene's randomness.

    Returns:
        uint8, shape (H, W, 3), RGB.
    """
    height, width = pixels.shape[:2]
    picture = pixels.astype(np.float32) / 255.0
    picture = picture ** np.float32(rng.uniform(0.8, 1.15))
    tint = rng.normal(1.0, 0.022, 3) * np.array([1.0, 1.02, 0.98]) * rng.uniform(0.85, 1.1)
    contrast = rng.uniform(0.88, 1.08)
    picture = (picture - 0.45) * np.float32(contrast) + np.float32(0.45 + rng.uniform(-0.02, 0.03))
    picture *= tint.astype(np.float32)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    picture *= (1 - np.float32(rng.uniform(0, 0.12)) * (rows**2 + columns**2))[..., None]
    sigma = rng.uniform(0, 0.6) * max(1.0, height / 512)
    if sigma > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    shot, read = rng.uniform(0.004, 0.02), rng.uniform(0.002, 0.01)
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    picture += grain * (shot * np.sqrt(np.clip(picture, 0, 1)) + read).astype(np.float32)
    return np.clip(picture * 255.0 + 0.5, 0, 255).astype(np.uint8)
