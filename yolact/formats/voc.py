"""The PASCAL VOC format: folders of images, masks and optional XML, and their conversion to instances."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from yolact.class_names import VOC_CLASSES
from yolact.errors import DataError
from yolact.formats.dataset import AnnotatedImage, Dataset, Files, ImageSource, ReadOptions, only_one
from yolact.formats.image_files import image_warnings, read_image_file, size_problems
from yolact.formats.instances import Instance, instances_from_index_mask
from yolact.formats.problems import Problem, ProblemError, keep_problems
from yolact.formats.voc_files import (
    SEGMENTATION_SETS,
    VOID,
    VocAnnotation,
    VocObject,
    find_image,
    find_part,
    has_image,
    image_lists,
    read_annotation,
    read_mask,
    stems,
    unused_images,
)

NAME = "PASCAL VOC"

MASK_FOLDERS = ("SegmentationClass", "SegmentationObject")
NEEDED = ("JPEGImages", *MASK_FOLDERS)

FOUND_BY = f"the folders {', '.join(NEEDED)}"

INCLUDES: tuple[str, ...] = ()

TARGET = Path("VOCdevkit") / "VOC2012"
"""Path of the files in VOC's own archive."""

MAX_FOREIGN_SHARE = 0.05
"""Maximum fraction of an object's pixels with another class than the majority; our choice: tolerates a slip at the
border, not a second object."""

BOX_MATCH_IOU = 0.5
"""Minimum IoU of an XML box and an instance to match (the devkit's threshold of a correct box)."""

BOX_CONFLICT_IOU = 0.8
"""IoU at which an XML box and an instance of different classes must be the same object; our choice."""

VOID_BAND = 5
"""Pixels by which an XML box may extend beyond the mask on each side: boxes enclose the void border, about five pixels
wide (Everingham et al., IJCV 2010), masks do not."""


# The format


def find(folders: Sequence[Path]) -> list[Path]:
    """Find folders with VOC's masks, even if another part is missing; `files` and `read` report which."""
    return [folder for folder in folders if any((folder / name).is_dir() for name in MASK_FOLDERS)]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """The folders that `read` needs, and ``Annotations`` and ``ImageSets`` if present."""
    return [Files(_root(found), TARGET, (*NEEDED, "Annotations", "ImageSets"))]


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """Read the images of ``ImageSets/Segmentation/*.txt``; without lists, all with a mask in SegmentationObject."""
    root = _root(found)
    masks = root / "SegmentationObject"
    ids = image_lists(root / SEGMENTATION_SETS, partial(has_image, root, "JPEGImages"))
    warnings: list[Problem] = []
    if not ids:
        ids = {"train": stems(masks, ".png")}
        if not ids["train"]:
            raise DataError(f"{masks}: has no *.png. Each image needs a mask there and one in SegmentationClass.")
        warnings = unused_images(root / "JPEGImages", ids["train"], "a mask in SegmentationObject")
    splits = {split: [VocImage(root, name) for name in names] for split, names in ids.items()}
    return voc_dataset(NAME, root, splits, warnings)


def _root(found: Sequence[Path]) -> Path:
    root = only_one(found)
    missing = [name for name in NEEDED if not (root / name).is_dir()]
    if missing:
        raise DataError(f"{root} has no folder {', '.join(missing)}, which PASCAL VOC needs. Check data.source.")
    return root


def voc_dataset(
    name: str, root: Path, splits: Mapping[str, Sequence[ImageSource]], warnings: Sequence[Problem]
) -> Dataset:
    """A data set with VOC's classes and image numbers."""
    ids = {source.image_id for sources in splits.values() for source in sources}
    return Dataset(name, str(root), dict(enumerate(VOC_CLASSES, 1)), splits, {}, image_numbers(ids), warnings=warnings)


def image_numbers(image_ids: Iterable[str]) -> dict[str, int]:
    """COCO's integer image ids, by image id.

    VOC's own names (``2007_000032``) give their digits (2007000032), independent of the other images. If any name has
    another form, all are numbered from 1 in sorted order.
    """
    names = sorted(image_ids)
    if all(re.fullmatch(r"[0-9]{4}_[0-9]{6}", name) for name in names):
        return {name: int(name.replace("_", "")) for name in names}
    return {name: number for number, name in enumerate(names, 1)}


# Images


@dataclass(frozen=True)
class VocImage:
    """An image of a VOC2012 folder; an `ImageSource`."""

    root: Path
    image_id: str

    def read(self) -> AnnotatedImage:
        """See `read_voc_image`."""
        return read_voc_image(self.root, self.image_id)


