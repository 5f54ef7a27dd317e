"""labelme's and AnyLabeling's JSON files: shapes, groups, names of images, and what is left out."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.yolact.formats.drawn import LEFT, RIGHT, SIZE, assert_objects, ids, mask, read_all, save_image, write
from yolact.errors import DataError
from yolact.formats.problems import ProblemError
from yolact.formats.registry import read_dataset


def shape(label: Any = "cat", points: Any = LEFT, shape_type: Any = "polygon", **changes: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": shape_type, "flags": {}} | changes


def tree(*shapes: Any, **changes: Any) -> str:
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None}
    return json.dumps(content | {"imageHeight": SIZE[1], "imageWidth": SIZE[0]} | changes)


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_image(tmp_path / "a.jpg")
    return tmp_path


def test_polygons_become_objects_of_the_labels(root: Path) -> None:
    write(root / "a.json", tree(shape("dog", RIGHT), shape("cat", LEFT)))
    dataset, images = read_all(root)
    assert (dataset.format, dict(dataset.classes), ids(dataset)) == (
        "labelme",
        {1: "cat", 2: "dog"},
        {"train": ["a.jpg"]},
    )
    assert_objects(dataset, images["a.jpg"], ("dog", mask(RIGHT)), ("cat", mask(LEFT)))
    assert (dataset.warnings, images["a.jpg"].dropped) == ([], ())


def test_an_image_that_was_renamed_with_its_file_is_found(root: Path) -> None:
    save_image(root / "c.png")
    for name in ("a", "c"):
        write(root / f"{name}.json", tree(shape(), imagePath="IMG_1.jpg"))
    write(root / "d.json", tree(shape(), imagePath="IMG_2.jpg"))
    dataset = read_dataset(root)
    assert (ids(dataset), list(dataset.problems)) == ({"train": ["a.jpg", "c.png"]}, ["d.json"])
    assert "2 of 2 file names are not there; the images beside the files" in dataset.warnings[0].reason


def test_a_set_without_a_single_image_has_only_problems(tmp_path: Path) -> None:
    write(tmp_path / "a.json", tree(shape()))
    dataset = read_dataset(tmp_path)
    assert (ids(dataset), list(dataset.problems)) == ({"train": []}, ["a.json"])


def test_labels_that_may_number_objects_are_doubtful(root: Path) -> None:
    write(root / "a.json", tree(shape("cat-1", LEFT), shape("cat-2", RIGHT), shape("f-16", RIGHT)))
    dataset, _ = read_all(root)
    (warning,) = dataset.warnings
    assert "'cat-1', 'cat-2' are classes of their own" in warning.reason
    assert "data.classes={cat-1: cat, cat-2: cat, …}" in warning.reason


def test_rectangles_circles_and_masks_become_objects(root: Path) -> None:
    drawn = mask(LEFT)
    ys, xs = np.nonzero(drawn)
    box = drawn[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    corners = [[float(xs.min()), float(ys.min())], [float(xs.max()), float(ys.max())]]
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    shapes = [
        shape("rectangle", [[40, 30], [20, 10]], "rectangle"),
        shape("circle", [[30, 20], [30, 32]], "circle"),
        shape("mask", corners, "mask", mask=png(box)),
        shape("four corners", [[10, 10], [50, 10], [50, 20], [10, 20]], "rectangle"),
        shape("turned", [[30, 5], [45, 20], [30, 35], [15, 20]], "rotation", direction=0.785),
    ]
    write(root / "a.json", tree(*shapes))
    dataset, images = read_all(root)
    wanted = [
        mask([(20, 10), (40, 10), (40, 30), (20, 30)]),
        (x - 30) ** 2 + (y - 20) ** 2 < 12**2,
        drawn,
        mask([(10, 10), (50, 10), (50, 20), (10, 20)]),
        mask([(30, 5), (45, 20), (30, 35), (15, 20)]),
    ]
    labels = [item["label"] for item in shapes]
    assert_objects(dataset, images["a.jpg"], *zip(labels, wanted, strict=True))
    assert images["a.jpg"].instances[2].area == drawn.sum()


def test_shapes_of_a_group_and_label_are_one_object(root: Path) -> None:
    grouped = [shape("cat", LEFT, group_id=1), shape("cat", RIGHT, group_id=1), shape("dog", RIGHT, group_id=1)]
    write(root / "a.json", tree(*grouped, shape("cat", LEFT), shape("cat", RIGHT, group_id=2)))
    dataset, images = read_all(root)
    wanted = [("cat", mask(LEFT, RIGHT)), ("dog", mask(RIGHT)), ("cat", mask(LEFT)), ("cat", mask(RIGHT))]
    assert_objects(dataset, images["a.jpg"], *wanted)


def test_an_upright_size_gives_upright_masks(root: Path) -> None:
    save_image(root / "a.jpg", (SIZE[1], SIZE[0]), orientation=6)
    for stated in ({}, {"imageHeight": None, "imageWidth": None}):
        write(root / "a.json", tree(shape(), **stated))
        dataset, images = read_all(root)
        assert images["a.jpg"].upright_by_size
        assert_objects(dataset, images["a.jpg"], ("cat", mask(LEFT)))


@pytest.mark.parametrize(
    "name",
    ["..\\images\\B 1.JPG", "../images/b 1.jpg", "C:\\x\\B 1.jpg", "/home/me/b 1.jpg", "https://x.y/z/b%201.jpg?t=1"],
)
def test_images_are_found_by_their_last_part(root: Path, name: str) -> None:
    save_image(root / "photos/b 1.jpg")
    write(root / "a.json", tree(shape()))
    write(root / "labels/b.json", tree(shape(), imagePath=name))
    assert ids(read_dataset(root)) == {"train": ["a.jpg", "photos/b 1.jpg"]}


def test_folders_name_the_split(root: Path) -> None:
    for split in ("train", "val"):
        save_image(root / split / "a.jpg")
        write(root / split / "a.json", tree(shape()))
    (root / "a.jpg").unlink()
    assert ids(read_dataset(root)) == {"train": ["train/a.jpg"], "val": ["val/a.jpg"]}


def test_shapes_that_are_no_objects_are_dropped_with_their_kind(root: Path) -> None:
    shapes = [
        shape(),
        shape("edge", LEFT, "linestrip"),
        shape("tip", LEFT[:1], "point"),
        shape("_background_"),
        shape("__ignore__"),
        shape(None),
        shape("cat", [[1, 2, 3]]),
        shape("cat", LEFT, "spiral"),
        shape("cat", [[1, 1], [9, 9]], "mask", mask="no PNG"),
        shape("cat", [[1, 1], [9, 9]], "mask"),
        "text",
    ]
    write(root / "a.json", tree(*shapes))
    dataset, images = read_all(root)
    assert_objects(dataset, images["a.jpg"], ("cat", mask(LEFT)))
    assert list(dataset.classes.values()) == ["cat"]
    assert sorted(problem.kind for problem in images["a.jpg"].dropped) == [
        "label __ignore__",
        "label _background_",
        "linestrip without area",
        "point without area",
        *4 * ["shape that cannot be read"],
        *2 * ["shape without label"],
    ]
    assert {problem.file for problem in images["a.jpg"].dropped} == {"a.json"}


def test_files_that_cannot_be_used_are_problems(root: Path) -> None:
    write(root / "a.json", tree(shape()))
    write(root / "again.json", tree(shape()))
    write(root / "broken.json", tree(shape())[:-5])
    write(root / "gone.json", tree(shape(), imagePath="gone.jpg"))
    write(root / "kept.json", tree(shape(), imagePath="kept.jpg", imageData="/9j/4AAQ"))
    problems = read_dataset(root).problems
    assert sorted(problems) == ["again.json", "broken.json", "gone.json", "kept.json"]
    reasons = {file: found[0].reason for file, found in problems.items()}
    assert reasons["again.json"] == "is for a.jpg, as a.json is; remove one of the two"
    assert "is not JSON" in reasons["broken.json"]
    assert reasons["gone.json"].endswith("'gone.jpg', but there is no such file; add it, or remove its annotations")
    advice = "add it, or remove its annotations, or write the file's copy with `labelme_export_json kept.json`"
    assert reasons["kept.json"].endswith(advice)


def test_images_without_file_are_one_warning(root: Path) -> None:
    write(root / "a.json", tree(shape()))
    for name in "bcd":
        save_image(root / f"{name}.jpg")
    dataset = read_dataset(root)
    assert ids(dataset) == {"train": ["a.jpg"]}
    (warning,) = dataset.warnings
    assert "images without a labelme file are not used: 3, such as 'b.jpg'" in warning.reason


def test_files_without_any_label_are_refused(root: Path) -> None:
    write(root / "a.json", tree())
    with pytest.raises(DataError, match="without a single object"):
        read_dataset(root)


NUMBERS = st.sampled_from([0, -1, 30.5, 1e308, float("nan"), float("inf"), 10**30, -(10**9), True, None, "1", [], {}])
SHAPES = st.fixed_dictionaries(
    {},
    optional={
        "label": st.sampled_from(["cat", "", "é", None, 3]),
        "points": st.lists(st.lists(NUMBERS, min_size=1, max_size=3), max_size=4) | NUMBERS,
        "shape_type": st.sampled_from(["polygon", "rectangle", "circle", "mask", "line", None, 3, []]),
        "group_id": NUMBERS,
        "mask": st.sampled_from(["", "iVBORw0KGgo=", None, png(np.ones((3, 3)))]),
    },
)


@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(SHAPES | NUMBERS, max_size=4),
    changes=st.dictionaries(st.sampled_from(["imagePath", "imageWidth", "imageHeight", "shapes", "flags"]), NUMBERS),
)
def test_any_file_gives_objects_or_problems(shapes: list[Any], changes: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for image in "ab":
            save_image(root / f"{image}.jpg")
        write(root / "a.json", tree(shape()))
        write(root / "b.json", tree(*shapes, **{"imagePath": "b.jpg"} | changes))
        for source in read_dataset(root).splits["train"]:
            if source.image_id == "a.jpg":
                assert len(source.read().instances) == 1
            else:
                with contextlib.suppress(ProblemError):
                    assert len(source.read().instances) <= len(shapes)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"shapes": ' * 5_000, '{"a": ' + "9" * 5_000 + "}", "3]"])
def test_hostile_json_is_a_problem(root: Path, text: str) -> None:
    save_image(root / "b.jpg")
    write(root / "a.json", tree(shape()))
    write(root / "b.json", '["shapes", "imagePath", ' + text)
    assert list(read_dataset(root).problems) == ["b.json"]
