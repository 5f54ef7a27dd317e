"""Data that is recognized but not read is named, with the way on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.yolact.formats.drawn import save_image, write
from yolact.errors import DataError
from yolact.formats.registry import read_dataset


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("export.ndjson", '{"data_row": {"id": "x"}, "projects": {}}', "looks like Labelbox NDJSON, which is not read"),
        (
            "project.json",
            '[{"id": 1, "annotations": [{"result": [{"from_name": "l", "to_name": "i"}]}], "data": {}}]',
            "looks like Label Studio's own JSON, which is not read: choose COCO (or YOLO, for polygons) under Export",
        ),
        ("labels.json", "version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3\n", "run `git lfs pull`"),
        (
            "old.json",
            '[{"ID": "x", "Labeled Data": "https://x", "Label": {"objects": []}}]',
            "looks like Labelbox JSON",
        ),
        ("a.json", '{"item": {"name": "a.jpg", "slots": []}, "annotations": []}', "looks like V7 Darwin JSON"),
        ("a.jpg___objects.json", '{"instances": [{"type": "polygon", "className": "a"}]}', "SuperAnnotate JSON"),
        ("r.json", '{"name": "r", "dataset": {"task_type": "x", "samples": []}}', "Segments.ai's release JSON"),
        ("h.json", '{"label_classes": [{"class_name": "a"}], "images": []}', "looks like Hasty JSON"),
        ("k.json", '[{"labels": [{"jsonResponse": {}}]}]', "looks like Kili JSON"),
        ("e.json", '[{"label_hash": "a", "data_units": {}}]', "looks like Encord JSON"),
        ("s.json", '[{"task_id": "a", "response": {"annotations": []}}]', "looks like Scale AI's JSON"),
        ("b.json", '[{"name": "a.jpg", "labels": [{"poly2d": []}]}]', "bdd100k.label.to_coco"),
        ("i.json", '{"info": {"description": "ISAT"}, "objects": [{"category": "a"}]}', "COCO in ISAT's converter"),
        ("gtFine/c.json", '{"imgHeight": 2, "objects": [{"polygon": []}]}', "looks like Cityscapes polygons"),
        ("sa_1.json", '{"image": {}, "annotations": [{"segmentation": {"counts": "a"}}]}', "SA-1B JSON of Segment Any"),
        ("captions.json", '{"images": [], "annotations": [{"caption": "a"}]}', "looks like COCO captions"),
        ("r.json", '[{"image_id": 1, "category_id": 1, "segmentation": []}]', "looks like COCO results"),
        ("output.manifest", '{"source-ref": "s3://a/b.jpg"}', "a manifest of SageMaker Ground Truth"),
        ("a.xml", "<annotation><polygon><pt></pt></polygon></annotation>", "looks like LabelMe 3.0 XML"),
        ("ls.csv", 'image,label\na.jpg,"[{""polygonlabels"": [""a""]}]"', "looks like Label Studio's CSV"),
        ("a.json.gz", "", "unpack it with gunzip"),
        ("min.json", '[{"image": "a.jpg", "label": [{"polygonlabels": ["a"], "original_width": 3}]}]', "JSON-MIN"),
        ("panoptic.json", '{"images": [], "annotations": [{"segments_info": []}]}', "COCO panoptic JSON"),
        ("annotations/default.json", '{"info": {}, "categories": {}, "items": []}', "run `datum convert -if datumaro"),
        ("boxes.json", '[{"image": "a", "annotations": [{"label": "b", "coordinates": {}}]}]', "CreateML JSON"),
        ("via.csv", "filename,file_size,region_shape_attributes\n", "Export Annotations (as json)"),
        ("train/_annotations.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n", "these are boxes, but YOLACT"),
        ("a.xml", "<annotation><object><bndbox></bndbox></object></annotation>", "looks like a list of boxes of VOC"),
        ("train/cells.tfrecord", "\0\1", "looks like TFRecord"),
        ("data.yaml", "train: images\nnames: [a]\n", "looks like a YOLO data set without label files"),
    ],
)
def test_known_exports_that_are_not_read_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    save_image(tmp_path / "images/a.jpg")
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_dataset(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_images_without_annotations_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_image(tmp_path / f"images/{name}.jpg")
    with pytest.raises(DataError, match="There are 2 images, but no annotations: export them"):
        read_dataset(tmp_path)


def test_a_folder_for_each_class_is_named(tmp_path: Path) -> None:
    for name in ("cats/a", "dogs/b"):
        save_image(tmp_path / f"train/{name}.jpg")
    with pytest.raises(DataError, match=r"2 images in 2 folders, but no annotations\. If the folders are classes"):
        read_dataset(tmp_path)


def test_other_folders_are_told_to_check_the_source(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt", "nothing")
    with pytest.raises(DataError, match=r"has: notes\.txt\n(?s:.*)Check data\.source\.$"):
        read_dataset(tmp_path)
