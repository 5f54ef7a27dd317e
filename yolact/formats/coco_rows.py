"""COCO's rows of ``annotations``, as untrusted input: each becomes an object of its image, or is dropped with a reason.

Other formats whose objects are polygons or run lengths give them as such rows to `CocoImage`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from pycocotools import mask as mask_utils

from yolact.formats.dataset import AnnotatedImage
from yolact.formats.image_files import ImageFile, image_warnings, read_image_file
from yolact.formats.instances import Box, Instance
from yolact.formats.problems import Problem, ProblemError

MAX_COORDINATE = 100_000
"""Pixels; a polygon with a larger coordinate is a mistake (and slow to rasterize)."""

MAX_OUTLINE = 2_000_000
"""Length of a polygon, pixels: pycocotools allocates some 80 bytes for each and does not check for failure. Our choice:
more than a hundred times the outline of a 12-megapixel image."""

BOX_AGREES_IOU = 0.5
"""Minimum IoU of a stated box and the mask's tight box; below it, the tight box is used. Our choice."""

OUTSIDE = 1.1
"""Outlines that reach beyond this multiple of an image's side belong to an image of another size. Our choice: outlines
that leave the image by a few pixels are common."""

MARGIN = 0.02
"""Share of a side by which outlines may leave the image without a warning. Our choice, as above."""

AREA_AGREES = 2.0
"""Maximum ratio of a stated area and the mask's pixel count; beyond it, the pixel count is used. Our choice: COCO's
areas are those of the polygons, which differ slightly from the pixel counts."""

TRUTH = {"0": False, "1": True, "false": False, "true": True}
"""``iscrowd`` as text."""


@dataclass(frozen=True)
class RowReading:
    """What holds for all rows of a file and is not written in each."""

    crowds_are_objects: bool = False
    """``iscrowd`` only marks run lengths, so such rows are objects."""
    normalized: bool = False
    """Coordinates of polygons are fractions of the image's width and height."""
    stretched_upright: bool = False
    """Coordinates are those of the upright image, stretched to the stated size, as Label Studio exports them."""
    shown_upright: bool | None = None
    """Whether the tool shows images upright, or as stored; None if it is unknown. Stated sizes come first."""
    sizes_as_stored: bool = False
    """Stated sizes are those of the images as stored, but some outlines fit only the upright image: in turned images
    the outlines decide."""


@dataclass(frozen=True)
class CocoImage:
    """An image with its rows of COCO's ``annotations``; an `ImageSource`."""

    root: Path
    image_id: str
    """The image's file, relative to ``root``."""
    json_file: str
    """The file with the rows, relative to ``root``."""
    stated_size: tuple[int, int] | None
    """Width and height stated in the JSON."""
    annotations: Iterable[Any]
    class_of: Mapping[Any, int]
    """Class index (from 1) by `identity` of the file's own category id."""
    reading: RowReading = RowReading()

    def read(self) -> AnnotatedImage:
        """Read the image and turn the rows into instances."""
        image = read_image_file(self.root, self.image_id)
        rows = list(self.annotations)
        stated = self._stated_size(image, rows)
        if stated is None:
            frames = self._possible_frames(image, rows)
            stored, *others = [self._read(image, rows, frame, None) for frame in frames]
            return replace(stored, as_upright=others[0]) if others else stored
        frame = image.upright_size if self.reading.stretched_upright else stated
        return self._read(image, rows, frame, stated)

    def _read(
        self, image: ImageFile, rows: list[Any], size: tuple[int, int], stated: tuple[int, int] | None
    ) -> AnnotatedImage:
        """Read the rows in a frame of ``size``; ``stated``: the size of the frame that coordinates refer to."""
        scale = (1.0, 1.0)
        if self.reading.normalized:
            scale = (float(size[0]), float(size[1]))
        elif stated is not None:
            scale = (size[0] / stated[0], size[1] / stated[1])
        frame = _Frame(size, scale)
        warnings = [*image_warnings(image)]
        instances: list[Instance] = []
        dropped: list[Problem] = []
        for number, row in enumerate(rows, 1):
            reader = _RowReader(self, frame, f"{_row_name(row, number)} of {self.image_id}")
            try:
                instances.append(reader.instance(row, number))
            except ProblemError as error:
                dropped += error.problems
            warnings += reader.warnings
        upright = True if self.reading.stretched_upright else self.reading.shown_upright
        return AnnotatedImage(
            self.image_id, image, *size, tuple(instances), tuple(warnings), tuple(dropped), upright=upright
        )

    def _stated_size(self, image: ImageFile, rows: list[Any]) -> tuple[int, int] | None:
        """Size of the masks' frame, stated or that of run lengths: that of the image as stored or upright."""
        sizes = (image.stored_size, image.upright_size)
        stated = self.stated_size or next((size for row in rows if (size := _run_size(row)) in sizes), None)
        if stated is not None and stated not in sizes:
            (wide, high), (w, h) = image.stored_size, stated
            reason = (
                f"says that {self.image_id} is {w} x {h} pixels, but it is {wide} x {high}; use the image that was "
                "annotated, or annotate this one"
            )
            raise ProblemError([Problem(self.json_file, reason, "image of another size than stated")])
        if stated == image.stored_size != image.upright_size:
            if self.reading.sizes_as_stored:
                return None
            if self.stated_size and fits_only(corner(rows), image.upright_size, image.stored_size):
                reason = (
                    f"says that {self.image_id} is {stated[0]} x {stated[1]} pixels, but its outlines lie outside of "
                    "that and inside the upright image; swap width and height, or leave both out"
                )
                raise ProblemError([Problem(self.json_file, reason, "size of the image as stored")])
        return stated

    def _possible_frames(self, image: ImageFile, rows: list[Any]) -> list[tuple[int, int]]:
        """Sizes of the image as stored and upright, if they differ and the outlines fit in both."""
        frames = list(dict.fromkeys((image.stored_size, image.upright_size)))
        if len(frames) == 1 or self.reading.normalized:
            return frames
        outer = corner(rows)
        fitting = [frame for frame in frames if outer is None or not reaches_outside(outer, frame)]
        return fitting or frames[:1]