def read_voc_image(root: Path, image_id: str) -> AnnotatedImage:
    """Read one image's size, masks and XML and turn them into instances.

    The image is decoded in full, which detects damage. Instances come from SegmentationObject, classes from
    SegmentationClass; the XML is optional: it provides flags and is checked against the masks.

    Raises:
        ProblemError: with all problems of the image's files.
    """
    problems: list[Problem] = []
    image = keep_problems(problems, lambda: read_image_file(root, find_image(root, "JPEGImages", image_id)))
    object_file = find_part(root, "SegmentationObject", image_id, ".png")
    class_file = find_part(root, "SegmentationClass", image_id, ".png")
    xml_file = find_part(root, "Annotations", image_id, ".xml")
    object_mask = keep_problems(problems, lambda: read_mask(root, object_file))
    class_mask = keep_problems(problems, lambda: read_mask(root, class_file))
    annotation = keep_problems(problems, lambda: read_annotation(root, xml_file))
    if image is not None:
        masks = {object_file: object_mask, class_file: class_mask}
        problems += size_problems(image, {file: mask for file, mask in masks.items() if mask is not None})
    if image is None or object_mask is None or class_mask is None or problems:
        raise ProblemError(problems)

    joint = joint_histogram(object_mask, class_mask)
    problems += mask_problems(joint, object_file, class_file)
    if problems:
        raise ProblemError(problems)
    instances = instances_from_index_mask(object_mask, object_classes(joint))
    height, width = object_mask.shape
    warnings = [*image_warnings(image, (width, height) != image.stored_size), *_unowned_warnings(joint, class_file)]
    if annotation is not None:
        instances, differences = match_objects(instances, annotation, xml_file)
        warnings += _size_warning(annotation, (width, height), xml_file) + differences
    return AnnotatedImage(
        image_id, image, width, height, tuple(instances), tuple(warnings), has_xml=annotation is not None
    )


def joint_histogram(object_mask: np.ndarray, class_mask: np.ndarray) -> np.ndarray:
    """Pixels by object index and class index.

    Args:
        object_mask: (H, W) uint8.
        class_mask: (H, W) uint8.

    Returns:
        (256, 256) int64; row: object index, column: class index.
    """
    pairs = ((object_mask.astype(np.uint16) << 8) | class_mask).ravel()
    # Count runs of equal pixels: there are a hundred times fewer of them.
    starts = np.concatenate(([0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1))
    lengths = np.diff(starts, append=pairs.size)
    counts = np.bincount(pairs[starts], weights=lengths, minlength=1 << 16)
    return counts.astype(np.int64).reshape(256, 256)


def object_classes(joint: np.ndarray) -> dict[int, int]:
    """Class index (1 to 20) of each object index with class pixels: the most frequent one; ties go to the lowest."""
    by_class = joint[1:VOID, 1 : len(VOC_CLASSES) + 1]  # (254, 20)
    present = np.flatnonzero(by_class.any(axis=1))
    return {int(row) + 1: int(by_class[row].argmax()) + 1 for row in present}


def mask_problems(joint: np.ndarray, object_file: str, class_file: str) -> list[Problem]:
    """Problems of an image's two masks together; ``joint`` is the result of `joint_histogram`."""
    foreign = np.flatnonzero(joint.sum(axis=0)[len(VOC_CLASSES) + 1 : VOID]) + len(VOC_CLASSES) + 1
    if len(foreign):
        reason = (
            f"has class index {_listed(foreign)}, but there are only 0 (background), 1 to {len(VOC_CLASSES)} and "
            f"{VOID} (void); correct these pixels (classes of your own need the COCO format)"
        )
        return [Problem(class_file, reason)]
    problems = []
    classes = object_classes(joint)
    for index in (int(row) for row in np.flatnonzero(joint.any(axis=1)) if 0 < row < VOID):
        pixels = int(joint[index].sum())
        if index not in classes:
            reason = (
                f"object {index} ({pixels} pixels) has no class: SegmentationClass has only background or void there; "
                "draw its class there, or set the object's pixels to 0 (background) or 255 (void)"
            )
            problems.append(Problem(object_file, reason))
            continue
        decided = pixels - int(joint[index, VOID])
        share = 1 - int(joint[index, classes[index]]) / decided
        if share > MAX_FOREIGN_SHARE:
            others = [c for c in np.flatnonzero(joint[index]).tolist() if c not in (classes[index], VOID)]
            reason = (
                f"object {index} is mostly {_class_name(classes[index])}, but {share:.0%} of it is "
                f"{', '.join(_class_name(c) for c in others)} in SegmentationClass; give each object one class, "
                "or split it into several objects"
            )
            problems.append(Problem(object_file, reason))
    return problems + _orphan_problems(joint, class_file)


def _orphan_problems(joint: np.ndarray, class_file: str) -> list[Problem]:
    """Problems of classes with pixels but without an object in the image: their objects would be lost."""
    drawn = set(np.flatnonzero(joint.any(axis=0)).tolist()) - {0, VOID}
    owned = set(np.flatnonzero(joint[1:VOID].any(axis=0)).tolist())
    return [
        Problem(
            class_file,
            f"shows {_class_name(index)} on {joint[:, index].sum()} pixels, but SegmentationObject has no object "
            "there; draw the object, or set these pixels to 0 (background) or 255 (void)",
        )
        for index in sorted(drawn - owned)
    ]


def _unowned_warnings(joint: np.ndarray, class_file: str) -> list[Problem]:
    """Warnings about classes with a significant part outside all objects."""
    warnings = []
    for index in range(1, len(VOC_CLASSES) + 1):
        total, outside = int(joint[:, index].sum()), int(joint[0, index] + joint[VOID, index])
        if total and outside / total > MAX_FOREIGN_SHARE:
            reason = f"{outside} of {total} pixels of {_class_name(index)} belong to no object and are ignored"
            warnings.append(Problem(class_file, reason))
    return warnings


def _class_name(index: int) -> str:
    return "background" if index == 0 else VOC_CLASSES[index - 1]


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(int(value)) for value in values)


