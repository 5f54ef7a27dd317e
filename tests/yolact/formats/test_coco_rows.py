"""Rows of COCO's annotations: every form of mask, what is taken, and what is dropped with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils

from tests.yolact.formats.coco_sets import (
    HEIGHT,
    SQUARE,
    TWO_FORMS,
    WIDTH,
    annotation,
    kinds,
    load,
    read_one,
    save_image,
    tree,
)
from yolact.formats.coco_rows import RowReading, decompressed_runs, identity
from yolact.formats.problems import ProblemError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_image(tmp_path)
    return tmp_path


def test_a_polygon_gives_mask_class_and_stated_box(root: Path) -> None:
    image = read_one(root, annotation(bbox=[2.25, 1.5, 3.5, 3.25], area=15.5))
    (instance,) = image.instances
    wanted = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    wanted[1:5, 2:6] = 1
    assert np.array_equal(mask_utils.decode(instance.rle()), wanted)
    assert (instance.class_index, instance.box, instance.area) == (2, (2.25, 1.5, 3.5, 3.25), 15.5)
    assert (instance.crowd, instance.difficult, image.warnings) == (False, None, ())


def test_several_polygons_are_one_object(root: Path) -> None:
    (instance,) = read_one(root, annotation(segmentation=[*SQUARE, [8, 1, 10, 1, 10, 5, 8, 5]], bbox=None)).instances
    assert (instance.area, instance.box) == (16 + 8, (2, 1, 8, 4))


def test_run_lengths_are_read_plain_and_compressed(root: Path) -> None:
    text = mask_utils.frPyObjects(TWO_FORMS, HEIGHT, WIDTH)["counts"].decode()
    compressed = {"size": [HEIGHT, WIDTH], "counts": text}
    rows = [annotation(segmentation=form, bbox=[0, 1, 1, 2]) for form in (TWO_FORMS, compressed)]
    first, second = read_one(root, *rows).instances
    assert first.counts == second.counts == text
    assert (first.area, first.box) == (2, (0, 1, 1, 2))


def test_crowd_regions_keep_their_flag(root: Path) -> None:
    crowd = annotation(iscrowd=1, segmentation=TWO_FORMS, bbox=[0, 0, 12, 8])
    instance, *others = read_one(root, crowd, annotation(id=2)).instances
    assert [other.crowd for other in others] == [False]
    assert (instance.crowd, instance.box) == (True, (0, 1, 1, 2))


def test_300_objects_are_read(root: Path) -> None:
    image = read_one(root, *(annotation(id=number) for number in range(300)))
    assert len(image.instances) == 300


@pytest.mark.parametrize(
    ("changes", "box", "warning"),
    [
        ({"bbox": [-3, -2, 9, 7]}, (0, 0, 6, 5), None),  # inside it fits the 4 x 4: 16 of 30
        ({"bbox": [20, 1, 4, 4]}, (2, 1, 4, 4), "has the bbox [20, 1, 4, 4], which does not fit its mask"),
        ({"bbox": [2, 1, 0, 0]}, (2, 1, 4, 4), "does not fit its mask"),
        ({"bbox": [2, 1, 4]}, (2, 1, 4, 4), "not a list of four numbers"),
        ({"bbox": [2, 1, float("nan"), 4]}, (2, 1, 4, 4), "not a list of four numbers"),
        ({"bbox": None}, (2, 1, 4, 4), None),
    ],
)
def test_boxes_outside_the_image_or_off_the_mask_are_replaced(
    root: Path, changes: dict[str, Any], box: tuple[int, ...], warning: str | None
) -> None:
    image = read_one(root, annotation(**changes))
    assert image.instances[0].box == box
    reasons = [str(found) for found in image.warnings]
    assert len(reasons) == (warning is not None)
    if warning is not None:
        assert reasons[0].startswith("instances.json: annotation 1 of images/a.jpg ")
        assert warning in reasons[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (annotation(segmentation=None, bbox=None), "annotation 1 of images/a.jpg has no outline"),
        (annotation(segmentation=[]), "has a box, but no outline"),
        (annotation(segmentation=[[]]), "has a box, but no outline"),
        (annotation(segmentation="x"), "has a box, but no outline"),
        (annotation(segmentation=[[1, 2, 3, 4]]), "outline of less than 3 points"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "x, y for at least 3 points"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, "6"]]), "value that is not a number"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, None]]), "value that is not a number"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, 1e300]]), "value that is not a number"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, 1e11]]), "value beyond 100000 pixels"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, float("inf")]]), "value that is not a number"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, 10**400]]), "value that is not a number"),
        (annotation(segmentation=[[50, 50, 60, 50, 60, 60]]), "without a pixel inside the image"),
        (annotation(segmentation=[[3, 3, 3, 3, 3, 3]]), "without a pixel inside the image"),
        (annotation(segmentation={"size": [8, 11], "counts": [88]}), "run lengths of size [8, 11], but"),
        (annotation(segmentation={"size": [8, 12], "counts": [97]}), "do not add up to 96 pixels"),
        (annotation(segmentation={"size": [8, 12], "counts": [97, -1]}), "do not add up"),
        (annotation(segmentation={"size": [8, 12], "counts": "zzzz"}), "do not add up"),
        (annotation(segmentation={"size": [8, 12]}), "do not add up"),
        (annotation(category_id=99), "has category_id 99, which is not in categories"),
        (annotation(category_id=None), "has category_id None"),
        (annotation(category_id=[3]), "has category_id [3]"),
        (annotation(iscrowd=2), "has iscrowd 2; write 0 or 1"),
        (annotation(id=None, category_id=99), "annotation number 1 of images/a.jpg has category_id 99"),
    ],
)
def test_a_row_that_cannot_be_used_is_dropped_alone(root: Path, row: dict[str, Any], message: str) -> None:
    image = read_one(root, row, annotation(id=2))
    assert [instance.number for instance in image.instances] == [2]
    (problem,) = image.dropped
    assert problem.file == "instances.json"
    assert message in problem.reason
    assert problem.kind


def test_an_outline_that_would_take_all_memory_is_a_problem(root: Path) -> None:
    image = read_one(root, annotation(segmentation=[[0, 0, 99_999, 0, 99_999, 99_999, 0, 99_999]]))
    assert image.instances[0].area == WIDTH * HEIGHT
    zigzag = [value for n in range(5000) for value in (100_000 * (-1) ** n, n)]
    (problem,) = read_one(root, annotation(segmentation=[zigzag])).dropped
    assert "has a polygon whose outline is longer than 2000000 pixels; correct it" in problem.reason
    steps = [value for n in range(200_000) for value in (n % 12, n % 8)]  # many points close to each other
    assert len(read_one(root, annotation(segmentation=[steps])).instances) == 1


def test_an_image_of_another_size_is_a_problem(root: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg", "width": 99, "height": HEIGHT}]
    with pytest.raises(ProblemError, match=r"says that images/a\.jpg is 99 x 8 pixels, but it is 12 x 8"):
        read_one(root, annotation(), images=images)


def test_sizes_decide_in_which_frame_a_turned_image_was_annotated(root: Path) -> None:
    save_image(root, orientation=6)
    assert read_one(root, annotation()).upright_by_size is False
    upright = [{"id": 1, "file_name": "a.jpg", "width": HEIGHT, "height": WIDTH}]
    assert read_one(root, annotation(), images=upright).upright_by_size is True


def test_outlines_on_upright_images_whose_sizes_are_stated_as_stored_are_read_upright(root: Path) -> None:
    """As COCO Annotator exports them."""
    upright_only = [2, 9, 6, 9, 6, 12, 2, 12]
    for name in ("a", "b"):
        save_image(root, f"images/{name}.jpg", orientation=6)
    images = [{"id": n, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT} for n, name in enumerate("ab", 1)]
    rows = [annotation(), annotation(image_id=2, segmentation=[upright_only], bbox=None)]
    dataset = load(root, tree(*rows, images=images))
    assert kinds(dataset) == ["sizes of the images as stored"]
    either, upright = (source.read() for source in dataset.splits["train"])
    assert (upright.upright_by_size, upright.instances[0].area, (upright.width, upright.height)) == (True, 12, (8, 12))
    assert either.upright_by_size is None
    alone = replace(dataset.splits["train"][1], reading=RowReading())
    with pytest.raises(ProblemError, match="its outlines lie outside of that and inside the upright image; swap width"):
        alone.read()


def test_without_a_stated_size_the_outlines_decide_where_they_fit(root: Path) -> None:
    save_image(root, orientation=6)
    unsaid = [{"id": 1, "file_name": "a.jpg"}]
    for outline, expected in (([2, 9, 6, 9, 6, 12, 2, 12], True), ([9, 2, 12, 2, 12, 6, 9, 6], False)):
        image = read_one(root, annotation(segmentation=[outline], bbox=None), images=unsaid)
        assert image.upright_by_size is expected
        assert image.as_upright is None
        assert [instance.area for instance in image.instances] == [12]
    image = read_one(root, annotation(), images=unsaid)
    assert (image.upright_by_size, image.upright) == (None, None)
    assert image.as_upright is not None
    assert (image.width, image.as_upright.width) == (WIDTH, HEIGHT)
    assert [mask_utils.decode(reading.instances[0].rle()).shape for reading in (image, image.as_upright)] == [
        (HEIGHT, WIDTH),
        (WIDTH, HEIGHT),
    ]


@pytest.mark.parametrize(
    ("info", "name", "upright"),
    [
        ({}, "a.jpg", None),
        ({"url": "https://github.com/CVHub520/X-AnyLabeling"}, "a.jpg", True),
        ({"description": "VIA project exported to COCO format using VGG Image Annotator (http://…)"}, "a.jpg", True),
        ({"contributor": "COCO Consortium"}, "000000000139.jpg", False),
        ({"contributor": "COCO Consortium"}, "a.jpg", None),
    ],
)
def test_known_tools_say_how_they_show_images(root: Path, info: Any, name: str, upright: bool | None) -> None:
    save_image(root, name, orientation=3)
    images = [{"id": 1, "file_name": name, "width": WIDTH, "height": HEIGHT}]
    image = read_one(root, annotation(), images=images, info=info)
    assert (image.upright_by_size, image.upright) == (None, upright)


def pixels(*polygons: list[tuple[float, float]]) -> np.ndarray:
    """A mask (HEIGHT, WIDTH), drawn with Pillow."""
    drawn = Image.new("L", (WIDTH, HEIGHT))
    for polygon in polygons:
        ImageDraw.Draw(drawn).polygon(polygon, fill=1)
    return np.asarray(drawn)


RECTANGLE = [(2, 1), (5, 1), (5, 4), (2, 4)]
"""The pixels of SQUARE, for Pillow, which fills the edges too."""


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({"segmentation": SQUARE[0]}, [RECTANGLE]),
        ({"segmentation": [[2, 1], [6, 1], [6, 5], [2, 5]]}, [RECTANGLE]),
        ({"segmentation": [[[2, 1], [6, 1], [6, 5], [2, 5]]]}, [RECTANGLE]),
        ({"segmentation": [TWO_FORMS]}, [[(0, 1), (0, 2)]]),
        ({"segmentation": [TWO_FORMS, *SQUARE]}, [[(0, 1), (0, 2)], RECTANGLE]),
        ({"segmentation": {"size": [8.0, 12.0], "counts": [1.0, 2.0, 93.0]}}, [[(0, 1), (0, 2)]]),
        ({"category_id": "3"}, [RECTANGLE]),
        ({"category_id": 3.0}, [RECTANGLE]),
        ({"image_id": "1"}, [RECTANGLE]),
        ({"image_id": 1.0}, [RECTANGLE]),
        ({"image_id": "001"}, [RECTANGLE]),
    ],
)
def test_values_in_other_forms_are_taken_where_their_meaning_is_certain(
    root: Path, changes: dict[str, Any], drawn: list[list[tuple[float, float]]]
) -> None:
    image = read_one(root, annotation(**changes, bbox=None))
    (instance,) = image.instances
    assert np.array_equal(mask_utils.decode(instance.rle()), pixels(*drawn))
    assert (instance.class_index, image.warnings, image.dropped) == (2, (), ())


@pytest.mark.parametrize(
    ("stated", "crowd"), [(True, True), (False, False), ("1", True), ("0", False), (1.0, True), ("true", True)]
)
def test_iscrowd_is_read_as_boolean_text_or_number(root: Path, stated: Any, crowd: bool) -> None:
    rows = [annotation(iscrowd=stated), annotation(id=2), annotation(id=3)]
    assert [instance.crowd for instance in read_one(root, *rows).instances] == [crowd, False, False]


@pytest.mark.parametrize("size", [(None, None), (0, 0), (-1, -1), ("", ""), (None, 8), (12.5, 8), ([], {})])
def test_a_size_that_is_not_stated_is_the_images_own(root: Path, size: tuple[Any, Any]) -> None:
    images = [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
    dataset = load(root, tree(annotation(), images=images))
    assert len(dataset.splits["train"][0].read().instances) == 1
    assert len(dataset.warnings) == (size not in [(None, None), (None, 8)])


@pytest.mark.parametrize("size", [(12.0, 8.0), ("12", "8"), ("12.0", 8)])
def test_a_size_may_be_a_float_or_text(root: Path, size: tuple[Any, Any]) -> None:
    images = [{"id": 1.0, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
    (source,) = load(root, tree(annotation(), images=images)).splits["train"]
    assert source.stated_size == (12, 8)


def test_a_part_of_two_points_is_left_out_and_the_object_stays(root: Path) -> None:
    image = read_one(root, annotation(segmentation=[*SQUARE, [8, 1, 10, 1]]))
    assert [instance.area for instance in image.instances] == [16]
    (warning,) = image.warnings
    assert (warning.kind, image.dropped) == ("part of less than 3 points", ())


def test_the_area_of_the_box_is_not_taken_for_that_of_the_mask(root: Path) -> None:
    triangle = [[0, 0, 8, 0, 0, 8]]
    (instance,) = read_one(root, annotation(segmentation=triangle, bbox=[0, 0, 8, 8], area=64)).instances
    assert instance.area == mask_utils.area(instance.rle())
    assert instance.area < 40


def test_run_lengths_tell_the_frame_where_no_size_is_stated(root: Path) -> None:
    save_image(root, orientation=6)
    upright = {"size": [WIDTH, HEIGHT], "counts": [0, 2, 94]}
    image = read_one(root, annotation(segmentation=upright), images=[{"id": 1, "file_name": "a.jpg"}])
    assert (image.width, image.height, image.upright_by_size) == (HEIGHT, WIDTH, True)


def test_label_studios_coordinates_of_turned_images_are_stretched_back(root: Path) -> None:
    """It states the stored size, and stretches the coordinates of the upright image to it."""
    save_image(root, orientation=6)  # upright: 8 wide, 12 high
    drawn = [(2, 3), (6, 3), (6, 9), (2, 9)]  # on the upright image
    stretched = [value for x, y in drawn for value in (x * WIDTH / HEIGHT, y * HEIGHT / WIDTH)]
    image = read_one(root, annotation(segmentation=[stretched], bbox=None), info={"contributor": "Label Studio"})
    (instance,) = image.instances
    wanted = np.zeros((12, 8), dtype=np.uint8)
    wanted[3:9, 2:6] = 1
    assert np.array_equal(mask_utils.decode(instance.rle()), wanted)
    save_image(root, orientation=3)
    image = read_one(root, annotation(), info={"contributor": "Label Studio"})
    assert (image.upright_by_size, image.upright) == (None, True)
    assert read_one(root, annotation()).upright is None


def test_normalized_coordinates_are_scaled_by_the_images_size(root: Path) -> None:
    fractions = [value / side for value, side in zip(SQUARE[0], [WIDTH, HEIGHT] * 4, strict=True)]
    dataset = load(root, tree(annotation(segmentation=[fractions])))
    (instance,) = dataset.splits["train"][0].read().instances
    assert np.array_equal(mask_utils.decode(instance.rle()), pixels(RECTANGLE))
    assert [warning.kind for warning in dataset.warnings] == ["normalized coordinates"]
    mixed = load(root, tree(annotation(segmentation=[fractions]), annotation(id=2)))
    assert [instance.area for instance in mixed.splits["train"][0].read().instances] == [1, 16]  # all are pixels


@given(st.integers(-(10**17), 10**17))
def test_an_id_is_the_same_as_number_and_text(number: int) -> None:
    assert identity(number) == identity(str(number)) == identity(f" {number}.0 ") == number


@given(st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.integers()))
def test_what_is_no_id_raises_nothing(value: Any) -> None:
    found = identity(value)
    assert found is None or isinstance(found, int | str)
    assert not isinstance(found, bool)


# Run lengths


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_compressed_runs_are_read_as_pycocotools_wrote_them(runs: list[int]) -> None:
    pixels = sum(runs)
    text = mask_utils.frPyObjects({"size": [pixels, 1], "counts": runs}, pixels, 1)["counts"].decode()
    assert decompressed_runs(text) == runs


@given(st.text(st.characters(min_codepoint=32, max_codepoint=127), max_size=12))
def test_every_text_of_run_lengths_is_read_or_refused(text: str) -> None:
    runs = decompressed_runs(text)
    assert runs is None or all(isinstance(run, int) for run in runs)
