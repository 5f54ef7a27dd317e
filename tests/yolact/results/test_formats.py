"""Results in every format, read back by other programs' rules and by the formats that the project ingests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from yolact.errors import SettingsError
from yolact.formats.registry import read_dataset
from yolact.inference.detections import Detections
from yolact.results.image import ResultClasses, ResultImage
from yolact.results.registry import WRITERS, find_writers

CLASSES = ResultClasses(("cat", "no", "traffic light"), (1, 17, 90))
HEIGHT, WIDTH = 37, 53


def masks() -> np.ndarray:
    """(4, H, W) bool, disjoint: a ring, two parts, a staircase, and a single pixel."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    ring = np.hypot(rows - 12, columns - 13)
    parts = np.zeros((HEIGHT, WIDTH), dtype=bool)
    parts[2:9, 30:36] = parts[11:20, 40:53] = True
    stairs = (rows >= 22) & (rows + columns // 3 < 34)
    dot = np.zeros_like(parts)
    dot[36, 52] = True
    return np.stack([(ring < 9) & (ring > 3), parts, stairs, dot])


def detections(masks: np.ndarray, labels: Iterable[int]) -> Detections:
    boxes = []
    for mask in masks:
        rows, columns = mask.nonzero()
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    count = len(masks)
    return Detections.from_masks(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.linspace(0.9, 0.4, count),
        torch.tensor(list(labels), dtype=torch.int64),
        torch.from_numpy(masks),
        class_names=CLASSES.names,
    )


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8))


def write(format: str, folder: Path, pixels: torch.Tensor, labels: tuple[int, ...] = (0, 2, 1, 0)) -> Detections:
    """Write two images, the second without objects; returns the detections of the first."""
    found = detections(masks(), labels)
    writer = WRITERS[format](folder, CLASSES)
    writer.add(ResultImage(1, "a", "sub/a.png", pixels), found)
    writer.add(ResultImage(2, "b", "b.png", pixels), found[:0])
    writer.close()
    return found


