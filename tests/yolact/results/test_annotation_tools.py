"""`instances.json` in the annotation tools' own readers: datumaro, of which CVAT uses a fork, and Label Studio's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from tests.interop.packages import needed
from tests.yolact.results.test_formats import CLASSES, HEIGHT, WIDTH, detections, masks
from yolact.inference.detections import Detections
from yolact.results.coco import INSTANCES_FILE, CocoInstances
from yolact.results.image import ResultClasses, ResultImage

pytestmark = pytest.mark.interop

LABELS = (0, 2, 1, 0)
IMAGES = {"sub/a.png": 4, "b.png": 0}
"""File names, and numbers of objects."""


@pytest.fixture(params=[CLASSES.category_ids, (0, 1, 2)], ids=["ids from 1", "ids from 0"])
def found(request: pytest.FixtureRequest, tmp_path: Path) -> Detections:
    """What is in ``instances.json``: objects with a hole and of several parts, and an image without objects."""
    pixels = torch.zeros((3, HEIGHT, WIDTH), dtype=torch.uint8)
    every = detections(masks(), LABELS)
    writer = CocoInstances(tmp_path, ResultClasses(CLASSES.names, request.param))
    for number, (name, count) in enumerate(IMAGES.items(), 1):
        writer.add(ResultImage(number, Path(name).stem, name, pixels), every[:count])
    writer.close()
    return every


def assert_same(objects: Iterable[tuple[str, Sequence[Sequence[float]]]], found: Detections) -> None:
    """Classes, and the masks that pycocotools makes of the polygons."""
    names, polygons = zip(*objects, strict=True)
    assert list(names) == [CLASSES.names[label] for label in found.labels]
    for each, mask in zip(polygons, found.masks.numpy(), strict=True):
        filled = coco_mask.merge(coco_mask.frPyObjects([list(part) for part in each], HEIGHT, WIDTH))
        np.testing.assert_array_equal(coco_mask.decode(filled), mask)


def test_datumaro_reads_classes_scores_and_masks(found: Detections, tmp_path: Path) -> None:
    kinds = needed("datumaro.components.annotation").AnnotationType
    for folder in ("annotations", "images/sub"):  # as in CVAT's archives; CVAT takes the file alone, too
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / INSTANCES_FILE).rename(tmp_path / "annotations" / "instances_default.json")
    for name in IMAGES:
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / name)

    dataset = needed("datumaro").Dataset.import_from(str(tmp_path), "coco_instances")
    labels = dataset.categories()[kinds.label]
    items = {item.id: item for item in dataset}
    assert items.keys() == {"sub/a", "b"}
    assert all(item.media.size == (HEIGHT, WIDTH) for item in items.values())
    assert items["b"].annotations == []
    parts = defaultdict(list)
    for each in items["sub/a"].annotations:
        if each.type == kinds.polygon:
            parts[each.group].append(each)  # the polygons of an object are a group in CVAT
    objects = [parts[number] for number in sorted(parts)]
    assert_same([(labels[one[0].label].name, [each.points for each in one]) for one in objects], found)
    assert [one[0].attributes["score"] for one in objects] == pytest.approx(found.scores.tolist())


def test_label_studios_converter_makes_valid_tasks_with_classes_and_masks(found: Detections, tmp_path: Path) -> None:
    interface = needed("label_studio_sdk.label_interface").LabelInterface
    program = Path(sys.executable).with_name("label-studio-converter")
    options = ("-i", INSTANCES_FILE, "-o", "tasks.json", "--out-type", "predictions", "--image-root-url", "/images")
    subprocess.run([program, "import", "coco", *options], cwd=tmp_path, check=True)

    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["/images/sub/a.png", "/images/b.png"]
    config = interface((tmp_path / "tasks.label_config.xml").read_text())
    for task in tasks:
        [prediction] = task["predictions"]
        assert config.validate_prediction(prediction, return_errors=True) == []
    assert tasks[1]["predictions"][0]["result"] == []
    objects: list[tuple[str, list[list[float]]]] = []
    for region in tasks[0]["predictions"][0]["result"]:  # each object is a rectangle, followed by its polygons
        value = region["value"]
        if region["type"] == "rectanglelabels":
            objects.append((value["rectanglelabels"][0], []))
        else:
            assert value["polygonlabels"] == [objects[-1][0]]
            percent = np.array(value["points"])
            objects[-1][1].append((percent / 100 * [WIDTH, HEIGHT]).reshape(-1).tolist())
    assert_same(objects, found)
