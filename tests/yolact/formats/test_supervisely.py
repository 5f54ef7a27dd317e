"""Supervisely's projects: polygons with holes, bitmaps, data sets, tags, and what is left out."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.yolact.formats.drawn import (
    LEFT,
    RIGHT,
    SIZE,
    Outline,
    assert_objects,
    ids,
    mask,
    read_all,
    save_image,
    write,
)
from yolact.errors import DataError
from yolact.formats import outlines
from yolact.formats.problems import ProblemError
from yolact.formats.registry import read_dataset

HOLE: Outline = ((10, 10), (20, 10), (20, 25), (10, 25))
SMALL_HOLE: Outline = ((6, 6), (8, 6), (8, 8), (6, 8))


def polygon(
    exterior: Outline, title: str = "cat", interior: tuple[Outline, ...] = (), **changes: Any
) -> dict[str, Any]:
    points = {"exterior": exterior, "interior": interior}
    return {"classTitle": title, "geometryType": "polygon", "points": points, "tags": []} | changes


def bitmap(pixels: np.ndarray, title: str = "cat", mode: str = "1") -> dict[str, Any]:
    """A bitmap as Supervisely's SDK writes it: of the box around the object; older versions in colours with alpha."""
    ys, xs = np.nonzero(pixels)
    box = Image.fromarray(pixels[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])
    if mode == "RGBA":
        alpha, box = box, Image.new("RGBA", box.size, "red")
        box.putalpha(alpha.convert("L"))
    buffer = io.BytesIO()
    box.save(buffer, "PNG")
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    origin = [int(xs.min()), int(ys.min())]
    return {"classTitle": title, "geometryType": "bitmap", "bitmap": {"data": data, "origin": origin}}


def add(root: Path, name: str, *objects: Any, tags: tuple[str, ...] = (), size: Any = SIZE) -> None:
    """An image of 'DATASET/NAME' and its annotation."""
    dataset, image = name.split("/")
    save_image(root / dataset / "img" / image)
    tree = {
        "description": "",
        "tags": [{"name": tag, "value": None} for tag in tags],
        "size": {"width": size[0], "height": size[1]},
        "objects": objects,
    }
    write(root / dataset / "ann" / f"{image}.json", json.dumps(tree))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    classes = [("dog", "polygon"), ("cat", "any"), ("frame", "rectangle")]
    meta = {
        "classes": [{"title": title, "shape": shape, "color": "#00FF00"} for title, shape in classes],
        "tags": [{"name": "train", "value_type": "none"}, {"name": "val", "value_type": "none"}],
        "projectType": "images",
    }
    write(tmp_path / "project/meta.json", json.dumps(meta))
    return tmp_path / "project"


def test_polygons_with_holes_and_bitmaps_become_objects(root: Path) -> None:
    ring = mask(LEFT, holes=[HOLE])
    objects = [
        polygon(LEFT, "dog", (HOLE, SMALL_HOLE)),
        bitmap(ring),
        bitmap(mask(RIGHT), mode="RGBA"),
        bitmap(np.ones((SIZE[1], SIZE[0]), dtype=bool)),
    ]
    add(root, "ds0/a.jpg", *objects)
    dataset, images = read_all(root.parent)
    assert (dataset.format, dict(dataset.classes)) == ("Supervisely", {1: "dog", 2: "cat"})
    image = images["ds0/img/a.jpg"]
    wanted = [("dog", mask(LEFT, holes=[HOLE, SMALL_HOLE])), ("cat", ring), ("cat", mask(RIGHT)), ("cat", ring | True)]
    assert_objects(dataset, image, *wanted)
    assert [found.area for found in image.instances][1:] == [ring.sum(), mask(RIGHT).sum(), ring.size]
    assert (dataset.warnings, image.dropped) == ([], ())


def test_data_sets_are_joined_and_their_names_may_be_splits(root: Path) -> None:
    add(root, "ds0/a.jpg", polygon(LEFT))
    add(root, "ds1/a.jpg", polygon(LEFT))
    assert ids(read_dataset(root)) == {"train": ["ds0/img/a.jpg", "ds1/img/a.jpg"]}
    (root / "ds0").rename(root / "training")
    (root / "ds1").rename(root / "val")
    assert ids(read_dataset(root)) == {"train": ["training/img/a.jpg"], "val": ["val/img/a.jpg"]}


