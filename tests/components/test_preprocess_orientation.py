"""Preprocess on images that EXIF turns: which image their masks were drawn on, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from pycocotools.coco import COCO

from components.preprocess.step import run
from yolact.errors import DataError
from yolact_ops.settings.params import load_params

RED = (230, 10, 10)

WIDE, SQUARE = (60, 40), (48, 48)


Preprocess = Callable[..., dict[str, Any]]


class Source:
    """A COCO data set of drawn images: a red rectangle near a corner of each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "images").mkdir(parents=True)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, orientation: int, drawn_upright: bool, size: tuple[int, int] = WIDE, stated: bool = True) -> None:
        """Add an image of ``size`` whose outline is drawn on the upright image or on the image as stored."""
        number = len(self.images) + 1
        stored = Image.new("RGB", size, (20, 60, 200))
        draw = ImageDraw.Draw(stored)
        draw.rectangle((4 + number, 6, 17 + number, 15), RED)
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = self.root / f"images/img_{number}.jpg"
        stored.save(path, exif=exif, quality=98, subsampling=0)
        with Image.open(path) as opened:
            shown = ImageOps.exif_transpose(opened) if drawn_upright else opened.copy()
        rows, columns = np.nonzero(np.asarray(shown)[:, :, 0] > 125)
        x0, y0, x1, y1 = (int(side) for side in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        row = {"id": number, "file_name": path.name}
        self.images.append(row | ({"width": shown.width, "height": shown.height} if stated else {}))
        outline = [x0, y0, x1, y0, x1, y1, x0, y1]
        self.annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": [outline]})

    def write(self) -> None:
        tree = {"images": self.images, "annotations": self.annotations, "categories": [{"id": 1, "name": "bolt"}]}
        (self.root / "labels.json").write_text(json.dumps(tree))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "raw")


@pytest.fixture
def preprocess(source: Source, tmp_path: Path, repository: Path) -> Preprocess:
    """Run the step on the source; returns ``stats.json``."""
    base = load_params(repository / "conf" / "base.yaml")

    def call(**settings: Any) -> dict[str, Any]:
        source.write()
        data = base.data.model_copy(update={"split": base.data.split.model_copy(update={"val": 0.3}), **settings})
        folders = {"raw_dir": source.root, "processed_dir": tmp_path / "data", "report_dir": tmp_path / "report"}
        run(base.model_copy(update={"data": data}), **folders, workers=1)
        return dict(json.loads((tmp_path / "data/eval/stats.json").read_text()))

    return call


def worst_iou(processed: Path) -> float:
    """The lowest IoU, of all written images, of the masks with what is red."""
    found = []
    for file in ("train/train.json", "eval/val.json"):
        coco = COCO(processed / file)
        for row in coco.loadImgs(coco.getImgIds()):
            with Image.open((processed / file).parent / "images" / row["file_name"]) as image:
                red = np.asarray(image.convert("RGB"))[:, :, 0] > 125
            masks = [coco.annToMask(item) for item in coco.loadAnns(coco.getAnnIds(imgIds=[row["id"]]))]
            mask = np.any(masks, axis=0)
            found.append((mask & red).sum() / (mask | red).sum())
    return float(min(found))


def turned(stats: dict[str, Any]) -> dict[str, int]:
    """Number of turned images by what is said about them."""
    lead = "turned upright by EXIF orientation; masks "
    kinds = {finding["kind"]: finding["count"] for finding in stats["findings"]}
    return {kind.removeprefix(lead): count for kind, count in kinds.items() if kind.startswith(lead)}


@pytest.mark.parametrize(
    ("upright", "frame"), [(True, "taken as drawn on the upright image"), (False, "turned with it")]
)
def test_half_turned_and_square_images_are_read_as_those_whose_size_decides(
    source: Source, preprocess: Preprocess, tmp_path: Path, upright: bool, frame: str
) -> None:
    for orientation in (1, 3, 2, 4, 6, 8):
        source.add(orientation, upright)
    source.add(6, upright, SQUARE)
    stats = preprocess()
    assert worst_iou(tmp_path / "data") > 0.85
    assert turned(stats) == {
        f"are {frame}, as their size says": 2,
        f"are {frame}, as in the images whose size says so": 4,
    }
    written = json.loads((tmp_path / "data/train/train.json").read_text())["images"]
    assert [row["file_name"] for row in written] == sorted(row["file_name"] for row in written)


@pytest.mark.parametrize("upright", [True, False])
def test_a_tie_is_refused_with_both_readings_until_the_setting_decides(
    source: Source, preprocess: Preprocess, tmp_path: Path, upright: bool
) -> None:
    for orientation in (3, 1, 1, 4, 2):
        source.add(orientation, upright)
    for _ in range(3):
        source.add(6, upright, SQUARE)
    with pytest.raises(DataError) as error:
        preprocess()
    message = str(error.value)
    assert "6 images, such as images/img_1.jpg, have an EXIF orientation" in message
    assert "no other image decides" in message
    assert "data.exif=upright or data.exif=as_stored" in message
    assert not (tmp_path / "data").exists()
    page = (tmp_path / "report/index.html").read_text()
    captions = re.findall(r"<figcaption>data\.exif=(\w+): (img_\d)\.jpg", page)
    names = [name for _, name in captions[::2]]
    assert captions == [(value, name) for name in names for value in ("upright", "as_stored")]
    assert len(set(names)) == 4
    stats = preprocess(exif="upright" if upright else "as_stored")
    assert worst_iou(tmp_path / "data") > 0.85
    frame = "taken as drawn on the upright image" if upright else "turned with it"
    assert turned(stats) == {f"are {frame}, as data.exif says": 6}


def test_images_that_disagree_decide_nothing(source: Source, preprocess: Preprocess, tmp_path: Path) -> None:
    for upright in (True, True, False):
        source.add(6, upright)
    preprocess()
    assert worst_iou(tmp_path / "data") > 0.85, "each by its own size"
    source.add(3, True)
    with pytest.raises(DataError, match=r"1 image, such as images/img_4\.jpg, has .* \(2 upright, 1 as stored\)"):
        preprocess()


def test_a_data_set_of_open_images_alone_is_refused_alike(source: Source, preprocess: Preprocess) -> None:
    source.add(3, True)
    with pytest.raises(DataError, match=r"1 image, .* data\.exif=upright"):
        preprocess()


def test_images_without_masks_need_no_decision(source: Source, preprocess: Preprocess) -> None:
    for orientation in (1, 1, 1, 1, 3):
        source.add(orientation, drawn_upright=True)
    source.annotations.pop()
    stats = preprocess()
    assert stats["splits"]["train"]["images_turned"] + stats["splits"]["val"]["images_turned"] == 1
    assert any("there are no masks" in finding["kind"] for finding in stats["findings"])


@pytest.mark.parametrize("upright", [True, False])
def test_images_without_a_stated_size_are_read_as_the_others(
    source: Source, preprocess: Preprocess, tmp_path: Path, upright: bool
) -> None:
    source.add(1, upright)
    for stated in (False, True, False):
        source.add(6, upright, stated=stated)
    preprocess()
    assert worst_iou(tmp_path / "data") > 0.85
    source.images = [{key: row[key] for key in ("id", "file_name")} for row in source.images]
    preprocess(exif="upright" if upright else "as_stored")
    assert worst_iou(tmp_path / "data") > 0.85


def test_an_image_without_masks_shows_by_its_stated_size_how_the_tool_shows_images(
    source: Source, preprocess: Preprocess, tmp_path: Path
) -> None:
    for orientation in (1, 1, 3, 6):
        source.add(orientation, drawn_upright=True)
    source.annotations.pop()
    stats = preprocess(empty_images="drop")
    assert turned(stats) == {"are taken as drawn on the upright image, as in the images whose size says so": 1}
    assert worst_iou(tmp_path / "data") > 0.85
