"""Render outlines with antialiased edges and a texture, as layers to composite onto a scene."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from yolact.formats.sample.shapes import Colour, HueRange, Part, pick

_OVERSAMPLING = 3


@dataclass(frozen=True)
class Kind:
    """A class of the sample: how it is drawn and in which scenes it appears."""

    name: str
    draw: Callable[[np.random.Generator], list[Part]]
    scenes: tuple[str, ...]
    second: tuple[HueRange, ...]
    """Colour families of the texture."""
    tilt: float
    """Two standard deviations of the angle from upright, degrees."""
    grounded: bool = True
    """On the ground (or the water), not in the air."""
    sided: bool = True
    """Left and right sides differ."""
    lies_down: float = 0.0
    """Probability of lying on its side."""


@dataclass(frozen=True)
class Layer:
    """A rendered drawing; its canvas may extend beyond the image."""

    left: int
    top: int
    colour: np.ndarray
    """(h, w, 3) float32 in [0, 255], already multiplied by ``alpha``."""
    alpha: np.ndarray
    """(h, w) float32 in [0, 1]."""
    kind: Kind | None = None
    """None for clutter."""
    flipped: bool = False
    shadow: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of the whole drawing, including its part outside the image."""
        return int((self.alpha >= 0.5).sum())

    def windows(self, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The overlap of image (of ``shape``) and canvas, as slices into both."""
        height, width = self.alpha.shape
        top, bottom = max(self.top, 0), max(min(self.top + height, shape[0]), 0)
        left, right = max(self.left, 0), max(min(self.left + width, shape[1]), 0)
        in_image = slice(top, bottom), slice(left, right)
        return in_image, (slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left))


def lay_over(canvas: np.ndarray, layer: Layer) -> None:
    """Paint ``layer``, and its shadow on the ground, over ``canvas`` (H, W, 3) float32, in place."""
    if layer.shadow:
        height, width = layer.alpha.shape
        y = np.arange(canvas.shape[0], dtype=np.float32) - (layer.top + height * 0.96)
        x = np.arange(canvas.shape[1], dtype=np.float32) - (layer.left + width * 0.52)
        fall_y = np.exp(-((y / (0.06 * height + 2)) ** 2))
        fall_x = np.exp(-((x / (0.42 * width)) ** 4))
        canvas *= (1 - 0.5 * fall_y[:, None] * fall_x[None])[..., None]
    in_image, in_canvas = layer.windows(canvas.shape)
    canvas[in_image] *= 1 - layer.alpha[in_canvas][..., None]
    canvas[in_image] += layer.colour[in_canvas]


def render_kind(rng: np.random.Generator, kind: Kind, long_side: float) -> Layer:
    """Draw a random object of ``kind``, pose it, and render it with ``long_side`` pixels on its longer side."""
    parts = kind.draw(rng)
    flipped = bool(rng.random() < 0.5)
    angle = math.radians(rng.normal(0, kind.tilt / 2))
    if rng.random() < kind.lies_down:
        angle += math.pi / 2
    stretch = rng.uniform(0.88, 1.13)
    shear = rng.uniform(-0.12, 0.12)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    pose = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([stretch * (-1 if flipped else 1), 1 / stretch])
    corners = np.concatenate([part.outline for part in parts]) @ pose.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = long_side / float((high - low).max())
    posed = [replace(part, outline=(part.outline @ pose.T - low) * scale) for part in parts]
    wide, tall = (math.ceil(side) for side in (high - low) * scale)
    layer = render(posed, (tall, wide), random_surface(rng, (tall, wide), kind.second))
    return replace(layer, kind=kind, flipped=flipped)


@dataclass(frozen=True)
class _Surface:
    """Texture of a drawing's surface."""

    light: np.ndarray
    """(h, w) float32, brightness factor."""
    pattern: np.ndarray
    """(h, w) float32 in [0, 1]: share of ``second`` on the textured parts."""
    second: Colour


def random_surface(rng: np.random.Generator, shape: tuple[int, int], second: Sequence[HueRange]) -> _Surface:
    """A random texture whose pattern has a colour from the families ``second``."""
    height, width = shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    side, fall = np.float32(rng.uniform(-0.22, 0.22)), np.float32(rng.uniform(0.0, 0.25))
    light = 1 + side * x - fall * y + np.float32(0.14) * (noise(rng, shape, 5) - np.float32(0.5))
    strength = np.float32(rng.uniform(0.35, 1.0))
    return _Surface(light, _pattern(rng, shape) * strength, pick(rng, second))


def _pattern(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A pattern, plain, clouded, spotted, striped or checked; (h, w) float32 in [0, 1]."""
    style = rng.choice(["plain", "clouded", "spotted", "striped", "checked"], p=[0.34, 0.2, 0.17, 0.2, 0.09])
    size = max(shape)
    if style == "plain":
        return np.zeros(shape, dtype=np.float32)
    if style == "clouded":
        return noise(rng, shape, max(size // 4, 3))
    if style == "spotted":
        spots = noise(rng, shape, max(size // int(rng.integers(6, 12)), 3))
        return np.clip((spots - np.float32(rng.uniform(0.52, 0.66))) * 12, 0, 1)
    angle, period = rng.uniform(0, math.pi), size / rng.uniform(5, 12)
    y = np.arange(shape[0], dtype=np.float32)[:, None]
    x = np.arange(shape[1], dtype=np.float32)[None]
    along = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
    wave = np.sin(along + 2 * noise(rng, shape, max(size // 3, 3)))
    if style == "checked":
        wave = wave * np.sin((y * math.cos(angle) - x * math.sin(angle)) * (2 * math.pi / period))
    return np.clip(wave * 3 + np.float32(rng.uniform(-0.5, 0.5)), 0, 1).astype(np.float32)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: int) -> np.ndarray:
    """Smooth noise in [0, 1] that varies over ``cell`` pixels, (h, w) float32."""
    grid = rng.random((shape[0] // cell + 2, shape[1] // cell + 2), dtype=np.float32)
    image = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), 0, 1)


def render(parts: Sequence[Part], shape: tuple[int, int], surface: _Surface | None = None) -> Layer:
    """Paint outlines (in pixels of a canvas of ``shape``), oversampled for antialiased edges."""
    size = (shape[1] * _OVERSAMPLING, shape[0] * _OVERSAMPLING)
    paint, cover = Image.new("RGB", size), Image.new("L", size)
    texture = Image.new("L", size)
    on_paint, on_cover, on_texture = (ImageDraw.Draw(image) for image in (paint, cover, texture))
    for part in parts:
        corners = (part.outline * _OVERSAMPLING).ravel().tolist()
        on_paint.polygon(corners, fill=part.colour)
        on_cover.polygon(corners, fill=255)
        on_texture.polygon(corners, fill=255 if part.textured else 0)
    colour = np.asarray(paint.reduce(_OVERSAMPLING), dtype=np.float32)
    alpha = np.asarray(cover.reduce(_OVERSAMPLING), dtype=np.float32) / 255
    if surface is not None:
        share = (np.asarray(texture.reduce(_OVERSAMPLING), dtype=np.float32) / 255 * surface.pattern)[..., None]
        second = np.array(surface.second, dtype=np.float32) * alpha[..., None]
        colour = (colour + (second - colour) * share) * surface.light[..., None]
        colour = np.minimum(colour, 255 * alpha[..., None])
    return Layer(left=0, top=0, colour=colour, alpha=alpha)