def save_images(pixels: torch.Tensor, *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def ingested(folder: Path, image_id: str) -> list[tuple[str, bytes]]:
    """Class and mask of each object of an image, as the project's own ingest reads them."""
    dataset = read_dataset(folder)
    names = list(dataset.classes.values())
    sources = {source.image_id: source for images in dataset.splits.values() for source in images}
    image = sources[image_id].read()
    assert image.dropped == ()
    decoded = [(names[item.class_index - 1], coco_mask.decode(item.rle()).astype(bool)) for item in image.instances]
    return sorted((name, mask.tobytes()) for name, mask in decoded)


def expected(found: Detections) -> list[tuple[str, bytes]]:
    pairs = zip(found.labels.tolist(), found.masks.numpy(), strict=True)
    return sorted((CLASSES.names[label], mask.tobytes()) for label, mask in pairs)


def test_pycocotools_loads_the_results_with_the_masks_and_the_models_category_ids(
    tmp_path: Path, pixels: torch.Tensor
) -> None:
    found = write("coco", tmp_path, pixels)
    truth = COCO(str(tmp_path / "images.json"))
    loaded = truth.loadRes(str(tmp_path / "detections.json"))
    rows = loaded.loadAnns(loaded.getAnnIds(imgIds=[1]))
    assert [row["category_id"] for row in rows] == [1, 90, 17, 1]
    assert [row["score"] for row in rows] == pytest.approx([0.9, 0.7333, 0.5667, 0.4], abs=1e-4)
    assert np.array_equal(np.stack([loaded.annToMask(row) for row in rows]), masks())
    assert loaded.getAnnIds(imgIds=[2]) == []
    assert {item["id"]: item["name"] for item in truth.dataset["categories"]} == dict(
        zip(CLASSES.category_ids, CLASSES.names, strict=True)
    )
    assert len(found) == 4


def test_the_polygons_of_coco_instances_are_exactly_the_masks_for_pycocotools(
    tmp_path: Path, pixels: torch.Tensor
) -> None:
    write("instances", tmp_path, pixels)
    loaded = COCO(str(tmp_path / "instances.json"))
    rows = loaded.loadAnns(loaded.getAnnIds(imgIds=[1]))
    assert np.array_equal(np.stack([loaded.annToMask(row) for row in rows]), masks())
    assert [row["area"] for row in rows] == masks().sum(axis=(1, 2)).tolist()
    assert all(isinstance(row["segmentation"], list) and row["iscrowd"] == 0 for row in rows)
    assert [len(row["segmentation"]) for row in rows] == [1, 2, 1, 1]
    assert [image["file_name"] for image in loaded.dataset["images"]] == ["sub/a.png", "b.png"]


def test_coco_instances_have_no_category_0_which_cvat_takes_for_no_class(tmp_path: Path, pixels: torch.Tensor) -> None:
    writer = WRITERS["instances"](tmp_path, ResultClasses(CLASSES.names, (5, 0, 7)))
    writer.add(ResultImage(1, "a", "a.png", pixels), detections(masks(), (0, 2, 1, 0)))
    writer.close()
    tree = json.loads((tmp_path / "instances.json").read_text())
    names = {row["id"]: row["name"] for row in tree["categories"]}
    assert 0 not in names
    assert [names[row["category_id"]] for row in tree["annotations"]] == ["cat", "traffic light", "no", "cat"]


def test_ingest_reads_coco_instances_back(tmp_path: Path, pixels: torch.Tensor) -> None:
    found = write("instances", tmp_path, pixels)
    save_images(pixels, tmp_path / "sub" / "a.png", tmp_path / "b.png")
    assert ingested(tmp_path, "sub/a.png") == expected(found)


def test_ingest_reads_yolo_labels_back(tmp_path: Path, pixels: torch.Tensor) -> None:
    found = write("yolo", tmp_path, pixels)
    save_images(pixels, tmp_path / "yolo" / "images" / "a.png", tmp_path / "yolo" / "images" / "b.png")
    assert ingested(tmp_path / "yolo", "images/a.png") == expected(found)
    assert ingested(tmp_path / "yolo", "images/b.png") == []
    assert (tmp_path / "yolo" / "labels" / "b.txt").read_text() == ""


def test_ingest_reads_voc_masks_back(tmp_path: Path, pixels: torch.Tensor) -> None:
    found = write("voc", tmp_path, pixels)
    save_images(pixels, tmp_path / "voc" / "JPEGImages" / "a.jpg")
    assert ingested(tmp_path / "voc", "a") == expected(found)
    with Image.open(tmp_path / "voc" / "SegmentationClass" / "a.png") as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[3:6] == [128, 0, 0]  # VOC's colour of index 1


def test_polygons_have_class_score_box_and_the_outer_borders(tmp_path: Path, pixels: torch.Tensor) -> None:
    write("polygons", tmp_path, pixels)
    first, second = json.loads((tmp_path / "polygons.json").read_text())
    assert (first["file_name"], first["width"], first["height"]) == ("sub/a.png", WIDTH, HEIGHT)
    ring, parts, _, dot = first["objects"]
    assert (ring["class"], len(ring["polygons"]), parts["class"], len(parts["polygons"])) == (
        "cat",
        1,
        "traffic light",
        2,
    )
    assert parts["box"] == [30, 2, 53, 20]
    assert dot["polygons"] == [[[52, 36], [53, 36], [53, 37], [52, 37]]]
    assert second["objects"] == []


def test_a_cut_out_has_the_objects_pixels_and_is_transparent_elsewhere(tmp_path: Path, pixels: torch.Tensor) -> None:
    write("cutouts", tmp_path, pixels)
    assert sorted(path.name for path in (tmp_path / "cutouts").iterdir()) == [f"a_{k}.png" for k in (1, 2, 3, 4)]
    for number, mask in enumerate(masks(), 1):
        rows, columns = mask.nonzero()
        window = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        with Image.open(tmp_path / "cutouts" / f"a_{number}.png") as image:
            assert image.mode == "RGBA"
            cut = np.asarray(image)
        assert np.array_equal(cut[..., 3], mask[window] * np.uint8(255))
        assert np.array_equal(cut[mask[window]][:, :3], pixels.permute(1, 2, 0).numpy()[mask])
        assert not cut[~mask[window]].any()


def test_a_picture_shows_the_objects(tmp_path: Path, pixels: torch.Tensor) -> None:
    write("pictures", tmp_path, pixels)
    with Image.open(tmp_path / "pictures" / "a.jpg") as first, Image.open(tmp_path / "pictures" / "b.jpg") as second:
        assert first.size == second.size == (640, 447)  # enlarged, so that labels are legible
        difference = np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int))
    assert difference.mean() > 10


@pytest.mark.parametrize("format", WRITERS)
def test_no_images_give_complete_files(tmp_path: Path, format: str) -> None:
    WRITERS[format](tmp_path, CLASSES).close()
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text())


def test_an_unknown_format_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(SettingsError, match=r"no format 'picture'; did you mean 'pictures'\? There are pictures, coco"):
        find_writers(["coco", "picture"])
    with pytest.raises(SettingsError, match="at least one"):
        find_writers([])