def test_tags_are_splits_if_each_image_has_one(root: Path) -> None:
    add(root, "ds0/a.jpg", polygon(LEFT), tags=("train", "good"))
    add(root, "ds0/b.jpg", polygon(LEFT), tags=("val",))
    assert ids(read_dataset(root)) == {"train": ["ds0/img/a.jpg"], "val": ["ds0/img/b.jpg"]}
    add(root, "ds0/c.jpg", polygon(LEFT))
    assert list(read_dataset(root).splits) == ["train"]


def test_objects_without_outline_are_dropped_with_their_kind(root: Path) -> None:
    objects = [
        polygon(LEFT),
        polygon(LEFT, geometryType="rectangle"),
        polygon(LEFT, geometryType="line"),
        polygon(LEFT, "cow"),
        polygon(LEFT, geometryType="spline"),
        {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": "eJw=", "origin": [1, 2]}},
        {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": None, "origin": [1e308, 2]}},
        3,
    ]
    add(root, "ds0/a.jpg", *objects)
    dataset, images = read_all(root)
    assert_objects(dataset, images["ds0/img/a.jpg"], ("cat", mask(LEFT)))
    assert [problem.kind for problem in images["ds0/img/a.jpg"].dropped] == [
        "rectangle without outline",
        "line without outline",
        "class that meta.json does not list",
        "unknown shape",
        "shape that cannot be read",
        "damaged bitmap",
        "damaged object",
    ]


def test_missing_images_and_images_without_annotations_are_named(root: Path) -> None:
    for name in "abc":
        add(root, f"ds0/{name}.jpg", polygon(LEFT))
    (root / "ds0/img/a.jpg").unlink()
    (root / "ds0/ann/b.jpg.json").unlink()
    dataset = read_dataset(root)
    assert ids(dataset) == {"train": ["ds0/img/c.jpg"]}
    assert list(dataset.problems) == ["ds0/ann/a.jpg.json"]
    assert "images without a file in ann are not used: 1, such as 'ds0/img/b.jpg'" in dataset.warnings[0].reason


def test_annotations_of_old_projects_are_found_without_the_images_suffix(root: Path) -> None:
    add(root, "ds0/a.jpg", polygon(LEFT))
    (root / "ds0/ann/a.jpg.json").rename(root / "ds0/ann/a.json")
    assert ids(read_dataset(root)) == {"train": ["ds0/img/a.jpg"]}


@pytest.mark.parametrize("text", ['{"classes": 3}', '["classes"]', '{"classes": [', '{"classes": [{"title": ""}]}'])
def test_a_damaged_meta_json_is_refused(root: Path, text: str) -> None:
    add(root, "ds0/a.jpg", polygon(LEFT))
    write(root / "meta.json", text)
    with pytest.raises(DataError, match=str(root)):
        read_dataset(root)


def test_a_bitmap_that_unpacks_to_far_too_much_is_dropped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "MAX_PACKED", 2 << 20)
    data = base64.b64encode(zlib.compress(bytes(4 << 20), 9)).decode()
    add(root, "ds0/a.jpg", {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [0, 0]}})
    _, images = read_all(root)
    assert "unpacks to more than 2 MB" in images["ds0/img/a.jpg"].dropped[0].reason


NUMBERS = st.sampled_from([0, -1, 30.5, 1e308, float("nan"), 10**400, -(10**9)])
VALUES = NUMBERS | st.sampled_from([True, None, "1", "cat", [], {}, [1, 2], [[1, 2]]])
SHAPES = st.fixed_dictionaries({}, optional={"exterior": st.lists(VALUES, max_size=4) | VALUES, "interior": VALUES})
DATA = st.just(bitmap(mask(LEFT))["bitmap"]["data"]) | VALUES
BITMAPS = st.fixed_dictionaries({}, optional={"data": DATA, "origin": st.lists(VALUES, max_size=2)})
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "classTitle": st.just("cat") | VALUES,
        "geometryType": st.sampled_from(["polygon", "bitmap", None]) | VALUES,
        "points": SHAPES | VALUES,
        "bitmap": BITMAPS | VALUES,
    },
)


@settings(deadline=None, max_examples=30)
@given(objects=st.lists(OBJECTS | VALUES, max_size=4), size=st.tuples(VALUES, VALUES))
def test_any_objects_give_objects_or_problems(objects: list[Any], size: tuple[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "meta.json", '{"classes": [{"title": "cat", "shape": "any"}]}')
        add(root, "ds0/a.jpg", polygon(LEFT))
        add(root, "ds0/b.jpg", *objects, size=size)
        a, b = read_dataset(root).splits["train"]
        assert len(a.read().instances) == 1
        with contextlib.suppress(ProblemError):
            found = b.read()
            assert len(found.instances) + len(found.dropped) == len(objects)
