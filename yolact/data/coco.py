"""Read processed data as preprocess writes it: COCO instances and their images, as files or in shards."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco_mask

from yolact.data.arrow_file import Facts, index_path, read_index
from yolact.data.columns import CocoImage, CocoObject, Columns, Images, Objects, Rows
from yolact.data.image_store import ImageStore, LooseImages, ShardedImages
from yolact.data.shards import FOLDER, LocalShards, ShardReader
from yolact.errors import DataError
from yolact.images import DecodingError, decode_image
from yolact.masks import Rle


@dataclass(frozen=True)
class CocoInstances:
    """A data set: images, their objects and the classes. Label k is the class ``category_ids[k]``."""

    images: Sequence[CocoImage]
    objects: Objects
    """By image id; every image has an entry."""
    category_ids: list[int]
    class_names: list[str]
    store: ImageStore
    """Where the image files are."""
    folder: Path
    """Where the annotations are."""

    @classmethod
    def load(
        cls, json_path: Path, images_dir: Path | None = None, *, shards: Callable[[Facts], ShardReader] | None = None
    ) -> CocoInstances:
        """Read an instances file, or the index next to it if its images are in shards.

        Args:
            json_path: the instances file.
            images_dir: folder of the images as files; None: where preprocess writes them, in ``images`` or ``shards``
                next to the instances file.
            shards: makes the reader of the shards, for what the index says; None: they are read from ``shards`` next
                to the instances file.

        Raises:
            DataError: the file is missing, is not COCO instances JSON, names an unknown image or category, or has a
                segmentation that does not fit its image; or see `read_index`.
        """
        index = index_path(json_path)
        if images_dir is None and index.is_file():
            return cls._from_index(index, shards or (lambda _: LocalShards(index.parent / FOLDER)))
        if shards is not None:
            raise DataError(
                f"{index}: no such file, but the images are to be read from shards on S3. Set data.shard_size and run "
                "the preprocess step, or set runtime.shards=local"
            )
        try:
            tree = json.loads(json_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{json_path}: no such file. Run the preprocess step first: dvc repro preprocess") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{json_path}: not JSON: {error}") from error
        try:
            return cls._from_tree(tree, json_path.parent, images_dir or json_path.parent / "images")
        except KeyError as error:
            raise DataError(f"{json_path}: not COCO instances JSON: an entry has no {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{json_path}: not COCO instances JSON: {error}") from error

    @classmethod
    def _from_index(cls, path: Path, shards: Callable[[Facts], ShardReader]) -> CocoInstances:
        rows = read_index(path)
        return cls.of_rows(rows, rows.facts.categories, ShardedImages(path.stem, shards(rows.facts)), path.parent)

    @classmethod
    def of_rows(
        cls, rows: Rows, categories: Sequence[tuple[int, str]], store: ImageStore, folder: Path
    ) -> CocoInstances:
        """Instances whose images and objects are in columns; ``categories`` are id and name, in ascending order."""
        ids, names = [number for number, _ in categories], [name for _, name in categories]
        return cls(Images(rows), Objects(rows), ids, names, store, folder)

    @classmethod
    def _from_tree(cls, tree: Any, folder: Path, images_dir: Path) -> CocoInstances:
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
            objects[row["image_id"]].append(CocoObject.of_row(row, label_of))
        rows = Rows([Columns.of(images, [objects[image.id] for image in images])])
        names = [(category["id"], category["name"]) for category in categories]
        return cls.of_rows(rows, names, LooseImages(images_dir), folder)

    def read_image(self, image: CocoImage) -> np.ndarray:
        """Decode an image to (H, W, 3) uint8 RGB.

        Raises:
            DataError: the image is missing, cannot be decoded, or differs in size from the annotations.
        """
        data = self.store.read(image)
        try:
            pixels = decode_image(io.BytesIO(data), upright=False)  # the annotations are in the frame of stored pixels
        except DecodingError as error:
            raise DataError(f"{self.store.location(image)}: cannot be decoded: {error}") from error
        if pixels.shape[:2] != (image.height, image.width):
            raise DataError(
                f"{self.store.location(image)}: is {pixels.shape[1]}x{pixels.shape[0]} pixels, "
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
