"""Read processed data: COCO instances JSON and its images, as preprocess writes them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np
from pycocotools import mask as coco_mask

from yolact.errors import DataError
from yolact.images import DecodingError, decode_image
from yolact.masks import Rle

T = TypeVar("T")


@dataclass(frozen=True)
class CocoImage:
    """One image of the data set."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class CocoObject:
    """One annotated object."""

    label: int
    """0 to C - 1."""
    box: tuple[float, float, float, float]
    """xyxy, pixels."""
    crowd: bool
    segmentation: Any
    """Compressed or uncompressed RLE, or polygons, as in the file."""


class Packed(Sequence[T]):
    """A read-only list whose items are pickled in one block of memory.

    Forked loader processes share the block. They would not share Python objects for long: reading one writes its
    reference count, and the system then copies the page of memory.
    """

    def __init__(self, items: Iterable[T]) -> None:
        pickled = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([len(item) for item in pickled], dtype=np.int64)
        self._bytes = b"".join(pickled)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # an IndexError for one that is out of range
        start = int(self._ends[number - 1]) if number else 0
        item: T = pickle.loads(memoryview(self._bytes)[start : int(self._ends[number])])
        return item


class PackedObjects(Mapping[int, list[CocoObject]]):
    """The objects of each image by its id, see `Packed`."""

    def __init__(self, objects: Mapping[int, list[CocoObject]]) -> None:
        ids = sorted(objects)
        self._ids = np.array(ids, dtype=np.int64)
        # Tuples: an object's class and the names of its fields would be pickled with every image.
        self._objects = Packed(
            [(item.label, item.box, item.crowd, item.segmentation) for item in objects[number]] for number in ids
        )

    def __getitem__(self, image_id: int) -> list[CocoObject]:
        place = int(np.searchsorted(self._ids, image_id))
        if place == len(self._ids) or self._ids[place] != image_id:
            raise KeyError(image_id)
        return [CocoObject(*fields) for fields in self._objects[place]]

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids.tolist())

    def __len__(self) -> int:
        return len(self._ids)


@dataclass(frozen=True)
class CocoInstances:
    """A data set: images, their objects and the classes. Label k is the class ``category_ids[k]``."""

    images: Sequence[CocoImage]
    objects: Mapping[int, list[CocoObject]]
    """By image id; every image has an entry."""
    category_ids: list[int]
    class_names: list[str]
    images_dir: Path

    @classmethod
    def load(cls, json_path: Path, images_dir: Path) -> CocoInstances:
        """Read an instances file.

        Raises:
            DataError: the file is missing, is not COCO instances JSON, names an unknown image or category, or has a
                segmentation that does not fit its image.
        """
        try:
            tree = json.loads(json_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{json_path}: no such file. Run the preprocess step first: dvc repro preprocess") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{json_path}: not JSON: {error}") from error
        try:
            return cls._from_tree(tree, images_dir)
        except KeyError as error:
            raise DataError(f"{json_path}: not COCO instances JSON: an entry has no {error}") from error
        except (TypeError, ValueError) as error:
            raise DataError(f"{json_path}: not COCO instances JSON: {error}") from error

    @classmethod
    def _from_tree(cls, tree: Any, images_dir: Path) -> CocoInstances:
        for key in ("categories", "images", "annotations"):
            if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
                raise ValueError(f"no list `{key}`")
        categories = sorted(tree["categories"], key=lambda category: category["id"])
        label_of = {category["id"]: label for label, category in enumerate(categories)}
        images = [CocoImage(row["id"], row["file_name"], row["width"], row["height"]) for row in tree["images"]]
        objects: dict[int, list[CocoObject]] = {image.id: [] for image in images}
        image_of = {image.id: image for image in images}
        for row in tree["annotations"]:
            _check_annotation(row, image_of, label_of)
            x, y, width, height = row["bbox"]
            objects[row["image_id"]].append(
                CocoObject(
                    label=label_of[row["category_id"]],
                    box=(x, y, x + width, y + height),
                    crowd=bool(row.get("iscrowd", 0)),
                    segmentation=row["segmentation"],
                )
            )
        return cls(
            Packed(images),
            PackedObjects(objects),
            [c["id"] for c in categories],
            [c["name"] for c in categories],
            images_dir,
        )

    def read_image(self, image: CocoImage) -> np.ndarray:
        """Decode an image to (H, W, 3) uint8 RGB.

        Raises:
            DataError: the image is missing, cannot be decoded, or differs in size from the annotations.
        """
        path = self.images_dir / image.file_name
        try:
            pixels = decode_image(path, upright=False)  # the annotations are in the frame of the stored pixels
        except FileNotFoundError:
            raise DataError(f"{path}: no such image. Run the preprocess step again: dvc repro -f preprocess") from None
        except DecodingError as error:
            raise DataError(f"{path}: cannot be decoded: {error}") from error
        if pixels.shape[:2] != (image.height, image.width):
            raise DataError(
                f"{path}: is {pixels.shape[1]}x{pixels.shape[0]} pixels, "
                f"the annotations say {image.width}x{image.height}"
            )
        return pixels


def _check_annotation(row: dict[str, Any], image_of: dict[int, CocoImage], label_of: dict[int, int]) -> None:
    """Raise a ValueError for annotations that pycocotools, which does not validate RLE, would misread."""
    name = f"annotation {row.get('id')}"
    if row["image_id"] not in image_of:
        raise ValueError(f"{name} has image_id {row['image_id']}, which is not in images")
    if row["category_id"] not in label_of:
        raise ValueError(f"{name} has category_id {row['category_id']}, which is not in categories")
    image, segmentation = image_of[row["image_id"]], row["segmentation"]
    if isinstance(segmentation, list):
        if not segmentation or any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
            raise ValueError(f"{name} has a segmentation without polygons, or a polygon of fewer than 3 points")
        return
    height, width = segmentation["size"]
    if (height, width) != (image.height, image.width):
        raise ValueError(f"{name} has a mask of {width}x{height} pixels, its image has {image.width}x{image.height}")
    counts = segmentation["counts"]
    if isinstance(counts, list) and sum(counts) != height * width:
        raise ValueError(f"{name} has runs of {sum(counts)} pixels, its image has {height * width}")


def run_lengths(item: CocoObject, height: int, width: int) -> Rle:
    """An object's mask as compressed RLE, from any form of segmentation."""
    segmentation = item.segmentation
    if isinstance(segmentation, list):  # polygons
        return cast(Rle, coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):  # uncompressed RLE
        return cast(Rle, coco_mask.frPyObjects(segmentation, height, width))
    return cast(Rle, segmentation)


def decode_masks(objects: list[CocoObject], height: int, width: int) -> np.ndarray:
    """Masks (N, height, width) uint8, 0 or 1, of RLE or polygon segmentations.

    Raises:
        DataError: a compressed RLE is damaged.
    """
    if not objects:
        return np.zeros((0, height, width), dtype=np.uint8)
    try:
        masks = coco_mask.decode([run_lengths(item, height, width) for item in objects])  # (H, W, N)
    except ValueError as error:
        raise DataError(f"the segmentation of an object cannot be decoded: {error}") from error
    return np.ascontiguousarray(masks.transpose(2, 0, 1))
