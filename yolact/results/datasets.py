"""Results in the folders of data sets, to train on after correction: PASCAL VOC and YOLO segmentation."""

from __future__ import annotations

import json
from pathlib import Path

from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact.inference.detections import Detections
from yolact.results.image import ResultClasses, ResultImage


class Voc:
    """Folder ``voc`` in the devkit's format (`Detections.to_voc`): class and object masks with VOC's palette, XML.

    With the images in ``voc/JPEGImages``, by the names of the results, it is a data set.
    """

    def __init__(self, folder: Path, classes: ResultClasses) -> None:
        self._folder = folder / "voc"
        self._folder.mkdir()
        lines = "".join(f"{name}\n" for name in ("_background_", *classes.names))
        (self._folder / "class_names.txt").write_text(lines, encoding="utf-8")

    def add(self, image: ResultImage, found: Detections) -> None:
        """As `ResultWriter.add`."""
        suffix = Path(image.file_name).suffix
        found.to_voc(image.name + (suffix if suffix.lower() in IMAGE_SUFFIXES else ".jpg")).save(self._folder)

    def close(self) -> None:
        """As `ResultWriter.close`."""


class Yolo:
    """Folder ``yolo``: ``labels/NAME.txt`` and ``data.yaml``. A line is a class (from 0) and one outline of the object
    with all its parts and holes (`yolact.masks.joined_outline`), as fractions of the image's width and height.

    With the images in ``yolo/images``, by the names of the results, it is a data set. An object without pixels has no
    line.
    """

    def __init__(self, folder: Path, classes: ResultClasses) -> None:
        self._labels = folder / "yolo" / "labels"
        self._labels.mkdir(parents=True)
        names = "".join(f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(classes.names))
        (self._labels.parent / "data.yaml").write_text(f"train: images\nval: images\nnames:\n{names}", encoding="utf-8")

    def add(self, image: ResultImage, found: Detections) -> None:
        """As `ResultWriter.add`."""
        height, width = image.size
        lines = []
        for label, outline in zip(found.labels.tolist(), found.instance_masks.to_joined_outlines(), strict=True):
            if len(outline):
                numbers = (outline.astype(float) / (width, height)).reshape(-1)
                lines.append(" ".join([str(label), *(f"{number:.8g}" for number in numbers)]))
        text = "".join(f"{line}\n" for line in lines)
        (self._labels / f"{image.name}.txt").write_text(text, encoding="utf-8")

    def close(self) -> None:
        """As `ResultWriter.close`."""
