"""VGG Image Annotator's projects and exports: shapes, the attribute of the class, and what is left out."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from yolact.formats.problems import ProblemError
from yolact.formats.registry import read_dataset


def polygon(outline: Outline, name: str = "polygon") -> dict[str, Any]:
    return {"name": name, "all_points_x": [x for x, _ in outline], "all_points_y": [y for _, y in outline]}


def region(shape: Any, **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


def entry(*regions: Any, filename: Any = "a.jpg") -> dict[str, Any]:
    return {"filename": filename, "size": 4830, "regions": regions, "file_attributes": {}}


def export(*entries: Any) -> str:
    return json.dumps({f"{place}": row for place, row in enumerate(entries)})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_image(tmp_path / "a.jpg")
    return tmp_path


@pytest.mark.parametrize("numbered", [False, True], ids=["version 2", "version 1"])
@pytest.mark.parametrize("project", [False, True], ids=["export", "project"])
def test_projects_and_exports_of_both_versions_are_read(root: Path, numbered: bool, project: bool) -> None:
    row = entry(region(polygon(RIGHT), kind="dog"), region(polygon(LEFT), kind={"cat": True, "dog": False}))
    if numbered:
        row["regions"] = {str(place): item for place, item in enumerate(row["regions"])}
    images = {"a.jpg4830": row}
    tree = {"_via_settings": {"core": {}}, "_via_img_metadata": images, "_via_attributes": {}} if project else images
    write(root / "via.json", json.dumps(tree))
    dataset, found = read_all(root)
    assert (dataset.format, dict(dataset.classes)) == ("VGG Image Annotator", {1: "cat", 2: "dog"})
    assert_objects(dataset, found["a.jpg"], ("dog", mask(RIGHT)), ("cat", mask(LEFT)))
    assert (dataset.warnings, found["a.jpg"].dropped) == ([], ())


def test_all_shapes_with_an_area_become_objects(root: Path) -> None:
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    turned = ((x - 30) + (y - 20)) ** 2 / 2 / 15**2 + ((y - 20) - (x - 30)) ** 2 / 2 / 6**2 < 1
    shapes = [
        ({"name": "rect", "x": 10, "y": 5, "width": 30, "height": 20}, mask([(10, 5), (40, 5), (40, 25), (10, 25)])),
        ({"name": "circle", "cx": 30, "cy": 20, "r": 12.5}, (x - 30) ** 2 + (y - 20) ** 2 < 12.5**2),
        (
            {"name": "ellipse", "cx": 30, "cy": 20, "rx": 20, "ry": 8},
            ((x - 30) / 20) ** 2 + ((y - 20) / 8) ** 2 < 1,
        ),
        ({"name": "ellipse", "cx": 30, "cy": 20, "rx": 15, "ry": 6, "theta": np.pi / 4}, turned),
        (polygon([*LEFT, LEFT[0]], "polyline"), mask(LEFT)),
    ]
    write(root / "via.json", export(entry(*(region(shape) for shape, _ in shapes))))
    dataset, images = read_all(root)
    assert list(dataset.classes.values()) == ["object"]
    assert_objects(dataset, images["a.jpg"], *(("object", wanted) for _, wanted in shapes))


def test_shapes_without_area_or_class_are_dropped_with_their_kind(root: Path) -> None:
    regions = [
        region(polygon(LEFT), name="cat"),
        region(polygon(LEFT), name=""),
        region(polygon(LEFT), name={"a": True, "b": True}),
        region(polygon(LEFT, "polyline"), name="cat"),
        region({"name": "point", "cx": 3, "cy": 4}, name="cat"),
        region({"name": "cloud"}, name="cat"),
        region(polygon(LEFT) | {"all_points_x": [1]}, name="cat"),
        region(None, name="cat"),
        "text",
    ]
    write(root / "via.json", export(entry(*regions)))
    dataset, images = read_all(root)
    assert_objects(dataset, images["a.jpg"], ("cat", mask(LEFT)))
    assert [problem.kind for problem in images["a.jpg"].dropped] == [
        "region without class",
        "region without class",
        "open polyline without area",
        "point without area",
        "unknown shape",
        "region without points",
        "region without shape",
        "region without shape",
    ]
    assert images["a.jpg"].dropped[2].reason.startswith("region 4 of a.jpg is an open line")


def test_of_several_attributes_the_one_with_a_usual_name_is_the_class(root: Path) -> None:
    write(root / "via.json", export(entry(region(polygon(LEFT), Class="cat", quality="good", note=""))))
    dataset = read_dataset(root)
    assert list(dataset.classes.values()) == ["cat"]
    assert [warning.reason for warning in dataset.warnings] == [
        "regions have several attributes; Class is taken as the class, not used: quality"
    ]


@pytest.mark.parametrize("names", [("name", "type"), ("species", "quality")])
def test_attributes_that_do_not_decide_are_refused_with_the_way_on(root: Path, names: tuple[str, ...]) -> None:
    write(root / "via.json", export(entry(region(polygon(LEFT), **dict.fromkeys(names, "x")))))
    with pytest.raises(
        DataError, match=rf"is the class: {names[0]} \(1\), {names[1]} \(1\)\. In the annotator, remove"
    ):
        read_dataset(root)


def test_a_file_in_each_folder_gives_the_splits(root: Path) -> None:
    (root / "a.jpg").unlink()
    for split in ("train", "val"):
        save_image(root / split / "a.jpg")
        write(root / split / "via_region_data.json", export(entry(region(polygon(LEFT)))))
    assert ids(read_dataset(root)) == {"train": ["train/a.jpg"], "val": ["val/a.jpg"]}


def test_a_project_and_its_export_count_once_unless_they_differ(root: Path) -> None:
    row = entry(region(polygon(LEFT), name="cat"))
    write(root / "export.json", export(row))
    write(root / "project.json", json.dumps({"_via_img_metadata": {"a.jpg4830": row}}))
    assert ids(read_dataset(root)) == {"train": ["a.jpg"]}
    write(root / "export.json", export(entry(region(polygon(RIGHT), name="cat"))))
    with pytest.raises(DataError, match=r"export.json and project.json have different regions for a.jpg"):
        read_dataset(root)


def test_missing_images_and_images_without_entry_are_named(root: Path) -> None:
    save_image(root / "b.jpg")
    write(root / "via.json", export(entry(region(polygon(LEFT))), entry(filename="gone.jpg"), entry(filename=3)))
    dataset = read_dataset(root)
    assert sorted(dataset.problems) == ["via.json 3", "via.json gone.jpg"]
    assert "not used: 1, such as 'b.jpg'" in dataset.warnings[0].reason


@pytest.mark.parametrize(
    "text", ['{"a": 1, "regions": "shape_attributes"}', '["regions", "shape_attributes"]', "[" * 9999]
)
def test_a_damaged_file_is_refused(root: Path, text: str) -> None:
    write(root / "via.json", text if text[-1] != "[" else '["regions", "shape_attributes", ' + text)
    with pytest.raises(DataError, match=r"via\.json: "):
        read_dataset(root)


NUMBERS = st.sampled_from([0, -1, 30.5, 1e308, float("nan"), float("inf"), 10**400, -(10**9), True, None, "1", [], {}])
LISTS = st.lists(NUMBERS, max_size=4) | NUMBERS
SHAPES = st.fixed_dictionaries(
    {"name": st.sampled_from(["polygon", "polyline", "rect", "circle", "ellipse", "point", None, []])},
    optional=dict.fromkeys(("all_points_x", "all_points_y"), LISTS)
    | dict.fromkeys(("x", "y", "width", "height", "cx", "cy", "r", "rx", "ry", "theta"), NUMBERS),
)
REGIONS = st.fixed_dictionaries(
    {},
    optional={
        "shape_attributes": SHAPES | NUMBERS,
        "region_attributes": st.dictionaries(st.just("a"), NUMBERS) | NUMBERS,
    },
)


@settings(deadline=None, max_examples=30)
@given(regions=st.lists(REGIONS | NUMBERS, max_size=4) | st.dictionaries(st.text(max_size=2), REGIONS) | NUMBERS)
def test_any_regions_give_objects_or_problems(regions: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for image in "ab":
            save_image(root / f"{image}.jpg")
        write(root / "via.json", export(entry(region(polygon(LEFT))), entry(filename="b.jpg") | {"regions": regions}))
        a, b = read_dataset(root).splits["train"]
        assert len(a.read().instances) + len(a.read().dropped) == 1
        with contextlib.suppress(ProblemError):
            found = b.read()
            assert len(found.instances) + len(found.dropped) <= max(
                len(regions) if hasattr(regions, "__len__") else 0, 1
            )
