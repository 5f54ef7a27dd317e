"""A small generated data set in the layout of VOC2012: scenes drawn by code, with exact masks.

It lets the whole pipeline run anywhere, without a download, on pictures whose annotations are right by
construction. Scenes (field, street, water, sky, room) hold drawings of eight VOC classes that vary in build,
pose, size, colour and texture, overlap, leave the picture at its edges, and stand among things of no class.

A scene is painted back to front. A drawing is a list of coloured outlines (`_Part`), rendered oversampled onto
a small canvas of its own (`_Layer`), textured, and laid over the scene. Which layer shows at a pixel gives the
masks, so picture and annotation cannot disagree.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from yolact.errors import DataError
from yolact.files import replaced_directory
from yolact.formats.voc import VOC_CLASSES, VOID, voc_palette
from yolact.settings import SampleConfig

Split = Literal["train", "val"]
Points = np.ndarray
"""(P, 2) float, a closed outline in x (right) and y (down)."""
Colour = tuple[int, int, int]
HueRange = tuple[float, float, float, float, float, float]
"""Least and most hue, saturation and value, each in [0, 1]."""

_SPLIT_STREAM: dict[Split, int] = {"train": 0, "val": 1}
_FIRST_NUMBER: dict[Split, int] = {"train": 1, "val": 500_001}
_MOST_PHOTOS = 499_999
"""Images in one split, so that the six digits of an id hold both splits."""
_OVERSAMPLING = 3
_JPEG_QUALITY = 90
_MIN_VISIBLE_PIXELS = 40
_MIN_VISIBLE_SHARE = 0.15
_DIFFICULT_SHARE = 0.35
"""Objects of which less than this share shows are marked difficult."""
_MOST_OBJECTS = VOID - 1
"""Indices that SegmentationObject has for objects."""


# --- Writing ----------------------------------------------------------------------------------------------


def generate_sample(root: Path, config: SampleConfig) -> None:
    """Write the sample to ``root/VOCdevkit/VOC2012``, in the layout of the VOC2012 development kit.

    Images are RGB JPEG files. SegmentationObject holds indices 1..N in the order of the objects in the XML
    file, SegmentationClass the class indices; both are palette PNG files with the VOC colour map. Pixels whose
    3x3 neighbourhood holds more than one object (or object and background) are void (255), a border of two
    pixels. Boxes in the XML files are the tight boxes of the visible pixels before that border is drawn, in
    1-based inclusive pixel coordinates.

    A picture depends on (``config.seed``, split, number), on the sizes and on ``max_objects`` only: larger
    splits keep the earlier pictures. The bytes are the same on every run with the same numpy and Pillow.

    Raises:
        DataError: more images are asked for than there are ids.
    """
    for split, count in (("train", config.train_images), ("val", config.val_images)):
        if count > _MOST_PHOTOS:
            raise DataError(f"data.sample.{split}_images: {count} images; at most {_MOST_PHOTOS} have an id")
    with replaced_directory(Path(root) / "VOCdevkit" / "VOC2012") as folder:
        for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
            (folder / name).mkdir()
        ids: dict[Split, list[str]] = {"train": [], "val": []}
        _write_split(folder, config, "train", config.train_images, ids["train"])
        _write_split(folder, config, "val", config.val_images, ids["val"])
        for task in ("Segmentation", "Main"):
            lists = folder / "ImageSets" / task
            lists.mkdir(parents=True)
            _write_lines(lists / "train.txt", ids["train"])
            _write_lines(lists / "val.txt", ids["val"])
            _write_lines(lists / "trainval.txt", sorted(ids["train"] + ids["val"]))


def _write_split(folder: Path, config: SampleConfig, split: Split, count: int, ids: list[str]) -> None:
    for number in range(count):
        image_id = f"2012_{_FIRST_NUMBER[split] + number:06d}"
        rng = np.random.default_rng((config.seed, _SPLIT_STREAM[split], number))
        _write_image(folder, image_id, _draw_image(rng, config))
        ids.append(image_id)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("ascii"))


def _write_image(folder: Path, image_id: str, image: _Image) -> None:
    border = _void_border(image.instances)
    class_of = np.array([0] + [VOC_CLASSES.index(found.name) + 1 for found in image.objects], dtype=np.uint8)
    classes = class_of[image.instances]
    Image.fromarray(image.pixels).save(folder / "JPEGImages" / f"{image_id}.jpg", quality=_JPEG_QUALITY)
    _write_indices(folder / "SegmentationClass" / f"{image_id}.png", np.where(border, VOID, classes))
    _write_indices(folder / "SegmentationObject" / f"{image_id}.png", np.where(border, VOID, image.instances))
    xml = _annotation(image_id, image)
    (folder / "Annotations" / f"{image_id}.xml").write_bytes(xml.encode("utf-8"))


def _write_indices(path: Path, indices: np.ndarray) -> None:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(voc_palette().tobytes())  # makes the L image a P image with the same indices
    image.save(path)


def _void_border(instances: np.ndarray) -> np.ndarray:
    """Pixels whose 3x3 neighbourhood holds several indices, (H, W) bool; the picture's edge makes no border."""
    padded = np.pad(instances, 1, mode="edge")
    rows = [padded[shift : padded.shape[0] - 2 + shift] for shift in range(3)]
    high, low = np.maximum.reduce(rows), np.minimum.reduce(rows)
    width = instances.shape[1]
    highest = np.maximum.reduce([high[:, shift : width + shift] for shift in range(3)])
    lowest = np.minimum.reduce([low[:, shift : width + shift] for shift in range(3)])
    return np.asarray(highest != lowest)


