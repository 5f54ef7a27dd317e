"""From VOC's masks and XML to instances, and from instances to COCO JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from yolact.data.voc import (
    VOC_CLASSES,
    VOID,
    Photo,
    Problem,
    ProblemError,
    VocAnnotation,
    VocObject,
    keep_problems,
    read_annotation,
    read_mask,
    read_photo,
)

MAX_FOREIGN_SHARE = 0.05
"""Largest share of an object's pixels that may carry another class than its majority; our choice: room for a
brush's slip at the border, not for a second object."""

BOX_MATCH_IOU = 0.5
"""Least IoU of an XML box and an instance that are one object (the devkit's own threshold of a correct box)."""

BOX_CONFLICT_IOU = 0.8
"""IoU from which an XML box and an instance of different classes must be one object; our choice."""

VOID_BAND = 5
"""Pixels by which an XML box may reach beyond the mask on each side and still agree: boxes enclose the void
border, about five pixels wide (Everingham et al., IJCV 2010), masks do not."""


@dataclass(frozen=True)
class VocInstance:
    """One object of one photo, as its masks show it."""

    object_index: int
    """1 to 254, the index in SegmentationObject."""
    class_index: int
    """1 to 20, the index in SegmentationClass."""
    box: tuple[int, int, int, int]
    """xywh, pixels, tight around the mask."""
    area: int
    """Pixels of the mask."""
    height: int
    """Of the photo, pixels."""
    width: int
    counts: str
    """COCO's compressed run lengths of the mask."""
    difficult: bool | None = None
    """None where no ``<object>`` of the XML was matched."""
    truncated: bool | None = None


@dataclass(frozen=True)
class VocImage:
    """One photo with its instances, in the order of their object index."""

    image_id: str
    file: str
    """The photo, relative to the VOC2012 folder."""
    width: int
    height: int
    instances: tuple[VocInstance, ...]
    has_xml: bool
    warnings: tuple[Problem, ...]
    """Oddities that do not keep the photo from being used."""


def read_voc_image(root: Path, image_id: str) -> VocImage:
    """Read one photo's size, masks and XML and turn them into instances.

    The photo is decoded in full, so that a damaged one is noticed here. Instances come from
    SegmentationObject, classes from SegmentationClass; the XML is optional, lends its flags and is compared.

    Raises:
        ProblemError: with all that is wrong with the photo's files.
    """
    problems: list[Problem] = []
    photo = keep_problems(problems, lambda: read_photo(root, image_id))
    object_file, class_file = f"SegmentationObject/{image_id}.png", f"SegmentationClass/{image_id}.png"
    object_mask = keep_problems(problems, lambda: read_mask(root, object_file))
    class_mask = keep_problems(problems, lambda: read_mask(root, class_file))
    annotation = keep_problems(problems, lambda: read_annotation(root, f"Annotations/{image_id}.xml"))
    if photo is not None:
        for file, mask in ((object_file, object_mask), (class_file, class_mask)):
            if mask is not None and mask.shape != (photo.height, photo.width):
                problems.append(Problem(file, _size_fault(mask, photo)))
    if photo is None or object_mask is None or class_mask is None or problems:
        raise ProblemError(problems)

    joint = joint_histogram(object_mask, class_mask)
    problems += mask_problems(joint, image_id)
    if problems:
        raise ProblemError(problems)
    instances = instances_from_mask(object_mask, object_classes(joint))
    warnings = [*_orientation_warning(photo), *_unowned_warnings(joint, class_file)]
    if annotation is not None:
        instances, differences = match_objects(instances, annotation, image_id)
        warnings += _size_warning(annotation, photo, image_id) + differences
    return VocImage(
        image_id, photo.file, photo.width, photo.height, tuple(instances), annotation is not None, tuple(warnings)
    )


def _size_fault(mask: np.ndarray, photo: Photo) -> str:
    height, width = mask.shape
    found = f"is {width} x {height} pixels, but the photo is {photo.width} x {photo.height}"
    if (height, width) == (photo.width, photo.height) and photo.orientation in (5, 6, 7, 8):
        return (
            f"{found} and carries EXIF orientation {photo.orientation}: the mask was drawn on the turned photo; "
            "save the photo turned upright and without that tag"
        )
    return f"{found}; save the mask at the photo's size, without smoothing (nearest neighbour)"


def joint_histogram(object_mask: np.ndarray, class_mask: np.ndarray) -> np.ndarray:
    """Pixels by object index and class index.

    Args:
        object_mask: (H, W) uint8.
        class_mask: (H, W) uint8.

    Returns:
        (256, 256) int64; row: object index, column: class index.
    """
    pairs = (object_mask.astype(np.uint16) << 8) | class_mask
    return np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)


def object_classes(joint: np.ndarray) -> dict[int, int]:
    """Class index (1 to 20) of each object index that has class pixels: the most frequent; of equals, the lowest."""
    by_class = joint[1:VOID, 1 : len(VOC_CLASSES) + 1]  # (254, 20)
    present = np.flatnonzero(by_class.any(axis=1))
    return {int(row) + 1: int(by_class[row].argmax()) + 1 for row in present}


def mask_problems(joint: np.ndarray, image_id: str) -> list[Problem]:
    """What keeps the two masks of a photo from being used together; ``joint`` as `joint_histogram` gives it."""
    object_file, class_file = f"SegmentationObject/{image_id}.png", f"SegmentationClass/{image_id}.png"
    foreign = np.flatnonzero(joint.sum(axis=0)[len(VOC_CLASSES) + 1 : VOID]) + len(VOC_CLASSES) + 1
    if len(foreign):
        reason = (
            f"holds class index {_listed(foreign)}, but there are 0 (background), 1 to {len(VOC_CLASSES)} and "
            f"{VOID} (void) only; correct these pixels"
        )
        return [Problem(class_file, reason)]
    problems = []
    classes = object_classes(joint)
    for index in (int(row) for row in np.flatnonzero(joint.any(axis=1)) if 0 < row < VOID):
        pixels = int(joint[index].sum())
        if index not in classes:
            reason = (
                f"object {index} ({pixels} pixels) has no class: SegmentationClass is background or void all over it; "
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
    """Classes that are drawn although no object of the photo has them: their objects would be lost."""
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
    """Classes of which a noticeable part lies outside every object."""
    warnings = []
    for index in range(1, len(VOC_CLASSES) + 1):
        total, outside = int(joint[:, index].sum()), int(joint[0, index] + joint[VOID, index])
        if total and outside / total > MAX_FOREIGN_SHARE:
            reason = f"{outside} of {total} pixels of {_class_name(index)} belong to no object; no instance shows them"
            warnings.append(Problem(class_file, reason))
    return warnings


def _class_name(index: int) -> str:
    return "background" if index == 0 else VOC_CLASSES[index - 1]


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(int(value)) for value in values)


def instances_from_mask(object_mask: np.ndarray, classes: dict[int, int]) -> list[VocInstance]:
    """The instances of a photo, by ascending object index.

    All masks are run-length encoded in one pass over the image, whatever their number.

    Args:
        object_mask: (H, W) uint8; 0 is background, 255 void.
        classes: class index (1 to 20) by object index; objects that are not in it are not returned.
    """
    height, width = object_mask.shape
    flat = object_mask.ravel(order="F")  # COCO's runs go down the columns
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    indices = sorted(classes)
    plain = []
    for index in indices:
        own = values == index
        edges = np.stack((starts[own], ends[own]), axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size)
        plain.append({"size": [height, width], "counts": counts[:-1] if counts[-1] == 0 else counts})
    if not plain:
        return []
    encoded = mask_utils.frPyObjects(plain, height, width)
    return [
        VocInstance(
            object_index=index,
            class_index=classes[index],
            box=(int(box[0]), int(box[1]), int(box[2]), int(box[3])),
            area=int(area),
            height=height,
            width=width,
            counts=rle["counts"].decode("ascii"),
        )
        for index, rle, box, area in zip(
            indices, encoded, mask_utils.toBbox(encoded), mask_utils.area(encoded), strict=True
        )
    ]


