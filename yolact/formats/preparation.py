"""Prepare one image of a source for the processed data: read it, turn it upright, downscale, write and summarize it.

The results are small, so many processes can prepare a data set of any size.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from yolact.formats.dataset import AnnotatedImage, ImageSource
from yolact.formats.image_files import KEPT_FORMATS, ImageFile, as_png, bounded_size, redrawn
from yolact.formats.instances import Instance, coco_annotation, redrawn_instance
from yolact.formats.problems import Problem, ProblemError

CATEGORY, LEFT, TOP, WIDTH, HEIGHT, AREA, CROWD, DIFFICULT, TRUNCATED, FILLS_BOX = range(10)
"""Columns of `ImageSummary.instances`."""

COLUMNS = FILLS_BOX + 1


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """What is kept in memory of each image."""

    image_id: str
    file_name: str
    """Name in the folder of written images."""
    width: int
    """Size as written, pixels."""
    height: int
    sha256: bytes
    """Hash of the written file."""
    source_sha256: bytes
    """Hash of the source's file."""
    difference_hash: int
    turned: bool
    drawn_upright: bool | None
    """Whether the masks are those of the upright image, as their size says; None if the size leaves it open."""
    reduced: bool
    converted: bool
    """Whether the source's file is neither JPEG nor PNG."""
    has_xml: bool | None
    instances: np.ndarray
    """(N, 10) float32: the class as its position among the kept ones, the box (x, y, width, height) and the mask's area
    in pixels, the flags crowd, difficult and truncated (NaN if unknown), and whether the mask fills its tight box."""
    other_classes: tuple[int, ...]
    """Class index of each object of a class that is not kept."""
    warnings: tuple[Problem, ...]
    dropped: tuple[Problem, ...]
    """Objects that cannot be used, see `AnnotatedImage.dropped`, and those that vanish when the image is downscaled."""


@dataclass(frozen=True)
class PreparedImage:
    """A written image with its objects."""

    summary: ImageSummary
    rows: tuple[str, ...]
    """For each object, its row of COCO's ``annotations`` as JSON, without the opening brace and the ids."""
    file: str
    """The source's image file, as in problems."""


@dataclass(frozen=True)
class RejectedImage:
    """An image that cannot be used."""

    image_id: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class OpenImage:
    """An image of which nothing says whether its masks are drawn on the upright image or on the image as stored."""

    image_id: str


