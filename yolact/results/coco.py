"""COCO's formats (https://cocodataset.org/#format-data, #format-results), and polygons as JSON of our own.

The files are written row by row, so that the memory does not grow with the number of images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from yolact.inference.detections import Detections
from yolact.results.coco_tree import IMAGES_FILE, RESULTS_FILE, coco_tree
from yolact.results.image import ResultClasses, ResultImage

INSTANCES_FILE = "instances.json"
POLYGONS_FILE = "polygons.json"


class _Rows:
    """A JSON list that is written one row per line."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._between = ""
        file.write("[\n")

    def add(self, row: Mapping[str, Any]) -> None:
        self._file.write(self._between + json.dumps(row, allow_nan=False))
        self._between = ",\n"

    def end(self) -> None:
        self._file.write("\n]")


class CocoResults:
    """COCO results, which `pycocotools` evaluates, and the ids of the images."""

    def __init__(self, folder: Path, classes: ResultClasses) -> None:
        self._folder, self._classes = folder, classes
        self._file = (folder / RESULTS_FILE).open("w", encoding="utf-8")
        self._rows = _Rows(self._file)
        self._images: list[dict[str, object]] = []

    def add(self, image: ResultImage, found: Detections) -> None:
        """As `ResultWriter.add`."""
        self._images.append(image.entry())
        for row in found.to_coco(image.id, self._classes.category_ids):
            self._rows.add(row)

    def close(self) -> None:
        """As `ResultWriter.close`."""
        with self._file:
            self._rows.end()
        tree = coco_tree(self._images, self._classes.category_ids, self._classes.names, "images of yolact predict")
        (self._folder / IMAGES_FILE).write_text(json.dumps(tree) + "\n", encoding="utf-8")


class CocoInstances:
    """COCO instances, as of annotated images: annotation tools import them as annotations to correct.

    An object's outlines are polygons, which every such tool reads: one per part, or, if a part has holes, one that
    includes them (`yolact.masks.joined_outline`). An object without pixels is left out. Categories have the data set's
    ids, or 1, 2, ... if one of those is 0.
    """

    def __init__(self, folder: Path, classes: ResultClasses) -> None:
        if 0 in classes.category_ids:  # CVAT takes it for "no class", and refuses the whole file
            classes = replace(classes, category_ids=tuple(range(1, len(classes.names) + 1)))
        self._classes = classes
        self._file = (folder / INSTANCES_FILE).open("w", encoding="utf-8")
        self._file.write('{"annotations": ')
        self._rows = _Rows(self._file)
        self._images: list[dict[str, object]] = []
        self._count = 0

    def add(self, image: ResultImage, found: Detections) -> None:
        """As `ResultWriter.add`."""
        self._images.append(image.entry())
        rows = found.to_coco(image.id, self._classes.category_ids)
        masks = found.instance_masks
        for row, polygons, crop in zip(rows, masks.to_exact_polygons(), masks.crops, strict=True):
            if not polygons:
                continue
            self._count += 1
            self._rows.add(
                {
                    "id": self._count,
                    "image_id": image.id,
                    "category_id": row["category_id"],
                    "bbox": row["bbox"],
                    "area": int(crop.sum()),
                    "iscrowd": 0,
                    "score": row["score"],
                    "segmentation": [polygon.reshape(-1).tolist() for polygon in polygons],
                }
            )

    def close(self) -> None:
        """As `ResultWriter.close`."""
        tree = coco_tree(self._images, self._classes.category_ids, self._classes.names, "predicted by yolact")
        del tree["annotations"]
        with self._file:
            self._rows.end()
            self._file.write(f",\n{json.dumps(tree)[1:]}\n")


class Polygons:
    """A list of images with their objects: class, score, box and polygons; plain to read from any language.

    A polygon is the outer border of a connected part, in image pixels (`Detections.polygons`): holes are filled.
    """

    def __init__(self, folder: Path, classes: ResultClasses) -> None:
        self._classes = classes
        self._file = (folder / POLYGONS_FILE).open("w", encoding="utf-8")
        self._rows = _Rows(self._file)

    def add(self, image: ResultImage, found: Detections) -> None:
        """As `ResultWriter.add`."""
        columns = (found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), found.polygons())
        objects = [
            {
                "class": self._classes.names[label],
                "score": score,
                "box": box,
                "polygons": [part.tolist() for part in parts],
            }
            for label, score, box, parts in zip(*columns, strict=True)
        ]
        self._rows.add({**image.entry(), "objects": objects})

    def close(self) -> None:
        """As `ResultWriter.close`."""
        with self._file:
            self._rows.end()
