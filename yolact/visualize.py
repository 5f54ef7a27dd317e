"""Drawings of detections and ground truth."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from yolact.masks import InstanceMasks

MIN_SIDE = 640
"""Images whose longer side is shorter than this, in pixels, are enlarged before drawing to keep labels legible."""

FILL_OPACITY = 0.45

EDGE_WIDTH, EDGE_OPACITY = 1.0, 0.6
"""Of the dark or white edge on both sides of a contour, pixels: it shows an object on a background of its colour."""

Color = tuple[int, int, int]
_Rectangle = tuple[float, float, float, float]

_PALETTE: tuple[Color, ...] = (
    (255, 140, 26),  # orange
    (38, 132, 255),  # blue
    (64, 192, 87),  # green
    (240, 62, 110),  # rose
    (255, 214, 10),  # yellow
    (151, 92, 246),  # violet
    (18, 201, 207),  # cyan
    (215, 44, 44),  # red
    (170, 220, 60),  # lime
    (240, 120, 220),  # pink
    (24, 128, 112),  # teal
    (160, 104, 60),  # brown
)
_GOLDEN_RATIO = 0.618033988749895


class ScoredObjects(Protocol):
    """What drawing needs of detections; keeps this module independent of `yolact.inference`."""

    @property
    def boxes(self) -> Tensor:
        """(N, 4) xyxy, pixels."""

    @property
    def scores(self) -> Tensor:
        """(N,), 0 to 1."""

    @property
    def labels(self) -> Tensor:
        """(N,), 0 to C - 1."""

    @property
    def instance_masks(self) -> InstanceMasks:
        """N masks."""


def instance_color(index: int) -> Color:
    """RGB colour, 0 to 255, of the instance at an index: a fixed palette first, then hues spaced by the golden
    ratio."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    hue = (index * _GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.55)[index % 2], (0.95, 0.8)[index // 2 % 2])
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    image: np.ndarray,
    detections: ScoredObjects,
    class_names: Sequence[str],
    *,
    color_by: Literal["instance", "class"] = "instance",
    enlarge: bool = True,
) -> np.ndarray:
    """Draw masks, boxes and labels with scores over an image.

    Args:
        image: (H, W, 3) uint8 RGB; not modified.
        detections: in the frame of ``image``; `Detections.above` leaves out low scores.
        class_names: name of label 0, 1, ...
        color_by: ``instance`` tells neighbours apart; ``class`` keeps an object's colour over the frames of a video.
        enlarge: enlarge small images, see `MIN_SIDE`; otherwise the drawing has the image's size.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    captions = [
        f"{class_names[label]} {score:.2f}"
        for label, score in zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
    ]
    indices = detections.labels.tolist() if color_by == "class" else range(len(captions))
    colors = [instance_color(index) for index in indices]
    return _draw(image, _as_array(detections.boxes), detections.instance_masks, captions, colors, enlarge=enlarge)


def draw_ground_truth(
    image: np.ndarray,
    boxes: np.ndarray | Tensor,
    labels: Sequence[int],
    masks: np.ndarray | Tensor,
    class_names: Sequence[str],
    *,
    crowd: Sequence[bool] | None = None,
) -> np.ndarray:
    """Draw annotated objects in the style of `draw_detections`, without scores.

    Args:
        image: (H, W, 3) uint8 RGB; not modified.
        boxes: (N, 4) xyxy, pixels.
        labels: N of 0 to C - 1.
        masks: (N, H, W), non-zero inside the object.
        class_names: name of label 0, 1, ...
        crowd: N flags; crowd regions are labelled "(crowd)".

    Returns:
        (H', W', 3) uint8 RGB; larger than the image where that is small, see `MIN_SIDE`.
    """
    crowd = [False] * len(labels) if crowd is None else crowd
    captions = [
        f"{class_names[int(label)]}{' (crowd)' if is_crowd else ''}"
        for label, is_crowd in zip(labels, crowd, strict=True)
    ]
    stored = InstanceMasks.from_tensor(torch.from_numpy(_as_array(masks).astype(bool)))
    return _draw(image, _as_array(boxes), stored, captions, [instance_color(index) for index in range(len(captions))])


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Place drawings in a row on white, each under its title.

    Args:
        pictures: (H_i, W_i, 3) uint8 RGB, at least one.
        titles: one per drawing.
    """
    font = _font(22)
    gap, strip = 12, 40
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    height = strip + max(picture.shape[0] for picture in pictures)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    left = 0
    for picture, title in zip(pictures, titles, strict=True):
        pen.text((left + 4, strip / 2), title, fill=(40, 40, 40), font=font, anchor="lm")
        sheet.paste(Image.fromarray(picture), (left, strip))
        left += picture.shape[1] + gap
    return np.asarray(sheet)