def _annotation(image_id: str, image: _Image) -> str:
    """The XML file as the VOC devkit writes it (tabs, this order of elements)."""
    height, width = image.instances.shape
    lines = [
        "<annotation>",
        "\t<folder>VOC2012</folder>",
        f"\t<filename>{image_id}.jpg</filename>",
        "\t<source>",
        "\t\t<database>Generated sample</database>",
        "\t\t<annotation>yolact.formats.sample</annotation>",
        "\t\t<image>drawn</image>",
        "\t</source>",
        "\t<size>",
        f"\t\t<width>{width}</width>",
        f"\t\t<height>{height}</height>",
        "\t\t<depth>3</depth>",
        "\t</size>",
        "\t<segmented>1</segmented>",
    ]
    for found in image.objects:
        xmin, ymin, xmax, ymax = found.box
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(found.name)}</name>",
            f"\t\t<pose>{found.pose}</pose>",
            f"\t\t<truncated>{int(found.truncated)}</truncated>",
            f"\t\t<difficult>{int(found.difficult)}</difficult>",
            "\t\t<bndbox>",
            f"\t\t\t<xmin>{xmin}</xmin>",
            f"\t\t\t<ymin>{ymin}</ymin>",
            f"\t\t\t<xmax>{xmax}</xmax>",
            f"\t\t\t<ymax>{ymax}</ymax>",
            "\t\t</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


# --- One image --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Object:
    """One annotated object; ``box`` is (xmin, ymin, xmax, ymax), 1-based and inclusive."""

    name: str
    pose: str
    truncated: bool
    difficult: bool
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class _Image:
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    instances: np.ndarray
    """(H, W) uint8: 0 background, k the k-th of ``objects`` (from 1); every object has pixels."""
    objects: list[_Object]


@dataclass(frozen=True)
class _Layer:
    """A rendered drawing; its canvas may reach over the edges of the image."""

    left: int
    top: int
    colour: np.ndarray
    """(h, w, 3) float32 in [0, 255], already multiplied by ``alpha``."""
    alpha: np.ndarray
    """(h, w) float32 in [0, 1]."""
    kind: _Kind | None = None
    """None for things of no class."""
    flipped: bool = False
    shadow: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of the whole drawing, also of its part outside the image."""
        return int((self.alpha >= 0.5).sum())

    def windows(self, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where image (of ``shape``) and canvas meet, as slices into the image and into the canvas."""
        height, width = self.alpha.shape
        top, bottom = max(self.top, 0), max(min(self.top + height, shape[0]), 0)
        left, right = max(self.left, 0), max(min(self.left + width, shape[1]), 0)
        in_image = slice(top, bottom), slice(left, right)
        return in_image, (slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left))


def _draw_image(rng: np.random.Generator, config: SampleConfig) -> _Image:
    height, width = (int(side) for side in rng.integers(config.min_size, config.max_size + 1, size=2))
    while True:
        kind = _KINDS[rng.integers(len(_KINDS))]
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
        _lay_over(canvas, layer)
    objects = [_describe(layer, instances == index) for index, layer in enumerate(layers, start=1)]
    return _Image(_develop(rng, canvas), instances, objects)


def _companion(rng: np.random.Generator, scene: _Scene) -> _Kind:
    """Mostly a class that suits the scene, sometimes any: surroundings alone must not give the class away."""
    suited = [kind for kind in _KINDS if scene.name in kind.scenes]
    choices = suited if rng.random() < 0.8 else list(_KINDS)
    return choices[rng.integers(len(choices))]


def _place(
    rng: np.random.Generator, kinds: Sequence[_Kind], scene: _Scene, shape: tuple[int, int], horizon: int
) -> list[_Layer]:
    """Render each kind and find it a place of moderate overlap; returned back to front."""
    placed: list[_Layer] = []
    for kind in kinds:
        share = rng.uniform(0.45, 0.85) if rng.random() < 0.88 else rng.uniform(0.22, 0.45)
        long_side = min(shape) * share * max(1 - 0.06 * (len(kinds) - 1), 0.4)
        layer = _render_kind(rng, kind, long_side)
        layer = replace(layer, shadow=kind.grounded and scene.shadows)
        candidates = [_moved(rng, layer, shape, horizon) for _ in range(8)]
        overlaps = [max((_overlap(candidate, other) for other in placed), default=0.0) for candidate in candidates]
        limit = rng.uniform(0.0, 0.4) if rng.random() < 0.85 else 1.0
        fitting = [index for index, overlap in enumerate(overlaps) if overlap <= limit]
        placed.append(candidates[fitting[0] if fitting else int(np.argmin(overlaps))])
    return sorted(placed, key=lambda layer: layer.top + layer.alpha.shape[0])


def _moved(rng: np.random.Generator, layer: _Layer, shape: tuple[int, int], horizon: int) -> _Layer:
    """The layer at a random place: on the ground, the nearer the larger, or in the air."""
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


def _overlap(one: _Layer, other: _Layer) -> float:
    """Common area of two canvases over the smaller one's area."""
    (h1, w1), (h2, w2) = one.alpha.shape, other.alpha.shape
    high = min(one.top + h1, other.top + h2) - max(one.top, other.top)
    wide = min(one.left + w1, other.left + w2) - max(one.left, other.left)
    return max(high, 0) * max(wide, 0) / min(h1 * w1, h2 * w2)


def _keep_visible(
    layers: list[_Layer], front: Sequence[_Layer], shape: tuple[int, int]
) -> tuple[list[_Layer], np.ndarray]:
    """Take out, one by one, the objects of which too little shows; give the rest and their index map."""
    while True:
        instances = np.zeros(shape, dtype=np.uint8)
        for index, layer in enumerate([*layers, *front], start=1):
            in_image, in_canvas = layer.windows(shape)
            instances[in_image][layer.alpha[in_canvas] >= 0.5] = index if layer.kind else 0
        inner = np.bincount(instances[~_void_border(instances)], minlength=len(layers) + 1)
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


def _describe(layer: _Layer, visible: np.ndarray) -> _Object:
    """The annotation of a layer of which the pixels ``visible``, (H, W) bool, show."""
    assert layer.kind is not None
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    _, in_canvas = layer.windows(visible.shape)
    inside = int((layer.alpha[in_canvas] >= 0.5).sum())
    pose = ("Left" if layer.flipped else "Right") if layer.kind.sided else "Unspecified"
    return _Object(
        name=layer.kind.name,
        pose=pose,
        truncated=inside < layer.pixels,
        difficult=int(visible.sum()) < _DIFFICULT_SHARE * layer.pixels,
        box=(int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1),
    )


