"""One image: a scene with objects, the index of the visible object at each pixel, and the annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from yolact.formats.mask_files import VOID
from yolact.formats.sample.layers import Kind, Layer, lay_over, noise, random_surface, render, render_kind
from yolact.formats.sample.objects import KINDS
from yolact.formats.sample.shapes import (
    CLAY,
    DARK,
    LEAF,
    METAL,
    PAINT,
    PALE,
    WOOD,
    Colour,
    HueRange,
    Part,
    box,
    ellipse,
    outline,
    pick,
    stroke,
    tone,
)
from yolact.settings import SampleConfig

_MIN_VISIBLE_PIXELS = 40
_MIN_VISIBLE_SHARE = 0.15
_DIFFICULT_SHARE = 0.35
"""Objects with less than this visible fraction are marked difficult."""

_MOST_OBJECTS = VOID - 1
"""Maximum number of objects: SegmentationObject has that many indices for them."""


@dataclass(frozen=True)
class DrawnObject:
    """One annotated object; ``box`` is (xmin, ymin, xmax, ymax), 1-based and inclusive."""

    name: str
    pose: str
    truncated: bool
    difficult: bool
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class DrawnImage:
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    instances: np.ndarray
    """(H, W) uint8; 0: background, k: the k-th of ``objects`` (from 1); every object has pixels."""
    objects: list[DrawnObject]


@dataclass(frozen=True)
class _Scene:
    """A kind of scene: the range of its horizon (as a fraction of the height), and the colours above and below it."""

    name: str
    horizon: tuple[float, float]
    above: tuple[HueRange, ...]
    below: tuple[HueRange, ...]
    shadows: bool = True


_SKY: HueRange = (0.52, 0.64, 0.1, 0.65, 0.6, 1.0)
_DUSK: HueRange = (0.02, 0.12, 0.1, 0.5, 0.6, 0.95)
_OVERCAST: HueRange = (0.5, 0.7, 0.0, 0.1, 0.55, 0.9)
_GRASS: HueRange = (0.17, 0.36, 0.3, 0.75, 0.3, 0.75)
_SOIL: HueRange = (0.05, 0.14, 0.2, 0.6, 0.35, 0.75)
_ROAD: HueRange = (0.0, 1.0, 0.0, 0.12, 0.3, 0.65)
_WATER: HueRange = (0.45, 0.64, 0.25, 0.8, 0.3, 0.75)
_WALL: HueRange = (0.0, 1.0, 0.05, 0.4, 0.45, 0.95)

_SCENES = {
    scene.name: scene
    for scene in (
        _Scene("field", (0.25, 0.55), (_SKY, _OVERCAST, _DUSK), (_GRASS, _GRASS, _SOIL)),
        _Scene("street", (0.3, 0.55), (_SKY, _OVERCAST, _WALL), (_ROAD, _ROAD, _SOIL)),
        _Scene("water", (0.3, 0.55), (_SKY, _OVERCAST, _DUSK), (_WATER,), shadows=False),
        _Scene("sky", (0.75, 1.0), (_SKY, _SKY, _OVERCAST, _DUSK), (_GRASS, _SOIL, _WATER)),
        _Scene("room", (0.4, 0.65), (_WALL, _WALL, _OVERCAST), (WOOD, _SOIL, _ROAD, _WALL)),
    )
}


def draw_image(rng: np.random.Generator, config: SampleConfig) -> DrawnImage:
    """Draw one image with at least one sufficiently visible object."""
    height, width = (int(side) for side in rng.integers(config.min_size, config.max_size + 1, size=2))
    while True:
        kind = KINDS[rng.integers(len(KINDS))]
        scene = _SCENES[kind.scenes[rng.integers(len(kind.scenes))]]
        horizon = int(height * rng.uniform(*scene.horizon))
        count = int(rng.integers(1, min(config.max_objects, _MOST_OBJECTS) + 1))
        kinds = [kind, *(_companion(rng, scene) for _ in range(count - 1))]
        layers = _place(rng, kinds, scene, (height, width), horizon)
        front = _foreground(rng, (height, width), horizon)
        layers, instances = _keep_visible(layers, front, (height, width))
        if layers:
            break
    canvas = _background(rng, scene, (height, width), horizon)
    for layer in [*layers, *front]:
        lay_over(canvas, layer)
    objects = [_describe(layer, instances == index) for index, layer in enumerate(layers, start=1)]
    return DrawnImage(_develop(rng, canvas), instances, objects)


def _companion(rng: np.random.Generator, scene: _Scene) -> Kind:
    """Mostly a class that suits the scene, sometimes any, so the background alone does not reveal the class."""
    suited = [kind for kind in KINDS if scene.name in kind.scenes]
    choices = suited if rng.random() < 0.8 else list(KINDS)
    return choices[rng.integers(len(choices))]


def _place(
    rng: np.random.Generator, kinds: Sequence[Kind], scene: _Scene, shape: tuple[int, int], horizon: int
) -> list[Layer]:
    """Render each kind and place it with moderate overlap; layers are returned back to front."""
    placed: list[Layer] = []
    for kind in kinds:
        share = rng.uniform(0.45, 0.85) if rng.random() < 0.88 else rng.uniform(0.22, 0.45)
        long_side = min(shape) * share * max(1 - 0.06 * (len(kinds) - 1), 0.4)
        layer = render_kind(rng, kind, long_side)
        layer = replace(layer, shadow=kind.grounded and scene.shadows)
        candidates = [_moved(rng, layer, shape, horizon) for _ in range(8)]
        overlaps = [max((_overlap(candidate, other) for other in placed), default=0.0) for candidate in candidates]
        limit = rng.uniform(0.0, 0.4) if rng.random() < 0.85 else 1.0
        fitting = [index for index, overlap in enumerate(overlaps) if overlap <= limit]
        placed.append(candidates[fitting[0] if fitting else int(np.argmin(overlaps))])
    return sorted(placed, key=lambda layer: layer.top + layer.alpha.shape[0])


def _moved(rng: np.random.Generator, layer: Layer, shape: tuple[int, int], horizon: int) -> Layer:
    """Move the layer to a random position: on the ground, larger if nearer, or in the air."""
    height, width = layer.alpha.shape
    margin = 0.12 if rng.random() < 0.8 else -0.05
    centre = rng.uniform(margin, 1 - margin) * shape[1]
    assert layer.kind is not None
    if layer.kind.grounded:
        nearness = float(np.clip(1.25 * max(height, width) / min(shape) + rng.uniform(-0.3, 0.25), 0.1, 1.0))
        bottom = horizon + (shape[0] * 1.04 - horizon) * nearness
    else:
        bottom = rng.uniform(0.1, 0.65) * shape[0] + height / 2
    return replace(layer, left=round(centre - width / 2), top=round(bottom - height))


def _overlap(one: Layer, other: Layer) -> float:
    """Intersection of two canvases over the smaller one's area."""
    (h1, w1), (h2, w2) = one.alpha.shape, other.alpha.shape
    high = min(one.top + h1, other.top + h2) - max(one.top, other.top)
    wide = min(one.left + w1, other.left + w2) - max(one.left, other.left)
    return max(high, 0) * max(wide, 0) / min(h1 * w1, h2 * w2)


