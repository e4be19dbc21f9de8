"""Projects points of the street into the picture.

World axes: x to the right, y up from the ground, z forward; metres; the camera's eye is at (0, eye_height, 0). A bend
of the road shifts x with z, so everything else can be laid out along a straight street.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Sequence, Tuple

import numpy as np

NEAR_M = 1.0  # nothing is projected from closer than this
BEND_FROM_M = 8.0  # the road is straight up to here


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera above the road.

    Args:
        width: Canvas width in canvas pixels.
        height: Canvas height in canvas pixels.
        focal: Focal length in canvas pixels.
        center_x: Column of the vanishing point in canvas pixels.
        horizon: Row of the horizon in canvas pixels.
        eye_height: Height of the camera above the ground in metres.
        bend: Sideways shift of the road in metres per squared metre beyond ``BEND_FROM_M``.
    """

    width: int
    height: int
    focal: float
    center_x: float
    horizon: float
    eye_height: float
    bend: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project world points.

        Args:
            points: float, shape (N, 3), metres.

        Returns:
            float64, shape (N, 2): column and row in canvas pixels.
        """
        z = np.maximum(points[:, 2], NEAR_M)
        scale = self.focal / z
        pixels = np.empty((len(points), 2))
        pixels[:, 0] = self.center_x + (points[:, 0] + self.bend * np.maximum(z - BEND_FROM_M, 0.0) ** 2) * scale
        pixels[:, 1] = self.horizon + (self.eye_height - points[:, 1]) * scale
        return pixels

    def pixels_per_metre(self, z: float) -> float:
        """Return how many canvas pixels one metre takes at depth z metres."""
        return self.focal / max(z, NEAR_M)

    def depth_in_view(self, x: float, margin: float = 0.9) -> float:
        """Return the least depth in metres at which the sideways position x metres is inside the picture.

        Args:
            x: Sideways position in metres.
            margin: Share of the half picture that counts as inside.
        """
        half = self.center_x if x < 0 else self.width - self.center_x
        return abs(x) * self.focal / max(half * margin, 1.0)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A local coordinate frame that stands on the ground: (along, across, up) in metres.

    Args:
        x: Sideways position of its origin in metres.
        z: Depth of its origin in metres.
        yaw: Direction of the along axis in radians: 0 points away from the camera, pi/2 to the right.
    """

    x: float
    z: float
    yaw: float = 0.0

    def to_world(self, local: Sequence[Tuple[float, float, float]]) -> np.ndarray:
        """Return world points.

        Args:
            local: N points (along, across, up) in metres; across points to the right of along.

        Returns:
            float64, shape (N, 3), metres.
        """
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        axes = np.array(((sin, 0.0, cos), (cos, 0.0, -sin), (0.0, 1.0, 0.0)))
        world = np.asarray(local, dtype=np.float64) @ axes
        world += (self.x, 0.0, self.z)
        return world

    def normal(self, along: float, across: float) -> Tuple[float, float]:
        """Return the world direction (x, z) of a horizontal local direction."""
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        return along * sin + across * cos, along * cos - across * sin

    def faces_camera(self, along: float, across: float, direction: Tuple[float, float]) -> bool:
        """Tell whether a vertical face shows its front to the camera.

        Args:
            along: Local position of the face in metres.
            across: Local position of the face in metres.
            direction: Local outward normal (along, across).
        """
        point = self.to_world([(along, across, 0.0)])[0]
        normal_x, normal_z = self.normal(*direction)
        return normal_x * -point[0] + normal_z * -point[2] > 0