@dataclass(frozen=True)
class _Frame:
    """The coordinate frame of an image's masks."""

    size: tuple[int, int]
    """Width and height, pixels."""
    scale: tuple[float, float]
    """Pixels per stated unit, along x and y."""


def corner(rows: Iterable[Any]) -> tuple[float, float] | None:
    """Largest x and y of all polygons; None if there are none."""
    parts = [part for row in rows if isinstance(row, dict) for part in parts_of(row.get("segmentation"))]
    usable = [part for part in parts if isinstance(part, list) and len(part) > 1 and all(map(is_number, part))]
    return (max(max(part[::2]) for part in usable), max(max(part[1::2]) for part in usable)) if usable else None


def reaches_outside(outer: tuple[float, float], size: tuple[int, int]) -> bool:
    """Whether outlines whose largest x and y are ``outer`` are those of an image larger than ``size``."""
    return outer[0] > OUTSIDE * size[0] or outer[1] > OUTSIDE * size[1]


def fits_only(outer: tuple[float, float] | None, size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether outlines whose largest x and y are ``outer`` fit in an image of ``size``, but not in one of ``other``."""
    return outer is not None and reaches_outside(outer, other) and not reaches_outside(outer, size)


def identity(value: Any) -> int | str | None:
    """The id that a JSON value means, the same for 1, 1.0 and ``"1"``; None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else None
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return int(text.split(".")[0]) if re.fullmatch(r"(0|-?[1-9][0-9]{0,17})(\.0+)?", text) else text
    return None


def is_crowd(row: Mapping[str, Any]) -> bool | None:
    """What ``iscrowd`` says; None if it is neither 0 nor 1."""
    value = row.get("iscrowd")
    if value is None:
        return False
    if isinstance(value, str):
        return TRUTH.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def has_outline(row: Mapping[str, Any]) -> bool:
    """Whether there is a mask of any form, right or wrong, rather than only a box."""
    segmentation = row.get("segmentation")
    return bool(segmentation) and segmentation != [[]]


def parts_of(segmentation: Any) -> list[Any]:
    """The parts of a segmentation: run lengths (dicts) or polygons (lists of x, y, x, y, …), not checked.

    Accepts besides COCO's forms a polygon without the list around it, points as pairs, and lists of run lengths.
    """
    if isinstance(segmentation, dict):
        return [segmentation]
    if not isinstance(segmentation, list):
        return []
    if segmentation and not any(isinstance(part, list | dict) for part in segmentation):
        return [segmentation]
    if len(segmentation) > 2 and all(_is_point(part) for part in segmentation):
        return [[value for point in segmentation for value in point]]
    return [
        [value for point in part for value in point]
        if isinstance(part, list) and part and all(_is_point(point) for point in part)
        else part
        for part in segmentation
    ]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value can be a coordinate or an area: finite, and not an integer too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_number(value[0]) and is_number(value[1])


def _run_size(row: Any) -> tuple[int, int] | None:
    """Width and height of a row's run lengths."""
    parts = parts_of(row.get("segmentation")) if isinstance(row, dict) else []
    size = parts[0].get("size") if parts and isinstance(parts[0], dict) else None
    return (size[1], size[0]) if isinstance(size, list) and _is_point(size) else None


def _row_name(row: Any, number: int) -> str:
    named = isinstance(row, dict) and "id" in row
    return f"annotation {str(row['id'])[:80]}" if named else f"annotation number {number}"


class _RowReader:
    """Reads one row of an image; collects its warnings."""

    def __init__(self, source: CocoImage, frame: _Frame, name: str) -> None:
        self.source, self.frame, self.name = source, frame, name
        self.warnings: list[Problem] = []

    def instance(self, row: Any, number: int) -> Instance:
        """The row as an instance.

        Raises:
            ProblemError: the row cannot be used; has one problem.
        """
        if not isinstance(row, dict):
            raise self._problem("annotation that is no object", "is not a JSON object; correct or remove it")
        category = identity(row.get("category_id"))
        if category is None or category not in self.source.class_of:
            stated = str(row.get("category_id"))[:80]
            reason = f"has category_id {stated}, which is not in categories; correct it"
            raise self._problem("category_id that is not in categories", reason)
        crowd = is_crowd(row)
        if crowd is None:
            raise self._problem(
                "iscrowd that is neither 0 nor 1", f"has iscrowd {row.get('iscrowd')!s:.80}; write 0 or 1"
            )
        crowd = crowd and not self.source.reading.crowds_are_objects
        width, height = self.frame.size
        counts = self._counts(row)
        rle = {"size": [height, width], "counts": counts}
        pixels = int(mask_utils.area(rle))
        if not pixels:
            reason = (
                "has a mask without a pixel inside the image; correct or remove it, or use the image as it was before "
                "it was resized"
            )
            raise self._problem("mask without a pixel inside the image", reason)
        tight = cast(Box, tuple(int(side) for side in mask_utils.toBbox(rle)))
        box = tight if crowd else self._box(row.get("bbox"), tight)
        area = self._area(row, pixels)
        return Instance(number, self.source.class_of[category], box, area, height, width, counts, crowd)

    def _warn(self, kind: str, reason: str) -> None:
        self.warnings.append(Problem(self.source.json_file, f"{self.name} {reason}", kind))

    def _problem(self, kind: str, reason: str) -> ProblemError:
        return ProblemError([Problem(self.source.json_file, f"{self.name} {reason}", kind)])

    def _counts(self, row: Mapping[str, Any]) -> str:
        """Compressed RLE of the segmentation: the union of its parts."""
        width, height = self.frame.size
        parts = parts_of(row.get("segmentation")) if has_outline(row) else []
        if not parts:
            if row.get("bbox"):
                kind, what = "box without an outline", "has a box, but no outline (segmentation is missing or empty)"
            else:
                kind, what = "annotation without an outline", "has no outline (segmentation is missing or empty)"
            raise self._problem(kind, f"{what}; draw it, or remove the row")
        polygons = [part for part in parts if not isinstance(part, dict)]
        usable = [part for part in polygons if not (isinstance(part, list) and len(part) < 6)]
        if len(usable) < len(polygons) and (usable or len(polygons) < len(parts)):
            short = len(polygons) - len(usable)
            self._warn("part of less than 3 points", f"has {short} parts of less than 3 points, which are left out")
        elif not usable and polygons:
            raise self._problem("outline of less than 3 points", "has an outline of less than 3 points; redraw it")
        masks = [{"size": [height, width], "counts": self._runs(part)} for part in parts if isinstance(part, dict)]
        rles = mask_utils.frPyObjects(masks, height, width) if masks else []
        if usable:
            rles += mask_utils.frPyObjects([self._polygon(part) for part in usable], height, width)
        return str((mask_utils.merge(rles) if len(rles) > 1 else rles[0])["counts"].decode())

    def _polygon(self, polygon: Any) -> list[float]:
        """A polygon's coordinates in pixels, checked."""
        if not isinstance(polygon, list) or len(polygon) % 2:
            reason = "has a polygon that is not a list of x, y for at least 3 points; correct its outline"
            raise self._problem("damaged outline", reason)
        if not all(is_number(value) for value in polygon):
            raise self._problem("damaged outline", "has a polygon with a value that is not a number; correct it")
        if self.frame.scale != (1.0, 1.0):
            polygon = [value * self.frame.scale[place % 2] for place, value in enumerate(polygon)]
        largest = max(map(abs, polygon))
        if largest > MAX_COORDINATE:
            reason = f"has a polygon with a value beyond {MAX_COORDINATE} pixels; correct it"
            raise self._problem("outline of impossible size", reason)
        if len(polygon) * largest > MAX_OUTLINE and _outline_length(polygon) > MAX_OUTLINE:
            reason = f"has a polygon whose outline is longer than {MAX_OUTLINE} pixels; correct it"
            raise self._problem("outline of impossible size", reason)
        self._warn_outside(polygon)
        return polygon

    def _warn_outside(self, polygon: list[float]) -> None:
        """Warn of a polygon that leaves the image by more than carelessness explains."""
        width, height = self.frame.size
        xs, ys = polygon[0::2], polygon[1::2]
        over = max(-min(xs) / width, max(xs) / width - 1, -min(ys) / height, max(ys) / height - 1)
        if over > MARGIN:
            kind = "outline beyond the edge of its image, cut off there: were images resized after they were annotated?"
            self._warn(kind, f"reaches {100 * over:.0f}% of a side beyond the edge of its image, and is cut off there")

    def _runs(self, segmentation: Mapping[str, Any]) -> list[int]:
        """Run lengths, checked to add up to the image's pixels: otherwise pycocotools leaves the mask's memory."""
        width, height = self.frame.size
        if segmentation.get("size") != [height, width]:
            reason = (
                f"has run lengths of size {segmentation.get('size')!r:.80}, but its image has [{height}, {width}]; "
                "redraw its mask"
            )
            raise self._problem("run lengths of another size", reason)
        runs = segmentation.get("counts")
        if isinstance(runs, str):
            runs = decompressed_runs(runs)
        if isinstance(runs, list):
            runs = [int(run) if isinstance(run, float) and run.is_integer() else run for run in runs]
        whole = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
        if not whole or sum(cast(list[int], runs)) != height * width:
            reason = f"has run lengths that do not add up to {height * width} pixels; redraw its mask"
            raise self._problem("damaged run lengths", reason)
        return cast(list[int], runs)

    def _box(self, stated: Any, tight: Box) -> Box:
        """The stated box, clipped to the image, if it fits the mask; otherwise the tight one."""
        if stated is None or self.source.reading.normalized:
            return tight
        if not (isinstance(stated, list) and len(stated) == 4 and all(is_number(side) for side in stated)):
            self._warn("damaged bbox", "has a bbox that is not a list of four numbers; the mask's tight box is used")
            return tight
        (sx, sy), (width, height) = self.frame.scale, self.frame.size
        x0, y0 = max(stated[0] * sx, 0), max(stated[1] * sy, 0)
        x1, y1 = min((stated[0] + stated[2]) * sx, width), min((stated[1] + stated[3]) * sy, height)
        inside = (x0, y0, x1 - x0, y1 - y0)
        if x1 <= x0 or y1 <= y0 or _iou(inside, tight) < BOX_AGREES_IOU:
            reason = f"has the bbox {stated}, which does not fit its mask; the mask's tight box {list(tight)} is used"
            self._warn("bbox that does not fit its mask", reason)
            return tight
        return inside

    def _area(self, row: Mapping[str, Any], pixels: int) -> float:
        """The stated area if it is that of the mask; Roboflow and FiftyOne state the area of the box."""
        stated, box = row.get("area"), cast(Any, row.get("bbox"))
        if self.frame.scale != (1.0, 1.0) or not is_number(stated):
            return pixels
        box_is_usable = isinstance(box, list) and len(box) == 4 and all(is_number(side) for side in box)
        if box_is_usable and math.isclose(stated, box[2] * box[3], rel_tol=1e-3):
            return pixels
        return float(stated) if pixels / AREA_AGREES <= stated <= pixels * AREA_AGREES else pixels


def _outline_length(polygon: list[float]) -> float:
    """Rasterization steps of a closed polygon, pixels: the sum over its edges of the larger of width and height."""
    points = np.reshape(polygon, (-1, 2))
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def decompressed_runs(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths; None if the text is damaged.

    Five bits per character, lowest first, plus 48; bit 5 is the continuation flag, bit 4 of the last is the sign; from
    the fourth number on, each is the difference to the number two places before (pycocotools, ``rleToString``).
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs


def _iou(a: Box, b: Box) -> float:
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    overlap = max(wide, 0) * max(high, 0)
    return overlap / (a[2] * a[3] + b[2] * b[3] - overlap)