def _keep_visible(
    layers: list[Layer], front: Sequence[Layer], shape: tuple[int, int]
) -> tuple[list[Layer], np.ndarray]:
    """Remove, one by one, the objects of which too little is visible; return the rest and their index map."""
    while True:
        instances = np.zeros(shape, dtype=np.uint8)
        for index, layer in enumerate([*layers, *front], start=1):
            in_image, in_canvas = layer.windows(shape)
            instances[in_image][layer.alpha[in_canvas] >= 0.5] = index if layer.kind else 0
        inner = np.bincount(instances[~void_border(instances)], minlength=len(layers) + 1)
        shown = np.bincount(instances.ravel(), minlength=len(layers) + 1)
        hidden = [
            index
            for index, layer in enumerate(layers, start=1)
            if inner[index] < _MIN_VISIBLE_PIXELS or shown[index] < _MIN_VISIBLE_SHARE * layer.pixels
        ]
        if not hidden:
            return layers, instances
        least = min(hidden, key=lambda index: shown[index])
        layers = [layer for index, layer in enumerate(layers, start=1) if index != least]


def void_border(instances: np.ndarray) -> np.ndarray:
    """Pixels with several indices in their 3x3 neighbourhood, (H, W) bool; the image's edge is not a border."""
    padded = np.pad(instances, 1, mode="edge")
    rows = [padded[shift : padded.shape[0] - 2 + shift] for shift in range(3)]
    high, low = np.maximum.reduce(rows), np.minimum.reduce(rows)
    width = instances.shape[1]
    highest = np.maximum.reduce([high[:, shift : width + shift] for shift in range(3)])
    lowest = np.minimum.reduce([low[:, shift : width + shift] for shift in range(3)])
    return np.asarray(highest != lowest)


