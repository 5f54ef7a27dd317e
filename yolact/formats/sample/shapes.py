"""Outlines and colours of drawings."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Points = np.ndarray
"""(P, 2) float, a closed outline in x (right) and y (down)."""

Colour = tuple[int, int, int]
HueRange = tuple[float, float, float, float, float, float]
"""Minimum and maximum of hue, saturation and value, each in [0, 1]."""


@dataclass(frozen=True)
class Part:
    """One outline of a drawing, painted over those before it."""

    outline: Points
    colour: Colour
    textured: bool = False
    """Whether it has the drawing's texture."""


def outline(*corners: tuple[float, float], rounds: int = 0) -> Points:
    """A closed outline with its corners cut ``rounds`` times (Chaikin 1974, "An algorithm for high speed curve
    generation"); two rounds look smooth."""
    points = np.array(corners, dtype=float)
    for _ in range(rounds):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    return points


_CIRCLE = np.stack([np.cos(np.arange(24) * (math.tau / 24)), np.sin(np.arange(24) * (math.tau / 24))], axis=1)


def ellipse(x: float, y: float, radius_x: float, radius_y: float | None = None, angle: float = 0.0) -> Points:
    """An ellipse, rotated clockwise (y points down) by ``angle`` in radians."""
    points = _CIRCLE * [radius_x, radius_x if radius_y is None else radius_y]
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return points @ turn + [x, y]


def box(left: float, top: float, right: float, bottom: float, rounding: float = 0.0) -> Points:
    """A rectangle; ``rounding`` cuts the corners by that length."""
    if rounding == 0:
        return outline((left, top), (right, top), (right, bottom), (left, bottom))
    r = rounding
    return outline(
        (left + r, top), (right - r, top), (right, top + r), (right, bottom - r),
        (right - r, bottom), (left + r, bottom), (left, bottom - r), (left, top + r),
        rounds=1,
    )  # fmt: skip


def stroke(path: Sequence[tuple[float, float]], start: float, end: float) -> Points:
    """The outline of a stroke along ``path`` whose width changes from ``start`` to ``end``."""
    points = np.array(path, dtype=float)
    steps = np.gradient(points, axis=0)
    normals = np.stack([-steps[:, 1], steps[:, 0]], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    reach = normals * np.linspace(start / 2, end / 2, len(points))[:, None]
    return np.concatenate([points + reach, (points - reach)[::-1]])


def arc(x: float, y: float, radius: float, start: float, end: float, count: int = 9) -> list[tuple[float, float]]:
    """Points on a circle from angle ``start`` to ``end`` (radians, clockwise, 0 is right)."""
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.linspace(start, end, count)]


PAINT: HueRange = (0.0, 1.0, 0.45, 0.95, 0.4, 0.95)
PALE: HueRange = (0.0, 1.0, 0.0, 0.15, 0.75, 1.0)
METAL: HueRange = (0.5, 0.7, 0.0, 0.15, 0.35, 0.8)
DARK: HueRange = (0.0, 1.0, 0.0, 0.4, 0.08, 0.25)
WOOD: HueRange = (0.04, 0.1, 0.35, 0.75, 0.25, 0.65)
FUR: HueRange = (0.04, 0.11, 0.15, 0.75, 0.3, 0.9)
WOOL: HueRange = (0.08, 0.14, 0.03, 0.25, 0.65, 1.0)
LEAF: HueRange = (0.2, 0.42, 0.35, 0.9, 0.25, 0.8)
GLASS: HueRange = (0.5, 0.62, 0.1, 0.5, 0.25, 0.85)
CLAY: HueRange = (0.01, 0.08, 0.45, 0.85, 0.4, 0.8)


def pick(rng: np.random.Generator, families: Sequence[HueRange]) -> Colour:
    """A random colour from one of the families."""
    family = families[int(rng.integers(len(families)))]
    hue, saturation, value = (rng.uniform(low, high) for low, high in zip(family[::2], family[1::2], strict=True))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def tone(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or lighter (> 1) colour."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue
