"""Instances: read from an index mask, turned and downscaled with their image, and converted to COCO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from pycocotools import mask as mask_utils

from yolact.formats.image_files import turned_mask

Box = tuple[float, float, float, float]

ROUNDING = 1e-9
"""Larger than the rounding error of summed pixel fractions, so that exactly half never counts as more than half."""


@dataclass(frozen=True)
class Instance:
    """One object of one image."""

    number: int
    """Number within the image, from 1: the index in the mask, or the position in the list."""
    class_index: int
    """Position in the data set's class names, from 1."""
    box: Box
    """xywh, pixels."""
    area: float
    """Pixels."""
    height: int
    """Size of the image, pixels."""
    width: int
    counts: str
    """COCO's compressed RLE of the mask."""
    crowd: bool = False
    """A region of objects that are not annotated individually (COCO's ``iscrowd``)."""
    difficult: bool | None = None
    """None if unknown."""
    truncated: bool | None = None

    def rle(self) -> dict[str, Any]:
        """The mask in pycocotools' form."""
        return {"size": [self.height, self.width], "counts": self.counts}


def instances_from_index_mask(object_mask: np.ndarray, classes: Mapping[int, int]) -> list[Instance]:
    """The instances of an index mask, by ascending object number.

    All masks are run-length encoded in a single pass over the image.

    Args:
        object_mask: (H, W) unsigned integers.
        classes: class index (from 1) by object number; other objects are skipped.
    """
    height, width = object_mask.shape
    flat = object_mask.ravel(order="F")  # COCO's runs are column-major
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    numbers = sorted(classes)
    plain: list[dict[str, Any]] = []
    for number in numbers:
        own = values == number
        edges = np.stack((starts[own], ends[own]), axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size)
        plain.append({"size": [height, width], "counts": counts[:-1] if counts[-1] == 0 else counts})
    if not plain:
        return []
    encoded = mask_utils.frPyObjects(plain, height, width)
    # mask_utils.area fails for more than 255 masks (with NumPy 2); the odd runs are the object's.
    areas = [int(np.sum(rle["counts"][1::2])) for rle in plain]
    return [
        Instance(
            number=number,
            class_index=classes[number],
            box=(int(box[0]), int(box[1]), int(box[2]), int(box[3])),
            area=area,
            height=height,
            width=width,
            counts=rle["counts"].decode("ascii"),
        )
        for number, rle, box, area in zip(numbers, encoded, mask_utils.toBbox(encoded), areas, strict=True)
    ]


def redrawn_instance(instance: Instance, orientation: int, size: tuple[int, int]) -> Instance | None:
    """Turn an instance by ``orientation`` (EXIF) and downscale it to ``size`` (width, height), as its image.

    A pixel belongs to the downscaled mask if more than half of its area does, so touching masks do not come to
    overlap. Box and area are those of the new mask. None if the new mask is empty.
    """
    turned = turned_mask(mask_utils.decode(instance.rle()), orientation)  # (H, W) uint8, 0 or 1
    mask = reduced_mask(turned, size)
    rle = mask_utils.encode(np.asfortranarray(mask))
    area = int(mask_utils.area(rle))
    if not area:
        return None
    box = cast(Box, tuple(int(side) for side in mask_utils.toBbox(rle)))
    counts = rle["counts"].decode("ascii")
    return replace(instance, box=box, area=area, height=size[1], width=size[0], counts=counts)


def reduced_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Downscale a mask (H, W) uint8, 0 or 1, to ``size`` (width, height); computed around the object only.

    A pixel is set if more than half of its area is.
    """
    height, width = mask.shape
    if (width, height) == size:
        return mask
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    reduced = np.zeros((size[1], size[0]), dtype=np.uint8)
    if not len(rows):
        return reduced
    top, bottom, from_y, to_y = _cells(rows, height, size[1])
    left, right, from_x, to_x = _cells(columns, width, size[0])
    part = mask[math.floor(from_y) : math.ceil(to_y), math.floor(from_x) : math.ceil(to_x)]
    edges_y = np.linspace(from_y, to_y, bottom - top + 1) - math.floor(from_y)
    edges_x = np.linspace(from_x, to_x, right - left + 1) - math.floor(from_x)
    covered = _sums_between(_sums_between(part, edges_y).T, edges_x).T  # pixels of the object in each cell
    share = covered / (height / size[1] * width / size[0])
    reduced[top:bottom, left:right] = share > 0.5 + ROUNDING
    return reduced


def _sums_between(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Sum rows between consecutive edges, which may be fractional; (N, M) and (K + 1,) to (K, M) float64."""
    totals = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=totals[1:])
    whole = np.minimum(edges.astype(np.int64), len(values) - 1)
    up_to = totals[whole] + (edges - whole)[:, None] * values[whole]
    return np.asarray(np.diff(up_to, axis=0))


def _cells(used: np.ndarray, length: int, cells: int) -> tuple[int, int, float, float]:
    """First and end cell that the used pixels touch, and the edges of these cells in pixels."""
    first = int(used[0]) * cells // length
    end = -((-int(used[-1]) - 1) * cells // length)
    return first, end, first * length / cells, min(float(length), end * length / cells)


def coco_annotation(instance: Instance, category_id: int) -> dict[str, Any]:
    """A row of COCO's ``annotations`` (cocodataset.org, "Data format") without its two ids.

    The flags ``difficult`` and ``truncated`` are added as 0 or 1 if they are known.
    """
    row: dict[str, Any] = {
        "category_id": category_id,
        "bbox": list(instance.box),
        "area": instance.area,
        "iscrowd": int(instance.crowd),
        "segmentation": {"size": [instance.height, instance.width], "counts": instance.counts},
    }
    for name, flag in (("difficult", instance.difficult), ("truncated", instance.truncated)):
        if flag is not None:
            row[name] = int(flag)
    return row
