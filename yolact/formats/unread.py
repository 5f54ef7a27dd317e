"""Data that is recognized but not read: what it looks like, and how to get a data set in a known format from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolact.formats.image_files import IMAGE_SUFFIXES

HEAD = 1 << 16
"""Bytes of a file that are searched for what is characteristic."""

LOOKED_AT = 100
"""Number of a folder's files that are looked at."""

COCO = "export the data set as COCO instances JSON"

CONVERT = "convert it to COCO instances JSON"

BOXES = "these are boxes, but YOLACT learns outlines: export the data set for instance segmentation, as COCO"

LABEL_STUDIO = "choose COCO (or YOLO, for polygons) under Export in the project, with images"


@dataclass(frozen=True)
class Unread:
    """A kind of file that is not read."""

    name: str
    suffixes: tuple[str, ...]
    words: tuple[str, ...]
    """Which its beginning has, all of them."""
    advice: str
    """How to go on."""


UNREAD = (
    Unread("a pointer of Git LFS", (".json", ".xml", ".csv", ".yaml"), ("git-lfs.github.com",), "run `git lfs pull`"),
    Unread("Labelbox NDJSON", (".ndjson", ".jsonl", ".json"), ('"data_row"',), CONVERT),
    Unread("Labelbox JSON", (".json",), ('"Labeled Data"', '"Label"'), CONVERT),
    Unread("V7 Darwin JSON", (".json",), ('"item"', '"slots"', '"annotations"'), COCO),
    Unread("SuperAnnotate JSON", (".json",), ('"instances"', '"className"'), COCO),
    Unread("Segments.ai's release JSON", (".json",), ('"dataset"', '"task_type"', '"samples"'), COCO),
    Unread("Hasty JSON", (".json",), ('"label_classes"', '"class_name"'), COCO),
    Unread("Kili JSON", (".json",), ('"jsonResponse"',), COCO),
    Unread("Encord JSON", (".json",), ('"label_hash"', '"data_units"'), COCO),
    Unread("Scale AI's JSON", (".json",), ('"task_id"', '"response"'), CONVERT),
    Unread("BDD100K JSON", (".json",), ('"poly2d"',), "convert it by its toolkit: bdd100k.label.to_coco -m ins_seg"),
    Unread("ISAT's own JSON", (".json",), ('"ISAT"', '"objects"', '"category"'), "choose COCO in ISAT's converter"),
    Unread("Cityscapes polygons", (".json",), ('"imgHeight"', '"objects"', '"polygon"'), CONVERT),
    Unread("SA-1B JSON of Segment Anything", (".json",), ('"image"', '"segmentation"', '"counts"'), CONVERT),
    Unread("COCO captions", (".json",), ('"caption"', '"annotations"'), "use the instances JSON of the same data set"),
    Unread(
        "COCO results, without images and categories",
        (".json",),
        ('"image_id"', '"category_id"', '"segmentation"'),
        "use the file that has the lists images, annotations and categories",
    ),
    Unread("a manifest of SageMaker Ground Truth", (".manifest",), ('"source-ref"',), CONVERT),
    Unread("Label Studio's own JSON", (".json",), ('"from_name"', '"to_name"'), LABEL_STUDIO),
    Unread("Label Studio's JSON-MIN", (".json",), ('"polygonlabels"', '"original_width"'), LABEL_STUDIO),
    Unread("Label Studio's JSON-MIN", (".json",), ('"brushlabels"', '"original_width"'), LABEL_STUDIO),
    Unread("COCO panoptic JSON", (".json",), ('"segments_info"',), "use the instances JSON of the same data set"),
    Unread(
        "Datumaro JSON",
        (".json",),
        ('"items"', '"categories"'),
        "run `datum convert -if datumaro -i FOLDER -f coco_instances -o NEW_FOLDER -- --save-media`",
    ),
    Unread(
        "a project of the VGG Image Annotator 3",
        (".json",),
        ('"project"', '"config"', '"attribute"', '"metadata"'),
        "convert it to COCO instances JSON; projects of version 2 are read",
    ),
    Unread("CreateML JSON", (".json",), ('"coordinates"', '"label"', '"annotations"'), BOXES),
    Unread(
        "the VGG Image Annotator's CSV",
        (".csv",),
        ("region_shape_attributes",),
        "save the project, or choose Annotation, Export Annotations (as json)",
    ),
    Unread("a CSV of boxes", (".csv",), ("xmin", "ymin", "xmax", "ymax"), BOXES),
    Unread(
        "LabelMe 3.0 XML",
        (".xml",),
        ("<annotation>", "<polygon>", "<pt>"),
        "export COCO from the tool, or from CVAT `CVAT for images 1.1`",
    ),
    Unread("LabelMe 3.0 XML", (".xml",), ("<annotation>", "<segm>", "<mask>"), "export COCO from the tool"),
    Unread("masks of Open Images", (".csv",), ("MaskPath", "ImageID", "LabelName"), CONVERT),
    Unread("Label Studio's CSV", (".csv", ".tsv"), ("polygonlabels",), LABEL_STUDIO),
    Unread("a list of boxes of VOC", (".xml",), ("<annotation>", "<bndbox>"), BOXES),
    Unread("packed JSON", (".json.gz",), (), "unpack it with gunzip"),
    Unread("TFRecord", (".tfrecord", ".tfrecords", ".record"), (), "export the data set again, as COCO"),
    Unread("a table", (".parquet", ".arrow"), (), "write images and COCO instances JSON from it"),
    Unread(
        "a YOLO data set without label files",
        (".yaml", ".yml"),
        ("names:", "train:"),
        "add the folders `labels` with a text file of polygons for each image, beside `images`",
    ),
)
"""The first that fits a file counts."""


def looks_like(folder: Path, folders: Sequence[Path]) -> str | None:
    """What a folder looks like, and how to go on; None if nothing is recognized.

    Args:
        folder: the folder.
        folders: this one and all below it, parents first.
    """
    images: dict[Path, int] = {}
    for place in folders:
        paths = sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
        found = next((found for path in paths[:LOOKED_AT] if (found := _unread(path)) is not None), None)
        if found is not None:
            return found
        if count := sum(path.suffix.lower() in IMAGE_SUFFIXES for path in paths):
            images[place] = count
    if not images:
        return None
    count = sum(images.values())
    if len(images) > 1 and folder not in images and len({place.parent for place in images}) < len(images):
        return (
            f"There are {count} images in {len(images)} folders, but no annotations. If the folders are classes, as "
            "for classification: YOLACT learns outlines of objects, so annotate them, as in docs/data.md."
        )
    return f"There are {count} images, but no annotations: export them from the tool too, as in docs/data.md."


def _unread(path: Path) -> str | None:
    kinds = [kind for kind in UNREAD if path.name.lower().endswith(kind.suffixes)]
    if not kinds:
        return None
    with path.open("rb") as file:
        head = file.read(HEAD)
    kind = next((kind for kind in kinds if all(word.encode() in head for word in kind.words)), None)
    return None if kind is None else f"{path} looks like {kind.name}, which is not read: {kind.advice}."