@dataclass(frozen=True)
class Preparation:
    """How the images of a data set are prepared."""

    folder: Path | None
    """Existing folder that images are written to; None: nothing is written, and names of files are not checked."""
    max_side: int | None
    """Maximum length of the longer side, pixels; larger images are downscaled."""
    category_of: Mapping[int, int]
    """Category id by class index; objects of other classes are dropped."""
    short_names: bool
    """Whether images keep their own names; otherwise the names of their folders are added."""
    exif: bool | None = None
    """Whether masks are drawn on the upright image where sizes leave it open; None: what the tool does, if known."""
    inferred: bool | None = None
    """The same, as the other images have it: for images of which not even the tool is known. None: leave them open."""

    @cached_property
    def _place_of(self) -> dict[int, int]:
        """Position of the kept class, from 0, by class index."""
        places = {number: place for place, number in enumerate(sorted(set(self.category_of.values())))}
        return {index: places[number] for index, number in self.category_of.items()}

    def __call__(self, source: ImageSource) -> PreparedImage | RejectedImage | OpenImage:
        """Prepare one image; problems are returned, not raised."""
        try:
            found = source.read()
            frame = self._frame(found)
            if frame is None:
                return OpenImage(source.image_id)
            upright, why = frame
            chosen = found.as_upright if upright and found.as_upright is not None else found
            return self._prepare(chosen, upright, why, found.upright_by_size)
        except ProblemError as error:
            return RejectedImage(source.image_id, error.problems)

    def _frame(self, found: AnnotatedImage) -> tuple[bool, str] | None:
        """Whether the masks are drawn on the upright image, and why; None if that is open."""
        readings = [found] if found.as_upright is None else [found, found.as_upright]
        drawn = any(item.class_index in self.category_of for reading in readings for item in reading.instances)
        if found.image.orientation == 1 or not drawn:
            return True, ""
        by_size, by_tool = found.upright_by_size, "as the tool shows images"
        reasons = [
            (by_size, by_tool if by_size is found.upright else "as their size says"),
            (self.exif, "as data.exif says"),
            (found.upright, by_tool),
            (self.inferred, "as in the images whose size says so"),
        ]
        return next(((upright, why) for upright, why in reasons if upright is not None), None)

    def _prepare(self, found: AnnotatedImage, upright: bool, why: str, upright_by_size: bool | None) -> PreparedImage:
        image, dropped = found.image, list(found.dropped)
        size = bounded_size(image.upright_size, self.max_side)
        turned, reduced = image.orientation != 1, size != image.upright_size
        kept = [instance for instance in found.instances if instance.class_index in self.category_of]
        kept, repeated = self._without_duplicates(image.file, kept)
        orientation = 1 if upright else image.orientation
        instances = _redrawn_instances(image, kept, orientation, size, dropped) if turned or reduced else kept
        converted = image.format not in KEPT_FORMATS
        data, suffix = image.data, None
        if turned or reduced or (converted and not image.lossless):
            data, suffix = redrawn(image, size), ".jpg"
        elif converted:
            data, suffix = as_png(image), ".png"
        name = self._file_name(found, suffix)
        if self.folder is not None:
            _write(self.folder / name, data, image.file, self.short_names)
        source_digest = hashlib.sha256(image.data).digest()
        summary = ImageSummary(
            image_id=found.image_id,
            file_name=name,
            width=size[0],
            height=size[1],
            sha256=source_digest if data is image.data else hashlib.sha256(data).digest(),
            source_sha256=source_digest,
            difference_hash=image.difference_hash,
            turned=turned,
            drawn_upright=upright_by_size,
            reduced=reduced,
            converted=converted,
            has_xml=found.has_xml,
            instances=_table(instances, self._place_of),
            other_classes=tuple(i.class_index for i in found.instances if i.class_index not in self.category_of),
            warnings=(*_turned_upright(image, upright, why), *found.warnings, *repeated),
            dropped=tuple(dropped),
        )
        rows = (json.dumps(coco_annotation(item, self.category_of[item.class_index])) for item in instances)
        return PreparedImage(summary, tuple(row.removeprefix("{") for row in rows), image.file)

    def _without_duplicates(self, file: str, instances: list[Instance]) -> tuple[list[Instance], list[Problem]]:
        """The instances without those that have the class and the mask of an earlier one, and a warning for each, and
        for those that have its mask, but another class."""
        first: dict[tuple[int, bool, str], Instance] = {}
        owner: dict[str, Instance] = {}
        warnings = []
        for instance in instances:
            key = (self.category_of[instance.class_index], instance.crowd, instance.counts)
            if first.setdefault(key, instance) is not instance:
                reason = f"object {instance.number} has the class and the mask of object {first[key].number}; removed"
                warnings.append(Problem(file, reason, kind="exact duplicate of an object, removed", changed=True))
            elif owner.setdefault(instance.counts, instance) is not instance:
                other = owner[instance.counts].number
                reason = f"object {instance.number} has the mask of object {other}, but another class; both are used"
                warnings.append(Problem(file, reason, kind="mask of another object, with another class"))
        return list(first.values()), warnings

    def _file_name(self, found: AnnotatedImage, written: str | None) -> str:
        """Name of the written image; ``written``: the suffix of an image that was encoded again."""
        name = PurePosixPath(found.image_id).name if self.short_names else found.image_id.replace("/", "__")
        suffix = PurePosixPath(found.image.file).suffix
        name = name if name.endswith(suffix) else name + suffix
        fits = written is None or suffix.lower() == written or (written, suffix.lower()) == (".jpg", ".jpeg")
        return name if fits else f"{name}{written}"