def match_objects(
    instances: Sequence[VocInstance], annotation: VocAnnotation, image_id: str
) -> tuple[list[VocInstance], list[Problem]]:
    """Give each instance the flags of its XML object: same class, highest IoU first, at least `BOX_MATCH_IOU`.

    Returns:
        The instances, and a warning for each instance or object that stays alone.

    Raises:
        ProblemError: masks and XML give one object two classes (`BOX_CONFLICT_IOU`).
    """
    file = f"Annotations/{image_id}.xml"
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
            f"{_class_name(instances[row].class_index)} there (object index {instances[row].object_index}); "
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
    instances: Sequence[VocInstance],
    objects: Sequence[VocObject],
    lone_rows: list[int],
    lone_columns: list[int],
    file: str,
) -> list[Problem]:
    warnings = []
    for row in lone_rows:
        instance = instances[row]
        reason = f"no box fits the mask of object index {instance.object_index} ({_class_name(instance.class_index)})"
        warnings.append(Problem(file, f"{reason}; the instance is kept, without the flags difficult and truncated"))
    for column in lone_columns:
        reason = f"object {column + 1} ({_class_name(objects[column].class_index)}) fits no mask; no instance shows it"
        warnings.append(Problem(file, reason))
    return warnings


def _void_tolerant_iou(mask_boxes: np.ndarray, xml_boxes: np.ndarray) -> np.ndarray:
    """IoU after each mask box has grown towards the XML box, by up to `VOID_BAND` pixels a side.

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
    """Column by row: best IoU first, each row and column once, none below ``least``; ties go to the lower index."""
    pairs: dict[int, int] = {}
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        row, column = divmod(int(flat), iou.shape[1])
        if iou[row, column] < least:
            break
        if row not in pairs and column not in pairs.values():
            pairs[row] = column
    return pairs


def _orientation_warning(photo: Photo) -> list[Problem]:
    if photo.orientation not in range(2, 9):
        return []
    reason = (
        f"carries EXIF orientation {photo.orientation}, which is not applied: VOC masks are drawn for the pixels as "
        "stored; if this photo's were drawn on the turned photo, save it turned upright and without that tag"
    )
    return [Problem(photo.file, reason)]


def _size_warning(annotation: VocAnnotation, photo: Photo, image_id: str) -> list[Problem]:
    if annotation.size is None or annotation.size == (photo.width, photo.height):
        return []
    width, height = annotation.size
    reason = (
        f"states the size {width} x {height}, but the photo is {photo.width} x {photo.height}; its boxes may not fit"
    )
    return [Problem(f"Annotations/{image_id}.xml", reason)]


def image_numbers(image_ids: Iterable[str]) -> dict[str, int]:
    """A number for each image id, for COCO's integer ids.

    VOC's own names (``2007_000032``) give their digits (2007000032), whatever other photos there are. When any
    name is of another kind, all are numbered from 1 in sorted order.
    """
    names = sorted(image_ids)
    if all(re.fullmatch(r"[0-9]{4}_[0-9]{6}", name) for name in names):
        return {name: int(name.replace("_", "")) for name in names}
    return {name: number for number, name in enumerate(names, 1)}


def coco_instances(images: Iterable[VocImage], numbers: Mapping[str, int], description: str) -> dict[str, Any]:
    """COCO's instances format (cocodataset.org, "Data format"), with run-length masks and VOC's 20 categories.

    An annotation whose XML object was found also has that object's flags ``difficult`` and ``truncated``, 0 or 1.
    """
    image_entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in images:
        number = numbers[image.image_id]
        name = Path(image.file).name
        image_entries.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
        for instance in image.instances:
            # From 1: pycocotools' evaluation takes id 0 for "not matched".
            entry = {"id": len(annotations) + 1, "image_id": number, **_coco_annotation(instance)}
            annotations.append(entry)
    return {
        "info": {"description": description},
        "licenses": [],
        "categories": [{"id": index, "name": name} for index, name in enumerate(VOC_CLASSES, 1)],
        "images": image_entries,
        "annotations": annotations,
    }


def _coco_annotation(instance: VocInstance) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "category_id": instance.class_index,
        "bbox": list(instance.box),
        "area": instance.area,
        "iscrowd": 0,
        "segmentation": {"size": [instance.height, instance.width], "counts": instance.counts},
    }
    if instance.difficult is not None and instance.truncated is not None:
        entry |= {"difficult": int(instance.difficult), "truncated": int(instance.truncated)}
    return entry