def contact_sheet(pictures: Sequence[np.ndarray], *, columns: int = 3, cell_width: int = 640) -> np.ndarray:
    """Place drawings in a grid on white, scaled to one width; a row is as high as its tallest drawing.

    Args:
        pictures: (H_i, W_i, 3) uint8 RGB, at least one.
        columns: drawings per row.
        cell_width: width of each drawing, pixels.
    """
    gap = 12
    cells = [_scaled_to_width(picture, cell_width) for picture in pictures]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    widest = max(len(row) for row in rows)
    sheet = Image.new("RGB", (widest * (cell_width + gap) + gap, sum(heights) + gap * (len(rows) + 1)), "white")
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (gap + column * (cell_width + gap), top))
        top += height + gap
    return np.asarray(sheet)


@dataclass(frozen=True)
class _Style:
    """Line and text sizes, pixels of the finished drawing."""

    line: float
    text: int
    padding: int

    @classmethod
    def of(cls, width: int, height: int) -> _Style:
        side = max(width, height)
        text = max(15, round(side / 42))
        return cls(line=max(1.8, side / 400), text=text, padding=max(3, text // 4))


def _draw(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: InstanceMasks,
    captions: Sequence[str],
    colors: Sequence[Color],
    *,
    enlarge: bool = True,
) -> np.ndarray:
    """Draw N instances, the first on top; ``boxes`` (N, 4) xyxy and the masks are in the image's frame."""
    height, width = image.shape[:2]
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, is {image.shape} {image.dtype}")
    scale = max(1.0, MIN_SIDE / max(width, height)) if enlarge else 1.0
    picture = Image.fromarray(image)
    if scale > 1:
        picture = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    style = _Style.of(picture.width, picture.height)
    for index in reversed(range(len(captions))):
        _paint_mask(picture, masks[index : index + 1], colors[index], scale, style)
    pen = ImageDraw.Draw(picture)
    scaled_boxes = boxes.astype(np.float64) * np.tile((picture.width / width, picture.height / height), 2)
    for index in reversed(range(len(captions))):
        _outline_box(pen, scaled_boxes[index], colors[index], style, picture.size)
    _write_labels(pen, scaled_boxes, captions, colors, style, picture.size)
    return np.asarray(picture)


def _paint_mask(picture: Image.Image, mask: InstanceMasks, color: Color, scale: float, style: _Style) -> None:
    """Lay one mask over ``picture``, in place: translucent fill and a contour."""
    [crop], [(above, before)] = mask.crops, mask.corners
    if not crop.any():
        return
    width, height = picture.size
    if (mask.height, mask.width) == (height, width):
        shape = Image.fromarray(crop.astype(np.uint8) * 255)
    else:
        whole = Image.fromarray(mask.to_tensor()[0].numpy().astype(np.uint8) * 255)
        shape, above, before = whole.resize((width, height), Image.Resampling.BILINEAR), 0, 0
    sigma = max(0.8 * style.line, 0.6 * scale, 1.2)
    left, top, right, bottom = shape.getbbox() or (0, 0, *shape.size)
    margin = int(3 * sigma + style.line) + 1
    first = (max(-before, left - margin), max(-above, top - margin))
    last = (min(width - before, right + margin), min(height - above, bottom + margin))
    part = shape.crop(first + last)  # empty outside of the mask's window
    blurred = part.filter(ImageFilter.GaussianBlur(sigma))
    contour, edge = (blurred.point(table) for table in _line_tables(sigma, style.line))
    fill = part.point([round(value * FILL_OPACITY) for value in range(256)])
    place = (before + first[0], above + first[1])
    picture.paste(readable_on(color), place, edge)
    picture.paste(color, place, ImageChops.lighter(contour, fill))


@cache
def _line_tables(sigma: float, line: float) -> tuple[list[int], list[int]]:
    """Opacity of the contour and of its edge, 0 to 255, by the value of a blurred mask, 0 to 255.

    At the distance d from a straight border, a blurred mask is the normal distribution function of d / sigma; its
    inverse gives an even, smooth line.
    """
    inverse = NormalDist(sigma=sigma).inv_cdf
    distance = np.array([np.inf, *(abs(inverse(value / 255)) for value in range(1, 255)), np.inf])
    contour = np.clip(line / 2 + 0.5 - distance, 0, 1)
    edge = np.clip(line / 2 + 0.5 + EDGE_WIDTH - distance, 0, 1) * EDGE_OPACITY
    return (contour * 255).round().astype(int).tolist(), (edge * 255).round().astype(int).tolist()


def _outline_box(pen: ImageDraw.ImageDraw, box: np.ndarray, color: Color, style: _Style, size: tuple[int, int]) -> None:
    left, top, right, bottom = _inside(box, size)
    pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=max(1, int(style.line)))


def _write_labels(
    pen: ImageDraw.ImageDraw,
    boxes: np.ndarray,
    captions: Sequence[str],
    colors: Sequence[Color],
    style: _Style,
    size: tuple[int, int],
) -> None:
    """Write each caption on a plate at its box, avoiding overlap with other plates if possible."""
    font = _font(style.text)
    plates: list[_Rectangle] = []
    for box, caption, color in zip(boxes, captions, colors, strict=True):
        plate_width = pen.textlength(caption, font=font) + 2 * style.padding
        plate_height = style.text * 1.2 + style.padding
        candidates = _plate_places(_inside(box, size), plate_width, plate_height, size)
        plate = min(candidates, key=lambda place: sum(_overlap(place, other) for other in plates))  # the first best
        plates.append(plate)
        ink = readable_on(color)
        pen.rounded_rectangle(plate, radius=style.padding, fill=color, outline=ink)  # visible on its own colour too
        middle = (plate[1] + plate[3]) / 2
        pen.text((plate[0] + style.padding, middle), caption, fill=ink, font=font, anchor="lm")


def _plate_places(box: _Rectangle, width: float, height: float, size: tuple[int, int]) -> list[_Rectangle]:
    """Places for a plate inside the drawing, the preferred first: above the box, in its corners, below it."""
    left, top, right, bottom = box
    tops_lefts = [
        (top - height, left),
        (top, left),
        (top - height, right - width),
        (top, right - width),
        (bottom, left),
        (bottom - height, left),
        (bottom - height, right - width),
        ((top + bottom - height) / 2, (left + right - width) / 2),
    ]
    outside_last = sorted(tops_lefts, key=lambda place: place[0] < 0 or place[0] + height > size[1])
    places = []
    for plate_top, plate_left in outside_last:
        x = min(max(plate_left, 0.0), max(0.0, size[0] - 1 - width))
        y = min(max(plate_top, 0.0), max(0.0, size[1] - 1 - height))
        places.append((x, y, x + width, y + height))
    return places


def _overlap(a: _Rectangle, b: _Rectangle) -> float:
    """Intersection area of two xyxy rectangles."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _inside(box: np.ndarray, size: tuple[int, int]) -> _Rectangle:
    left, top, right, bottom = (float(value) for value in box)
    left, top = min(max(left, 0.0), size[0] - 1.0), min(max(top, 0.0), size[1] - 1.0)
    return left, top, min(max(right, left), float(size[0])), min(max(bottom, top), float(size[1]))


def readable_on(color: Color) -> Color:
    """Near-black or white, whichever has more contrast with ``color`` (WCAG 2.2, "contrast ratio")."""
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in color)
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (20, 20, 20) if (luminance + 0.05) ** 2 > 1.05 * 0.057 else (255, 255, 255)


def _scaled_to_width(picture: np.ndarray, width: int) -> Image.Image:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)


def _as_array(values: np.ndarray | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
