"""Shapes as signed distances: negative inside, about one per unit of length near the edge, of radius about 1.

x points right, y down; both float32 arrays of one shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]


def _box(x: Plane, y: Plane, half_width: float, half_height: float) -> Plane:
    distance: Plane = np.maximum(np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height))
    return distance


def _wedge(x: Plane, y: Plane, tip: float, foot: float, half_width: float) -> Plane:
    """An isosceles triangle that points up, from y = tip to y = foot."""
    height = foot - tip
    length = float(np.hypot(height, half_width))
    side = (np.abs(x) * height - (y - tip) * half_width) / length
    distance: Plane = np.maximum(side, y - foot).astype(np.float32)
    return distance


def circle(x: Plane, y: Plane) -> Plane:
    """A disc."""
    distance: Plane = np.hypot(x, y) - np.float32(0.9)
    return distance


def square(x: Plane, y: Plane) -> Plane:
    """A square."""
    return _box(x, y, 0.76, 0.76)


def triangle(x: Plane, y: Plane) -> Plane:
    """An equilateral triangle."""
    return _wedge(x, y, -0.95, 0.65, 0.92)


def star(x: Plane, y: Plane) -> Plane:
    """A star of five points: one edge, folded ten times."""
    fifth = np.float32(2 * np.pi / 5)
    angle = np.arctan2(x, -y)
    angle = np.abs(np.mod(angle + fifth / 2, fifth) - fifth / 2)
    radius = np.hypot(x, y)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    inner = 0.44
    ex, ey = inner * np.cos(fifth / 2) - 1.0, inner * np.sin(fifth / 2)
    length = float(np.hypot(ex, ey))
    distance: Plane = ((ey * (px - 1.0) - ex * py) / length).astype(np.float32)
    return distance


def cross(x: Plane, y: Plane) -> Plane:
    """Two bars."""
    return np.minimum(_box(x, y, 0.27, 0.95), _box(x, y, 0.95, 0.27))


def ring(x: Plane, y: Plane) -> Plane:
    """A disc with a hole."""
    distance: Plane = np.abs(np.hypot(x, y) - np.float32(0.7)) - np.float32(0.23)
    return distance


def heart(x: Plane, y: Plane) -> Plane:
    """Two discs, and below them a wedge whose sides touch them."""
    ax = np.abs(x)
    lobes = np.hypot(ax - np.float32(0.46), y + np.float32(0.32)) - np.float32(0.5)
    # the tangent from the tip (0, .95) has the normal (.748, .664) and touches a disc at y = .012
    wedge = np.maximum(ax * np.float32(0.748) + (y - np.float32(0.95)) * np.float32(0.664), np.float32(0.012) - y)
    filling = _box(x, y + np.float32(0.11), 0.46, 0.21)
    distance: Plane = np.minimum(np.minimum(lobes, wedge), filling)
    return distance


def crescent(x: Plane, y: Plane) -> Plane:
    """A disc less another one."""
    distance: Plane = np.maximum(
        np.hypot(x, y) - np.float32(0.95), np.float32(0.72) - np.hypot(x - np.float32(0.45), y)
    )
    return distance


def arrow(x: Plane, y: Plane) -> Plane:
    """A shaft and a head that points up."""
    shaft = _box(x, y - np.float32(0.42), 0.2, 0.52)
    return np.minimum(shaft, _wedge(x, y, -0.98, 0.0, 0.72))


def diamond(x: Plane, y: Plane) -> Plane:
    """A narrow rhombus."""
    distance: Plane = ((np.abs(x) + np.abs(y) * 0.58 - 0.56) / float(np.hypot(1.0, 0.58))).astype(np.float32)
    return distance


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
    "heart": heart,
    "crescent": crescent,
    "arrow": arrow,
    "diamond": diamond,
}