def _lay_over(canvas: np.ndarray, layer: _Layer) -> None:
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


def _develop(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Exposure, colour cast, corner fall-off, blur and sensor noise; gives (H, W, 3) uint8."""
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


# --- From outlines to layers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """One outline of a drawing, painted over those before it."""

    outline: Points
    colour: Colour
    textured: bool = False
    """Carries the drawing's texture."""


def _render_kind(rng: np.random.Generator, kind: _Kind, long_side: float) -> _Layer:
    """Draw one individual of ``kind``, pose it, and render it with ``long_side`` pixels on its longer side."""
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
    layer = _render(posed, (tall, wide), _surface(rng, (tall, wide), kind.second))
    return replace(layer, kind=kind, flipped=flipped)


@dataclass(frozen=True)
class _Surface:
    """How a drawing's surface differs from flat paint."""

    light: np.ndarray
    """(h, w) float32 factor of brightness."""
    pattern: np.ndarray
    """(h, w) float32 in [0, 1]: share of ``second`` on the textured parts."""
    second: Colour


def _surface(rng: np.random.Generator, shape: tuple[int, int], second: Sequence[HueRange]) -> _Surface:
    """A random surface whose pattern has a colour of the families ``second``."""
    height, width = shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    side, fall = np.float32(rng.uniform(-0.22, 0.22)), np.float32(rng.uniform(0.0, 0.25))
    light = 1 + side * x - fall * y + np.float32(0.14) * (_noise(rng, shape, 5) - np.float32(0.5))
    strength = np.float32(rng.uniform(0.35, 1.0))
    return _Surface(light, _pattern(rng, shape) * strength, _pick(rng, second))


def _pattern(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Plain, clouded, spotted, striped or checked, (h, w) float32 in [0, 1]."""
    style = rng.choice(["plain", "clouded", "spotted", "striped", "checked"], p=[0.34, 0.2, 0.17, 0.2, 0.09])
    size = max(shape)
    if style == "plain":
        return np.zeros(shape, dtype=np.float32)
    if style == "clouded":
        return _noise(rng, shape, max(size // 4, 3))
    if style == "spotted":
        spots = _noise(rng, shape, max(size // int(rng.integers(6, 12)), 3))
        return np.clip((spots - np.float32(rng.uniform(0.52, 0.66))) * 12, 0, 1)
    angle, period = rng.uniform(0, math.pi), size / rng.uniform(5, 12)
    y = np.arange(shape[0], dtype=np.float32)[:, None]
    x = np.arange(shape[1], dtype=np.float32)[None]
    along = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
    wave = np.sin(along + 2 * _noise(rng, shape, max(size // 3, 3)))
    if style == "checked":
        wave = wave * np.sin((y * math.cos(angle) - x * math.sin(angle)) * (2 * math.pi / period))
    return np.clip(wave * 3 + np.float32(rng.uniform(-0.5, 0.5)), 0, 1).astype(np.float32)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: int) -> np.ndarray:
    """Smooth random values in [0, 1] that change over ``cell`` pixels, (h, w) float32."""
    grid = rng.random((shape[0] // cell + 2, shape[1] // cell + 2), dtype=np.float32)
    image = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), 0, 1)


def _render(parts: Sequence[_Part], shape: tuple[int, int], surface: _Surface | None = None) -> _Layer:
    """Paint outlines (in pixels of a canvas of ``shape``), oversampled for smooth edges."""
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
    return _Layer(left=0, top=0, colour=colour, alpha=alpha)


def _outline(*corners: tuple[float, float], rounds: int = 0) -> Points:
    """A closed outline, its corners cut ``rounds`` times (Chaikin 1974, "An algorithm for high speed curve
    generation"); two rounds look round."""
    points = np.array(corners, dtype=float)
    for _ in range(rounds):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    return points


_CIRCLE = np.stack([np.cos(np.arange(24) * (math.tau / 24)), np.sin(np.arange(24) * (math.tau / 24))], axis=1)


def _ellipse(x: float, y: float, radius_x: float, radius_y: float | None = None, angle: float = 0.0) -> Points:
    """``angle`` in radians turns the ellipse clockwise (y points down)."""
    points = _CIRCLE * [radius_x, radius_x if radius_y is None else radius_y]
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return points @ turn + [x, y]


def _box(left: float, top: float, right: float, bottom: float, rounding: float = 0.0) -> Points:
    """A rectangle; ``rounding`` cuts the corners by that length."""
    if rounding == 0:
        return _outline((left, top), (right, top), (right, bottom), (left, bottom))
    r = rounding
    return _outline(
        (left + r, top), (right - r, top), (right, top + r), (right, bottom - r),
        (right - r, bottom), (left + r, bottom), (left, bottom - r), (left, top + r),
        rounds=1,
    )  # fmt: skip


def _stroke(path: Sequence[tuple[float, float]], start: float, end: float) -> Points:
    """A line along ``path`` as an outline, ``start`` wide at its beginning and ``end`` wide at its end."""
    points = np.array(path, dtype=float)
    steps = np.gradient(points, axis=0)
    normals = np.stack([-steps[:, 1], steps[:, 0]], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    reach = normals * np.linspace(start / 2, end / 2, len(points))[:, None]
    return np.concatenate([points + reach, (points - reach)[::-1]])


def _arc(x: float, y: float, radius: float, start: float, end: float, count: int = 9) -> list[tuple[float, float]]:
    """Points on a circle from angle ``start`` to ``end`` (radians, clockwise, 0 is right)."""
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.linspace(start, end, count)]


# --- Colours ----------------------------------------------------------------------------------------------

_PAINT: HueRange = (0.0, 1.0, 0.45, 0.95, 0.4, 0.95)
_PALE: HueRange = (0.0, 1.0, 0.0, 0.15, 0.75, 1.0)
_METAL: HueRange = (0.5, 0.7, 0.0, 0.15, 0.35, 0.8)
_DARK: HueRange = (0.0, 1.0, 0.0, 0.4, 0.08, 0.25)
_WOOD: HueRange = (0.04, 0.1, 0.35, 0.75, 0.25, 0.65)
_FUR: HueRange = (0.04, 0.11, 0.15, 0.75, 0.3, 0.9)
_WOOL: HueRange = (0.08, 0.14, 0.03, 0.25, 0.65, 1.0)
_LEAF: HueRange = (0.2, 0.42, 0.35, 0.9, 0.25, 0.8)
_GLASS: HueRange = (0.5, 0.62, 0.1, 0.5, 0.25, 0.85)
_CLAY: HueRange = (0.01, 0.08, 0.45, 0.85, 0.4, 0.8)


def _pick(rng: np.random.Generator, families: Sequence[HueRange]) -> Colour:
    """A colour of one of the families."""
    family = families[int(rng.integers(len(families)))]
    hue, saturation, value = (rng.uniform(low, high) for low, high in zip(family[::2], family[1::2], strict=True))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _tone(colour: Colour, factor: float) -> Colour:
    """Darker (factor < 1) or lighter (> 1)."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


# --- The drawings: each looks to the right and has a size of about two ------------------------------------


def _aeroplane(rng: np.random.Generator) -> list[_Part]:
    body = _pick(rng, [_PALE, _PALE, _METAL, _PAINT])
    accent = _pick(rng, [_PAINT, _DARK])
    r, fin = rng.uniform(0.11, 0.17), rng.uniform(0.32, 0.5)
    near, far, sweep = rng.uniform(0.55, 0.9), rng.uniform(0.3, 0.75), rng.uniform(0.15, 0.5)
    chord, root = rng.uniform(0.3, 0.45), rng.uniform(-0.1, 0.12)
    under = _tone(body, 0.72)
    hull = _outline(
        (-1, -r), (-0.5, -r), (0.6, -r), (0.88, -0.75 * r), (1.05, 0.2 * r), (0.85, r), (0.4, r), (-0.4, r),
        rounds=2,
    )  # fmt: skip
    tip = root - sweep
    far_wing = _outline((root, 0), (root + chord, 0), (tip + 0.5 * chord, -far), (tip + 0.18 * chord, -far))
    near_wing = _outline((root, r / 3), (root + chord, r / 3), (tip + 0.5 * chord, near), (tip + 0.1 * chord, near))
    parts = [
        _Part(far_wing, under),
        _Part(_outline((-0.75, 0), (-0.55, 0), (-0.9, -0.28), (-1.05, -0.28)), under),
        _Part(hull, body, textured=True),
        _Part(_outline((-0.97, -0.4 * r), (-1.12, -fin - r), (-0.92, -fin - r), (-0.55, -0.9 * r)), accent),
        _Part(_outline((-0.9, 0), (-0.65, 0), (-0.95, 0.3), (-1.12, 0.3)), under),
    ]
    for x in np.linspace(-0.45, 0.6, int(rng.integers(6, 10))):
        parts.append(_Part(_ellipse(x, -0.3 * r, 0.035, 0.3 * r), (40, 50, 70)))
    parts.append(_Part(_outline((0.76, -0.65 * r), (0.88, -0.6 * r), (0.97, -0.1 * r), (0.8, -0.1 * r)), (35, 45, 65)))
    engine = tip * 0.5 + root * 0.5 + 0.42 * chord
    parts.append(_Part(_ellipse(engine + 0.05, 0.45 * near + 0.06, 0.17, 0.07), _tone(accent, 0.8)))
    parts.append(_Part(near_wing, _tone(body, 0.88)))
    return parts


def _boat(rng: np.random.Generator) -> list[_Part]:
    hull, accent = _pick(rng, [_PAINT, _PALE, _WOOD, _DARK]), _pick(rng, [_PAINT, _PALE])
    depth, bow = rng.uniform(0.28, 0.45), rng.uniform(0.1, 0.25)
    parts: list[_Part] = []
    if rng.random() < 0.6:
        parts += _sails(rng)
    else:
        parts += _cabin(rng)
    sheer = _outline((-0.95, 0), (0.2, 0), (1.0, -bow), (0.72, depth), (-0.78, depth))
    parts.append(_Part(sheer, hull, textured=True))
    parts.append(
        _Part(_outline((-0.95, 0), (0.2, 0), (1.0, -bow), (0.96, -bow + 0.1), (0.2, 0.09), (-0.92, 0.09)), accent)
    )
    parts.append(
        _Part(_outline((-0.83, depth * 0.78), (0.77, depth * 0.78), (0.72, depth), (-0.78, depth)), _tone(hull, 0.6))
    )
    return parts


def _sails(rng: np.random.Generator) -> list[_Part]:
    cloth = _pick(rng, [_PALE, _PALE, _PAINT])
    tall, mast, boom = rng.uniform(1.1, 1.7), rng.uniform(-0.15, 0.2), rng.uniform(0.55, 0.8)
    main = _outline((mast, -tall), (mast, -0.15), (mast - boom, -0.15), (mast - 0.55 * boom, -0.5 * tall))
    parts = [_Part(main, cloth, textured=True), _Part(_box(mast - 0.04, -tall - 0.06, mast + 0.03, 0.05), (90, 70, 50))]
    if rng.random() < 0.7:
        jib = _outline((mast + 0.03, -0.9 * tall), (mast + 0.03, -0.18), (mast + 0.7, -0.2))
        parts.append(_Part(jib, _tone(cloth, 0.86)))
    return parts


def _cabin(rng: np.random.Generator) -> list[_Part]:
    wall, roof = _pick(rng, [_PALE, _PAINT]), _pick(rng, [_PAINT, _METAL])
    left, right, high = rng.uniform(-0.7, -0.4), rng.uniform(0.15, 0.4), rng.uniform(0.35, 0.55)
    parts = []
    if rng.random() < 0.6:
        x = rng.uniform(left + 0.1, 0)
        parts.append(_Part(_box(x, -high - 0.45, x + 0.22, -high + 0.05), _pick(rng, [_PAINT, _DARK])))
        parts.append(_Part(_box(x, -high - 0.45, x + 0.22, -high - 0.33), (35, 35, 40)))
    parts.append(_Part(_outline((left, 0.05), (left, -high), (right - 0.12, -high), (right + 0.06, 0.05)), wall))
    parts.append(_Part(_box(left - 0.06, -high - 0.07, right - 0.02, -high + 0.03), roof))
    for x in np.linspace(left + 0.15, right - 0.18, 3):
        parts.append(_Part(_ellipse(x, -high * 0.5, 0.075, 0.085), (45, 70, 95)))
    return parts


def _bottle(rng: np.random.Generator) -> list[_Part]:
    glass = _pick(rng, [_LEAF, _WOOD, _GLASS, _PAINT, _PALE])
    half, neck, shoulder = rng.uniform(0.24, 0.36), rng.uniform(0.08, 0.12), rng.uniform(-0.45, -0.1)
    start = shoulder - rng.uniform(0.15, 0.35)
    bend = np.linspace(0, math.pi, 7)  # the side from shoulder to neck is half a wave
    xs, ys = neck + (half - neck) * (1 + np.cos(bend)) / 2, shoulder + (start - shoulder) * bend / math.pi
    side = [(half - 0.04, 1.0), (half, 0.96), *zip(xs.tolist(), ys.tolist(), strict=True), (neck, -0.95)]
    body = _outline(*side, *((-x, y) for x, y in reversed(side)))
    label_top, label_bottom = shoulder + rng.uniform(0.1, 0.3), rng.uniform(0.5, 0.8)
    label = _pick(rng, [_PALE, _PALE, _PAINT])
    middle = 0.5 * (label_top + label_bottom)
    return [
        _Part(body, glass),
        _Part(_box(-half, label_top, half, label_bottom), label, textured=True),
        _Part(_ellipse(0, middle, 0.55 * half, 0.3 * (label_bottom - label_top)), _pick(rng, [_PAINT, _DARK])),
        _Part(_box(-0.75 * half, shoulder + 0.06, -0.5 * half, 0.9), _tone(glass, 1.5)),
        _Part(_box(-neck - 0.03, -1.08, neck + 0.03, -0.86), _pick(rng, [_PAINT, _METAL, _DARK])),
    ]


def _wheel(x: float, y: float, radius: float) -> list[_Part]:
    return [
        _Part(_ellipse(x, y, radius), (28, 28, 32)),
        _Part(_ellipse(x, y, radius * 0.55), (150, 152, 158)),
        _Part(_ellipse(x, y, radius * 0.2), (60, 60, 66)),
    ]


def _bus(rng: np.random.Generator) -> list[_Part]:
    paint, accent, glass = _pick(rng, [_PAINT, _PAINT, _PALE]), _pick(rng, [_PAINT, _PALE]), _pick(rng, [_GLASS, _DARK])
    decks = 2 if rng.random() < 0.25 else 1
    half = rng.uniform(0.95, 1.45) if decks == 1 else rng.uniform(0.75, 0.95)
    top, bottom = -0.62 if decks == 1 else -0.85, 0.5
    parts = [_Part(_box(-half, top, half, bottom, 0.1), paint, textured=True)]
    parts.append(_Part(_box(-half + 0.01, 0.16, half - 0.01, 0.16 + rng.uniform(0.05, 0.14)), accent))
    panes = int(rng.integers(4, 7))
    for deck in range(decks):
        high = top + 0.13 + 0.5 * deck
        edges = np.linspace(-half + 0.1, half - 0.42, panes + 1)
        for left, right in pairwise(edges.tolist()):
            parts.append(_Part(_box(left, high, right - 0.05, high + (0.42 if decks == 1 else 0.3)), glass))
        parts.append(_Part(_box(half - 0.13, high, half - 0.01, high + 0.4), _tone(glass, 1.15)))
    parts.append(_Part(_box(half - 0.4, -0.35, half - 0.18, bottom - 0.06), _tone(glass, 0.75)))
    parts.append(_Part(_box(half - 0.3, -0.35, half - 0.28, bottom - 0.06), paint))
    parts.append(_Part(_ellipse(half - 0.06, 0.36, 0.05, 0.06), (250, 235, 160)))
    parts.append(_Part(_box(-half, 0.3, -half + 0.06, 0.42), (190, 30, 30)))
    radius = rng.uniform(0.16, 0.21)
    for x in (-0.6 * half, 0.55 * half):
        parts += _wheel(x, bottom, radius)
    return parts


def _car(rng: np.random.Generator) -> list[_Part]:
    paint, glass = _pick(rng, [_PAINT, _PAINT, _METAL, _PALE, _DARK]), _pick(rng, [_GLASS, _DARK])
    back, front, high = rng.uniform(-0.95, -0.55), rng.uniform(0.3, 0.6), rng.uniform(0.38, 0.52)
    rear, slope = rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.4)
    roof = (back + rear, front - slope)
    cabin = _outline((back, 0), (roof[0], -high), (roof[1], -high), (front, 0))
    body = _outline(
        (-1, 0.36), (-1.02, -0.02), (-0.8, -0.06), (0.45, -0.06), (0.85, 0.02), (1.02, 0.14), (1.02, 0.36), (0, 0.38),
        rounds=1,
    )  # fmt: skip
    parts = [_Part(cabin, _tone(paint, 0.93)), _Part(body, paint, textured=True)]
    pillar = 0.5 * (roof[0] + roof[1])
    lift, sill = -high + 0.07, -0.04
    parts.append(
        _Part(
            _outline((back + 0.12, sill), (roof[0] + 0.06, lift), (pillar - 0.03, lift), (pillar - 0.03, sill)), glass
        )
    )
    parts.append(
        _Part(
            _outline((pillar + 0.03, sill), (pillar + 0.03, lift), (roof[1] - 0.04, lift), (front - 0.1, sill)), glass
        )
    )
    parts.append(_Part(_box(pillar - 0.015, 0, pillar + 0.015, 0.33), _tone(paint, 0.55)))
    parts.append(_Part(_box(pillar - 0.2, 0.05, pillar - 0.08, 0.085), _tone(paint, 0.45)))
    parts.append(_Part(_ellipse(0.93, 0.15, 0.07, 0.055), (252, 240, 180)))
    parts.append(_Part(_box(-1.02, 0.06, -0.93, 0.18), (185, 25, 30)))
    parts.append(_Part(_box(-0.98, 0.29, 1.02, 0.37), (45, 45, 50)))
    radius = rng.uniform(0.19, 0.25)
    for x in (-0.6, 0.58):
        parts.append(_Part(_ellipse(x, 0.33, radius * 1.15), (20, 20, 24)))
        parts += _wheel(x, 0.36, radius)
    return parts


def _cat_head(x: float, y: float, r: float, fur: Colour, eyes: Colour) -> list[_Part]:
    parts = []
    for side in (-1, 1):
        ear = _outline(
            (x + side * 0.95 * r, y - 0.2 * r), (x + side * 0.88 * r, y - 1.5 * r), (x + side * 0.1 * r, y - 0.8 * r)
        )
        inner = ear * 0.6 + ear.mean(axis=0) * 0.4
        parts += [_Part(ear, _tone(fur, 0.85)), _Part(inner, (205, 140, 140))]
    parts.append(_Part(_ellipse(x, y, r * 1.08, r * 0.92), fur, textured=True))
    for side in (-1, 1):
        parts.append(_Part(_ellipse(x + side * 0.42 * r, y - 0.12 * r, 0.2 * r, 0.17 * r), eyes))
        parts.append(_Part(_ellipse(x + side * 0.42 * r, y - 0.12 * r, 0.07 * r, 0.16 * r), (15, 15, 15)))
        parts.append(_Part(_ellipse(x + side * 0.2 * r, y + 0.42 * r, 0.27 * r, 0.2 * r), _tone(fur, 1.25)))
    parts.append(
        _Part(_outline((x - 0.15 * r, y + 0.17 * r), (x + 0.15 * r, y + 0.17 * r), (x, y + 0.36 * r)), (180, 80, 90))
    )
    return parts


def _cat(rng: np.random.Generator) -> list[_Part]:
    fur, eyes = _pick(rng, [_FUR, _FUR, _METAL, _DARK, _PALE]), _pick(rng, [_LEAF, (0.1, 0.16, 0.7, 1, 0.7, 1)])
    head = rng.uniform(0.3, 0.38)
    shade = _tone(fur, 0.8)
    if rng.random() < 0.5:  # sits
        wide, curl = rng.uniform(0.4, 0.55), rng.uniform(0.25, 0.4)
        tail = [*_arc(-wide, 0.9 - curl, curl, 0.4 * math.pi, 1.35 * math.pi)]
        body = _outline(
            (-0.22, -0.5), (0.25, -0.5), (0.42, 0.3), (0.45, 1), (-wide, 1.02), (-wide - 0.12, 0.5), rounds=2
        )
        parts = [_Part(_stroke(tail, 0.2, 0.12), shade, textured=True), _Part(body, fur, textured=True)]
        for x in (0.06, 0.27):
            parts.append(
                _Part(_outline((x - 0.08, 0.2), (x + 0.09, 0.2), (x + 0.12, 1.0), (x - 0.09, 1.0)), _tone(fur, 0.9))
            )
        return [*parts, *_cat_head(0.08, -0.55, head, fur, eyes)]
    height, swing = rng.uniform(0.26, 0.34), rng.uniform(-0.12, 0.12)
    reach = rng.uniform(0.5, 0.8)
    tail = [(-0.75, -0.1), (-1.0, -0.25), (-1.08, -0.25 - reach / 2), (-0.98 + swing, -0.25 - reach)]
    parts = [_Part(_stroke(tail, 0.19, 0.12), shade, textured=True)]
    for x, colour in ((-0.5 - swing, shade), (0.42 - swing, shade), (-0.66 + swing, fur), (0.56 + swing, fur)):
        parts.append(_Part(_stroke([(x * 0.95, 0.05), (x, 0.4), (x + 0.04, 0.72)], 0.24, 0.16), colour))
    parts.append(_Part(_ellipse(-0.05, 0, 0.82, height), fur, textured=True))
    return [*parts, *_cat_head(0.8, -0.3, head, fur, eyes)]


def _pottedplant(rng: np.random.Generator) -> list[_Part]:
    pot, wide, deep = _pick(rng, [_CLAY, _CLAY, _PAINT, _PALE]), rng.uniform(0.32, 0.5), rng.uniform(0.55, 0.8)
    base = wide * rng.uniform(0.6, 0.85)
    leaf = _pick(rng, [_LEAF, _LEAF, _LEAF, _PAINT])
    draw = (_blades, _broad_leaves, _bush)[rng.integers(3)]
    return [
        *draw(rng, leaf),
        _Part(_outline((-wide, 0.1), (wide, 0.1), (base, 0.1 + deep), (-base, 0.1 + deep)), pot, textured=True),
        _Part(_box(-wide - 0.06, 0, wide + 0.06, 0.2), _tone(pot, 0.82)),
    ]


def _blades(rng: np.random.Generator, leaf: Colour) -> list[_Part]:
    parts = []
    for lean in rng.permutation(np.linspace(-0.85, 0.85, int(rng.integers(7, 12)))):
        length, bend = rng.uniform(0.8, 1.25), lean * rng.uniform(0.8, 1.3)
        path = [(0.25 * lean, 0.1), (0.25 * lean + 0.35 * bend, -0.5 * length), (0.25 * lean + bend, -0.85 * length)]
        parts.append(_Part(_stroke(path, 0.24, 0.02), _tone(leaf, rng.uniform(0.65, 1.25))))
    return parts


def _broad_leaves(rng: np.random.Generator, leaf: Colour) -> list[_Part]:
    stems, leaves = [], []
    for lean in np.linspace(-0.7, 0.7, int(rng.integers(4, 7))):
        x, y = lean + rng.uniform(-0.08, 0.08), -rng.uniform(0.5, 1.05) + 0.3 * abs(lean)
        stems.append(_Part(_stroke([(0.2 * lean, 0.1), (0.45 * lean, 0.5 * y), (x, y)], 0.1, 0.06), _tone(leaf, 0.6)))
        shade = _tone(leaf, rng.uniform(0.7, 1.25))
        angle = math.atan2(y, x if abs(x) > 0.05 else 0.05) + rng.uniform(-0.3, 0.3)
        leaves.append(
            _Part(_ellipse(x, y, rng.uniform(0.32, 0.44), rng.uniform(0.17, 0.24), angle), shade, textured=True)
        )
        leaves.append(_Part(_ellipse(x, y, 0.3, 0.025, angle), _tone(shade, 0.65)))
    return stems + leaves


def _bush(rng: np.random.Generator, leaf: Colour) -> list[_Part]:
    parts = [_Part(_box(-0.07, -0.3, 0.07, 0.12), (95, 70, 45))]
    flower = _pick(rng, [_PAINT, _PALE])
    blooms = []
    for _ in range(int(rng.integers(12, 18))):
        angle, far = rng.uniform(0, math.tau), math.sqrt(rng.uniform(0, 1))
        x, y, r = 0.5 * far * math.cos(angle), -0.6 + 0.42 * far * math.sin(angle), rng.uniform(0.18, 0.28)
        parts.append(_Part(_ellipse(x, y, r, 0.8 * r), _tone(leaf, rng.uniform(0.65, 1.25))))
        if rng.random() < 0.4:
            blooms.append(_Part(_ellipse(x + 0.05, y, 0.09), flower))
    return parts + blooms


def _sheep(rng: np.random.Generator) -> list[_Part]:
    wool, face = _pick(rng, [_WOOL, _WOOL, _PALE, _FUR, _DARK]), _pick(rng, [_DARK, _DARK, _FUR, _WOOL])
    long, tall = rng.uniform(0.62, 0.78), rng.uniform(0.38, 0.48)
    swing = rng.uniform(-0.08, 0.08)
    parts = []
    for x, factor in ((-0.32 - swing, 0.7), (0.3 - swing, 0.7), (-0.46 + swing, 1.0), (0.44 + swing, 1.0)):
        parts.append(_Part(_box(x - 0.075, 0.1, x + 0.075, 0.88), _tone(face, factor)))
    curls = int(rng.integers(11, 15))
    for angle in np.linspace(0, math.tau, curls, endpoint=False) + rng.uniform(0, 0.5):
        x, y, r = long * math.cos(angle), tall * math.sin(angle), rng.uniform(0.17, 0.24)
        parts.append(_Part(_ellipse(x, y, r), _tone(wool, rng.uniform(0.85, 1.0)), textured=True))
    parts.append(_Part(_ellipse(0, 0, long, tall), wool, textured=True))
    for _ in range(9):
        x, y, r = rng.uniform(-0.55, 0.55), rng.uniform(-0.3, 0.3), rng.uniform(0.06, 0.13)
        parts.append(_Part(_stroke(_arc(x, y, r, 0, 1.3 * math.pi), 0.05, 0.02), _tone(wool, 0.78)))
    nod = rng.uniform(-0.35, 0.1)
    head_x, head_y = long + 0.18, nod
    parts.append(_Part(_ellipse(head_x - 0.16, head_y - 0.1, 0.2, 0.08, -0.3), _tone(face, 0.75)))
    parts.append(_Part(_ellipse(head_x, head_y, 0.29, 0.2, 0.75), face))
    parts.append(_Part(_ellipse(head_x - 0.1, head_y - 0.19, 0.2, 0.15), wool))
    parts.append(_Part(_ellipse(head_x + 0.04, head_y - 0.04, 0.045), (240, 240, 235)))
    parts.append(_Part(_ellipse(head_x + 0.05, head_y - 0.04, 0.022), (10, 10, 10)))
    return parts


@dataclass(frozen=True)
class _Kind:
    """A class of the sample: how it is drawn and where it is met."""

    name: str
    draw: Callable[[np.random.Generator], list[_Part]]
    scenes: tuple[str, ...]
    second: tuple[HueRange, ...]
    """Families of the texture's colour."""
    tilt: float
    """Two standard deviations of the angle against upright, degrees."""
    grounded: bool = True
    """Stands on the ground (or the water), rather than being in the air."""
    sided: bool = True
    """Left and right differ."""
    lies_down: float = 0.0
    """Probability of lying on its side."""


_KINDS = (
    _Kind("aeroplane", _aeroplane, ("sky", "water"), (_PAINT, _METAL), tilt=30, grounded=False),
    _Kind("boat", _boat, ("water",), (_PAINT, _PALE, _DARK), tilt=12),
    _Kind("bottle", _bottle, ("room",), (_PAINT, _DARK), tilt=12, sided=False, lies_down=0.12),
    _Kind("bus", _bus, ("street",), (_PAINT, _PALE), tilt=8),
    _Kind("car", _car, ("street", "field"), (_PAINT, _PALE, _DARK), tilt=10),
    _Kind("cat", _cat, ("room", "field"), (_FUR, _DARK, _PALE), tilt=16),
    _Kind("pottedplant", _pottedplant, ("room", "street"), (_PAINT, _CLAY), tilt=10, sided=False),
    _Kind("sheep", _sheep, ("field",), (_WOOL, _FUR), tilt=14),
)


# --- Surroundings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """``above`` and ``below`` are the colours on both sides of the horizon (its height a share of the image's)."""

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
        _Scene("room", (0.4, 0.65), (_WALL, _WALL, _OVERCAST), (_WOOD, _SOIL, _ROAD, _WALL)),
    )
}


def _background(rng: np.random.Generator, scene: _Scene, shape: tuple[int, int], horizon: int) -> np.ndarray:
    """The empty scene with its clutter, (H, W, 3) float32 in [0, 255]."""
    height, width = shape
    canvas = np.empty((height, width, 3), dtype=np.float32)
    horizon = min(max(horizon, 1), height - 1)
    for rows, families in ((slice(0, horizon), scene.above), (slice(horizon, height), scene.below)):
        region = canvas[rows]
        size = region.shape[:2]
        colour = np.array(_pick(rng, families), dtype=np.float32)
        region[:] = colour * np.linspace(rng.uniform(0.75, 1.1), rng.uniform(0.85, 1.2), size[0])[:, None, None]
        other = np.array(_pick(rng, [*families, _PALE]), dtype=np.float32)
        clouds = np.clip((_noise(rng, size, int(rng.integers(18, 50))) - 0.45) * 2, 0, 1) * rng.uniform(0.1, 0.8)
        region += (other - region) * clouds[..., None].astype(np.float32)
        grain = _noise(rng, size, int(rng.integers(2, 5))) + 0.6 * _noise(rng, size, int(rng.integers(6, 12)))
        region *= 1 + ((grain - 0.8) * rng.uniform(0.03, 0.22))[..., None].astype(np.float32)
    if scene.name == "water":
        _ripple(rng, canvas[horizon:])
    _lay_over(canvas, _render(_clutter(rng, scene, shape, horizon), shape, _surface(rng, shape, (_PAINT, _METAL))))
    return canvas


def _ripple(rng: np.random.Generator, water: np.ndarray) -> None:
    """Lighten and darken wavy rows of ``water`` (h, W, 3), in place."""
    size = water.shape[:2]
    rows = np.arange(size[0], dtype=np.float32)[:, None]
    wave = np.sin(rows * rng.uniform(0.5, 1.1) + 5 * _noise(rng, size, 20) + 3 * _noise(rng, size, 7))
    water *= 1 + (wave * rng.uniform(0.04, 0.14))[..., None].astype(np.float32)


def _clutter(rng: np.random.Generator, scene: _Scene, shape: tuple[int, int], horizon: int) -> list[_Part]:
    """Things of no class, back to front: a skyline or furniture at the horizon, then loose shapes."""
    height, width = shape
    families = [_PAINT, _METAL, _WOOD, _LEAF, _PALE, _DARK, _WALL]
    parts: list[_Part] = []
    for _ in range(int(rng.integers(0, 8))):
        x, wide, tall = rng.uniform(-0.1, 1) * width, rng.uniform(0.06, 0.3) * width, rng.uniform(0.04, 0.28) * height
        if scene.name in ("street", "room"):
            parts += _panel(rng, x, horizon, wide, tall)
        elif scene.name == "field" and rng.random() < 0.5:
            parts.append(_Part(_box(x + 0.4 * wide, horizon - tall, x + 0.5 * wide, horizon + 2), _pick(rng, [_WOOD])))
            parts.append(_Part(_ellipse(x + 0.45 * wide, horizon - tall, 0.5 * wide, 0.5 * tall), _pick(rng, [_LEAF])))
        else:
            hill = _outline((x - wide, horizon + 2), (x, horizon - tall), (x + wide, horizon + 2), rounds=1)
            parts.append(_Part(hill, _pick(rng, [_LEAF, _OVERCAST, _METAL])))
    if rng.random() < 0.3:
        y, tilt, thick = rng.uniform(0.1, 0.9) * height, rng.normal(0, 0.12) * height, rng.uniform(1, 4)
        parts.append(_Part(_stroke([(-5, y), (width + 5, y + tilt)], thick, thick), _pick(rng, families)))
    for _ in range(int(rng.integers(0, 6))):
        x, y = rng.uniform(0, 1) * width, rng.uniform(0.15, 1) * height
        parts.append(_loose_shape(rng, x, y, rng.uniform(0.03, 0.13) * min(shape), _pick(rng, families)))
    return parts


def _panel(rng: np.random.Generator, x: float, horizon: float, wide: float, tall: float) -> list[_Part]:
    """A house front, a picture or a cupboard: a box with smaller boxes on it."""
    wall = _pick(rng, [_WALL, _WOOD, _METAL, _CLAY])
    foot = horizon + rng.uniform(-0.8, 0.05) * tall
    parts = [_Part(_box(x, foot - 1.6 * tall, x + wide, foot), wall, textured=True)]
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    pane = _tone(wall, rng.uniform(0.5, 1.4))
    for column in range(columns):
        for row in range(rows):
            left, top = x + wide * (column + 0.2) / columns, foot - 1.6 * tall * (row + 0.8) / rows
            parts.append(_Part(_box(left, top, left + 0.6 * wide / columns, top + 0.9 * tall / rows), pane))
    return parts


def _loose_shape(rng: np.random.Generator, x: float, y: float, size: float, colour: Colour) -> _Part:
    """A stone, ball, crate, splinter or twig."""
    style = rng.integers(4)
    if style == 0:
        return _Part(_ellipse(x, y, size, size * rng.uniform(0.5, 1)), colour, textured=True)
    if style == 1:
        path = [(x, y), *((x + size * rng.normal(), y + size * rng.normal()) for _ in range(2))]
        return _Part(_stroke(path, 0.25 * size + 1, 1), colour)
    count = int(rng.integers(3, 6)) if style == 2 else 8
    angles = np.sort(rng.uniform(0, math.tau, count))
    radii = size * rng.uniform(0.6, 1.3, count)
    corners = [(x + r * math.cos(a), y + 0.8 * r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]
    return _Part(_outline(*corners, rounds=0 if style == 2 else 1), colour, textured=True)


def _foreground(rng: np.random.Generator, shape: tuple[int, int], horizon: int) -> list[_Layer]:
    """Sometimes a post or a tuft of grass in front of everything."""
    if rng.random() > 0.18:
        return []
    height, width = shape
    x = rng.uniform(0, 1) * width
    if rng.random() < 0.4:
        thick = rng.uniform(3, 0.05 * width)
        post = _Part(_box(x, horizon * rng.uniform(-0.2, 1), x + thick, height + 2), _pick(rng, [_WOOD, _METAL, _DARK]))
        return [_render([post], shape)]
    colour, blades = _pick(rng, [_GRASS, _SOIL]), []
    for _ in range(int(rng.integers(6, 20))):
        foot, lean, tall = x + rng.normal(0, 0.1) * width, rng.normal(0, 0.05) * width, rng.uniform(0.08, 0.25) * height
        path = [(foot, height + 2), (foot + 0.3 * lean, height - 0.5 * tall), (foot + lean, height - tall)]
        blades.append(_Part(_stroke(path, 0.018 * width + 1, 0.5), _tone(colour, rng.uniform(0.6, 1.2))))
    return [_render(blades, shape)]
