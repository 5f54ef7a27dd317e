"""Write the sample as files of the VOC2012 development kit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from yolact.class_names import VOC_CLASSES
from yolact.errors import DataError
from yolact.files import replaced_directory
from yolact.formats.mask_files import VOID
from yolact.formats.sample.scenes import DrawnImage, draw_image, void_border
from yolact.palette import voc_palette
from yolact.settings import SampleConfig

Split = Literal["train", "val"]

_SPLIT_STREAM: dict[Split, int] = {"train": 0, "val": 1}
_FIRST_NUMBER: dict[Split, int] = {"train": 1, "val": 500_001}
_MOST_IMAGES = 499_999
"""Maximum images per split; the six digits of an id cover both splits."""

_JPEG_QUALITY = 90


def generate_sample(root: Path, config: SampleConfig) -> None:
    """Write the sample to ``root/VOCdevkit/VOC2012``, in the format of the VOC2012 development kit.

    Images are RGB JPEG files. SegmentationObject has indices 1..N in the order of the objects in the XML
    file, SegmentationClass the class indices; both are palette PNG files with the VOC colour map. Pixels whose
    3x3 neighbourhood contains more than one object (or object and background) are void (255), a border of two
    pixels. Boxes in the XML files are the tight boxes of the visible pixels before that border is drawn, in
    1-based inclusive pixel coordinates.

    An image depends only on (``config.seed``, split, number), the sizes and ``max_objects``, so larger splits start
    with the same images. The bytes are the same on every run with the same numpy and Pillow.

    Raises:
        DataError: more images are requested than there are ids.
    """
    for split, count in (("train", config.train_images), ("val", config.val_images)):
        if count > _MOST_IMAGES:
            raise DataError(f"data.sample.{split}_images: {count} images; at most {_MOST_IMAGES} have an id")
    with replaced_directory(Path(root) / "VOCdevkit" / "VOC2012") as folder:
        for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
            (folder / name).mkdir()
        ids: dict[Split, list[str]] = {"train": [], "val": []}
        _write_split(folder, config, "train", config.train_images, ids["train"])
        _write_split(folder, config, "val", config.val_images, ids["val"])
        for task in ("Segmentation", "Main"):
            lists = folder / "ImageSets" / task
            lists.mkdir(parents=True)
            _write_lines(lists / "train.txt", ids["train"])
            _write_lines(lists / "val.txt", ids["val"])
            _write_lines(lists / "trainval.txt", sorted(ids["train"] + ids["val"]))


def _write_split(folder: Path, config: SampleConfig, split: Split, count: int, ids: list[str]) -> None:
    for number in range(count):
        image_id = f"2012_{_FIRST_NUMBER[split] + number:06d}"
        rng = np.random.default_rng((config.seed, _SPLIT_STREAM[split], number))
        _write_image(folder, image_id, draw_image(rng, config))
        ids.append(image_id)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("ascii"))


def _write_image(folder: Path, image_id: str, image: DrawnImage) -> None:
    border = void_border(image.instances)
    class_of = np.array([0] + [VOC_CLASSES.index(found.name) + 1 for found in image.objects], dtype=np.uint8)
    classes = class_of[image.instances]
    Image.fromarray(image.pixels).save(folder / "JPEGImages" / f"{image_id}.jpg", quality=_JPEG_QUALITY)
    _write_indices(folder / "SegmentationClass" / f"{image_id}.png", np.where(border, VOID, classes))
    _write_indices(folder / "SegmentationObject" / f"{image_id}.png", np.where(border, VOID, image.instances))
    xml = _annotation(image_id, image)
    (folder / "Annotations" / f"{image_id}.xml").write_bytes(xml.encode("utf-8"))


def _write_indices(path: Path, indices: np.ndarray) -> None:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(voc_palette().tobytes())  # makes the L image a P image with the same indices
    image.save(path)


def _annotation(image_id: str, image: DrawnImage) -> str:
    """The XML file as the VOC devkit writes it (tabs, this order of elements)."""
    height, width = image.instances.shape
    lines = [
        "<annotation>",
        "\t<folder>VOC2012</folder>",
        f"\t<filename>{image_id}.jpg</filename>",
        "\t<source>",
        "\t\t<database>Generated sample</database>",
        "\t\t<annotation>yolact.formats.sample</annotation>",
        "\t\t<image>drawn</image>",
        "\t</source>",
        "\t<size>",
        f"\t\t<width>{width}</width>",
        f"\t\t<height>{height}</height>",
        "\t\t<depth>3</depth>",
        "\t</size>",
        "\t<segmented>1</segmented>",
    ]
    for found in image.objects:
        xmin, ymin, xmax, ymax = found.box
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(found.name)}</name>",
            f"\t\t<pose>{found.pose}</pose>",
            f"\t\t<truncated>{int(found.truncated)}</truncated>",
            f"\t\t<difficult>{int(found.difficult)}</difficult>",
            "\t\t<bndbox>",
            f"\t\t\t<xmin>{xmin}</xmin>",
            f"\t\t\t<ymin>{ymin}</ymin>",
            f"\t\t\t<xmax>{xmax}</xmax>",
            f"\t\t\t<ymax>{ymax}</ymax>",
            "\t\t</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])