def match_objects(
    instances: Sequence[Instance], annotation: VocAnnotation, file: str
) -> tuple[list[Instance], list[Problem]]:
    """Give each instance the flags of its XML object: the same class, highest IoU first, at least `BOX_MATCH_IOU`.

    Returns:
        The instances, and a warning for each unmatched instance or XML object.

    Raises:
        ProblemError: masks and XML give one object two classes (`BOX_CONFLICT_IOU`).
    """
    objects = annotation.objects
    iou = _void_tolerant_iou(
        np.array([instance.box for instance in instances], dtype=np.float64).reshape(-1, 4),
        np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4),
    )
    classes = np.array([instance.class_index for instance in instances], dtype=np.int64)
    same_class = classes[:, None] == np.array([item.class_index for item in objects], dtype=np.int64)[None, :]
    pairs = _greedy_pairs(np.where(same_class, iou, 0.0), BOX_MATCH_IOU)
    matched = list(instances)
    for row, column in pairs.items():
        item = objects[column]
        matched[row] = replace(instances[row], difficult=item.difficult, truncated=item.truncated)
    lone_rows = [row for row in range(len(instances)) if row not in pairs]
    lone_columns = [column for column in range(len(objects)) if column not in pairs.values()]
    problems = [
        Problem(
            file,
            f"object {column + 1} is {_class_name(objects[column].class_index)}, but the masks show "
            f"{_class_name(instances[row].class_index)} there (object index {instances[row].number}); "
            "correct the XML or SegmentationClass",
        )
        for row in lone_rows
        for column in lone_columns
        if iou[row, column] >= BOX_CONFLICT_IOU
    ]
    if problems:
        raise ProblemError(problems)
    return matched, _lone_warnings(instances, objects, lone_rows, lone_columns, file)


def _lone_warnings(
    instances: Sequence[Instance],
    objects: Sequence[VocObject],
    lone_rows: list[int],
    lone_columns: list[int],
    file: str,
) -> list[Problem]:
    warnings = []
    for row in lone_rows:
        instance = instances[row]
        reason = f"no box matches the mask of object index {instance.number} ({_class_name(instance.class_index)})"
        warnings.append(Problem(file, f"{reason}; the instance is kept, without the flags difficult and truncated"))
    for column in lone_columns:
        reason = f"object {column + 1} ({_class_name(objects[column].class_index)}) matches no mask and is ignored"
        warnings.append(Problem(file, reason))
    return warnings


def _void_tolerant_iou(mask_boxes: np.ndarray, xml_boxes: np.ndarray) -> np.ndarray:
    """IoU after growing each mask box towards the XML box, by up to `VOID_BAND` pixels per side.

    Args:
        mask_boxes: (I, 4) xywh, pixels.
        xml_boxes: (J, 4) xyxy, pixels.

    Returns:
        (I, J) float64, 0 to 1.
    """
    low = mask_boxes[:, None, :2]  # (I, 1, 2)
    high = low + mask_boxes[:, None, 2:]
    xml_low, xml_high = xml_boxes[None, :, :2], xml_boxes[None, :, 2:]  # (1, J, 2)
    low = low - np.clip(low - xml_low, 0, VOID_BAND)  # (I, J, 2)
    high = high + np.clip(xml_high - high, 0, VOID_BAND)
    overlap = np.clip(np.minimum(high, xml_high) - np.maximum(low, xml_low), 0, None).prod(axis=2)
    union = (high - low).prod(axis=2) + (xml_high - xml_low).prod(axis=2) - overlap
    return np.asarray(overlap / union)


def _greedy_pairs(iou: np.ndarray, least: float) -> dict[int, int]:
    """Greedy matching, column by row: highest IoU first, at least ``least``; ties go to the lower index."""
    pairs: dict[int, int] = {}
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        row, column = divmod(int(flat), iou.shape[1])
        if iou[row, column] < least:
            break
        if row not in pairs and column not in pairs.values():
            pairs[row] = column
    return pairs


def _size_warning(annotation: VocAnnotation, size: tuple[int, int], file: str) -> list[Problem]:
    if annotation.size is None or annotation.size == size:
        return []
    width, height = annotation.size
    reason = f"states the size {width} x {height}, but the image is {size[0]} x {size[1]}; its boxes may not fit"
    return [Problem(file, reason)]