def parsed_rows(rows: Iterable[str]) -> list[dict[str, Any]]:
    """`PreparedImage.rows` as rows of COCO's ``annotations``, without ids."""
    return [json.loads(f"{{{row}") for row in rows]


def objects_of(images: Iterable[ImageSummary]) -> np.ndarray:
    """All objects of some images, (N, 10) float32, see `ImageSummary.instances`."""
    return np.concatenate([np.zeros((0, COLUMNS), dtype=np.float32), *(image.instances for image in images)])


def names_are_unique(image_ids: Collection[str]) -> bool:
    """Whether file names without folders are unique, also on case-insensitive file systems."""
    return len({PurePosixPath(image_id).name.casefold() for image_id in image_ids}) == len(image_ids)


def _turned_upright(image: ImageFile, upright: bool, why: str) -> list[Problem]:
    """A warning about an image that is turned; ``upright``: whether its masks are drawn on the upright image."""
    if image.orientation == 1:
        return []
    masks = "are taken as drawn on the upright image" if upright else "are turned with it"
    what = f"masks {masks}, {why}" if why else "there are no masks"
    reason = f"has EXIF orientation {image.orientation}: it was turned upright; {what}"
    return [Problem(image.file, reason, f"turned upright by EXIF orientation; {what}", changed=True)]


def name_is_taken(file: str, name: str) -> Problem:
    """The problem of an image whose name in the processed data another one has; ``file`` is the source's."""
    reason = f"another image is written as {name!r}; rename one of them"
    return Problem(file, reason, kind="file name of another image")


def _write(path: Path, data: bytes, file: str, short_name: bool) -> None:
    """Write an image to a new file; ``file`` is the source's, for problems."""
    try:
        with path.open("xb") as target:
            target.write(data)
    except FileExistsError:
        raise ProblemError([name_is_taken(file, path.name)]) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        reason = (
            f"would be written under a name of {len(path.name.encode())} bytes, which is too long; shorten its name"
        )
        folders = "" if short_name else " or those of its folders"
        raise ProblemError([Problem(file, reason + folders, kind="file name that is too long")]) from None


def _redrawn_instances(
    image: ImageFile, instances: list[Instance], orientation: int, size: tuple[int, int], dropped: list[Problem]
) -> list[Instance]:
    """The instances as drawn in the written image; those that vanish are appended to ``dropped``.

    Args:
        image: the image.
        instances: its instances.
        orientation: EXIF orientation by which masks are turned; 1 if they are drawn on the upright image.
        size: width and height to downscale to, pixels.
        dropped: receives a problem for each instance that vanishes.
    """
    redrawn = []
    for instance in instances:
        result = redrawn_instance(instance, orientation, size)
        if result is None:
            reason = (
                f"object {instance.number} ({instance.area:g} pixels) vanishes when the image is downscaled to "
                f"{size[0]} x {size[1]}; choose a larger data.max_side to keep it"
            )
            dropped.append(Problem(image.file, reason, kind="vanishes when its image is downscaled"))
        else:
            redrawn.append(result)
    return redrawn


def _table(instances: list[Instance], place_of: Mapping[int, int]) -> np.ndarray:
    if not instances:
        return np.zeros((0, COLUMNS), dtype=np.float32)
    rles = [item.rle() for item in instances]
    fills_box = mask_utils.area(rles) == mask_utils.toBbox(rles)[:, 2:].prod(axis=1)
    rows = [
        (
            place_of[item.class_index],
            *item.box,
            item.area,
            item.crowd,
            np.nan if item.difficult is None else item.difficult,
            np.nan if item.truncated is None else item.truncated,
            fills,
        )
        for item, fills in zip(instances, fills_box, strict=True)
    ]
    return np.array(rows, dtype=np.float32)