def _describe(layer: Layer, visible: np.ndarray) -> DrawnObject:
    """The annotation of a layer whose visible pixels are ``visible``, (H, W) bool."""
    assert layer.kind is not None
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    _, in_canvas = layer.windows(visible.shape)
    inside = int((layer.alpha[in_canvas] >= 0.5).sum())
    pose = ("Left" if layer.flipped else "Right") if layer.kind.sided else "Unspecified"
    return DrawnObject(
        name=layer.kind.name,
        pose=pose,
        truncated=inside < layer.pixels,
        difficult=int(visible.sum()) < _DIFFICULT_SHARE * layer.pixels,
        box=(int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1),
    )


def _develop(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Simulate exposure, colour cast, vignetting, blur and sensor noise; returns (H, W, 3) uint8."""
    height, width = canvas.shape[:2]
    cast = rng.uniform(0.92, 1.08, size=3).astype(np.float32) * np.float32(rng.uniform(0.85, 1.18))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    canvas = canvas * (1 - np.float32(rng.uniform(0, 0.16)) * (x * x + y * y))[..., None] * cast
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    blur = rng.uniform(-0.3, 0.9)
    if blur > 0.25:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(1, 7))
    return np.clip(np.asarray(image, dtype=np.float32) + grain, 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator, scene: _Scene, shape: tuple[int, int], horizon: int) -> np.ndarray:
    """The scene with clutter but without objects, (H, W, 3) float32 in [0, 255]."""
    height, width = shape
    canvas = np.empty((height, width, 3), dtype=np.float32)
    horizon = min(max(horizon, 1), height - 1)
    for rows, families in ((slice(0, horizon), scene.above), (slice(horizon, height), scene.below)):
        region = canvas[rows]
        size = region.shape[:2]
        colour = np.array(pick(rng, families), dtype=np.float32)
        region[:] = colour * np.linspace(rng.uniform(0.75, 1.1), rng.uniform(0.85, 1.2), size[0])[:, None, None]
        other = np.array(pick(rng, [*families, PALE]), dtype=np.float32)
        clouds = np.clip((noise(rng, size, int(rng.integers(18, 50))) - 0.45) * 2, 0, 1) * rng.uniform(0.1, 0.8)
        region += (other - region) * clouds[..., None].astype(np.float32)
        grain = noise(rng, size, int(rng.integers(2, 5))) + 0.6 * noise(rng, size, int(rng.integers(6, 12)))
        region *= 1 + ((grain - 0.8) * rng.uniform(0.03, 0.22))[..., None].astype(np.float32)
    if scene.name == "water":
        _ripple(rng, canvas[horizon:])
    lay_over(canvas, render(_clutter(rng, scene, shape, horizon), shape, random_surface(rng, shape, (PAINT, METAL))))
    return canvas


def _ripple(rng: np.random.Generator, water: np.ndarray) -> None:
    """Lighten and darken wavy rows of ``water`` (h, W, 3), in place."""
    size = water.shape[:2]
    rows = np.arange(size[0], dtype=np.float32)[:, None]
    wave = np.sin(rows * rng.uniform(0.5, 1.1) + 5 * noise(rng, size, 20) + 3 * noise(rng, size, 7))
    water *= 1 + (wave * rng.uniform(0.04, 0.14))[..., None].astype(np.float32)


def _clutter(rng: np.random.Generator, scene: _Scene, shape: tuple[int, int], horizon: int) -> list[Part]:
    """Clutter, back to front: a skyline or furniture at the horizon, then loose shapes."""
    height, width = shape
    families = [PAINT, METAL, WOOD, LEAF, PALE, DARK, _WALL]
    parts: list[Part] = []
    for _ in range(int(rng.integers(0, 8))):
        x, wide, tall = rng.uniform(-0.1, 1) * width, rng.uniform(0.06, 0.3) * width, rng.uniform(0.04, 0.28) * height
        if scene.name in ("street", "room"):
            parts += _panel(rng, x, horizon, wide, tall)
        elif scene.name == "field" and rng.random() < 0.5:
            parts.append(Part(box(x + 0.4 * wide, horizon - tall, x + 0.5 * wide, horizon + 2), pick(rng, [WOOD])))
            parts.append(Part(ellipse(x + 0.45 * wide, horizon - tall, 0.5 * wide, 0.5 * tall), pick(rng, [LEAF])))
        else:
            hill = outline((x - wide, horizon + 2), (x, horizon - tall), (x + wide, horizon + 2), rounds=1)
            parts.append(Part(hill, pick(rng, [LEAF, _OVERCAST, METAL])))
    if rng.random() < 0.3:
        y, tilt, thick = rng.uniform(0.1, 0.9) * height, rng.normal(0, 0.12) * height, rng.uniform(1, 4)
        parts.append(Part(stroke([(-5, y), (width + 5, y + tilt)], thick, thick), pick(rng, families)))
    for _ in range(int(rng.integers(0, 6))):
        x, y = rng.uniform(0, 1) * width, rng.uniform(0.15, 1) * height
        parts.append(_loose_shape(rng, x, y, rng.uniform(0.03, 0.13) * min(shape), pick(rng, families)))
    return parts


def _panel(rng: np.random.Generator, x: float, horizon: float, wide: float, tall: float) -> list[Part]:
    """A house front, a picture or a cupboard: a box with smaller boxes on it."""
    wall = pick(rng, [_WALL, WOOD, METAL, CLAY])
    foot = horizon + rng.uniform(-0.8, 0.05) * tall
    parts = [Part(box(x, foot - 1.6 * tall, x + wide, foot), wall, textured=True)]
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    pane = tone(wall, rng.uniform(0.5, 1.4))
    for column in range(columns):
        for row in range(rows):
            left, top = x + wide * (column + 0.2) / columns, foot - 1.6 * tall * (row + 0.8) / rows
            parts.append(Part(box(left, top, left + 0.6 * wide / columns, top + 0.9 * tall / rows), pane))
    return parts


def _loose_shape(rng: np.random.Generator, x: float, y: float, size: float, colour: Colour) -> Part:
    """A stone, ball, crate, splinter or twig."""
    style = rng.integers(4)
    if style == 0:
        return Part(ellipse(x, y, size, size * rng.uniform(0.5, 1)), colour, textured=True)
    if style == 1:
        path = [(x, y), *((x + size * rng.normal(), y + size * rng.normal()) for _ in range(2))]
        return Part(stroke(path, 0.25 * size + 1, 1), colour)
    count = int(rng.integers(3, 6)) if style == 2 else 8
    angles = np.sort(rng.uniform(0, math.tau, count))
    radii = size * rng.uniform(0.6, 1.3, count)
    corners = [(x + r * math.cos(a), y + 0.8 * r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]
    return Part(outline(*corners, rounds=0 if style == 2 else 1), colour, textured=True)


def _foreground(rng: np.random.Generator, shape: tuple[int, int], horizon: int) -> list[Layer]:
    """Sometimes a post or a tuft of grass in front of everything."""
    if rng.random() > 0.18:
        return []
    height, width = shape
    x = rng.uniform(0, 1) * width
    if rng.random() < 0.4:
        thick = rng.uniform(3, 0.05 * width)
        post = Part(box(x, horizon * rng.uniform(-0.2, 1), x + thick, height + 2), pick(rng, [WOOD, METAL, DARK]))
        return [render([post], shape)]
    colour, blades = pick(rng, [_GRASS, _SOIL]), []
    for _ in range(int(rng.integers(6, 20))):
        foot, lean, tall = x + rng.normal(0, 0.1) * width, rng.normal(0, 0.05) * width, rng.uniform(0.08, 0.25) * height
        path = [(foot, height + 2), (foot + 0.3 * lean, height - 0.5 * tall), (foot + lean, height - tall)]
        blades.append(Part(stroke(path, 0.018 * width + 1, 0.5), tone(colour, rng.uniform(0.6, 1.2))))
    return [render(blades, shape)]
