"""COCO data sets from any source: every form of mask, and a report of every problem."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_utils

from yolact.errors import DataError
from yolact.formats.coco import decompressed_runs, read_coco
from yolact.formats.dataset import AnnotatedImage, Dataset
from yolact.formats.problems import ProblemError

WIDTH, HEIGHT = 12, 8
SQUARE = [[2, 1, 6, 1, 6, 5, 2, 5]]
"""A polygon of 4 x 4 pixels at (2, 1)."""
TWO_FORMS = {"size": [HEIGHT, WIDTH], "counts": [1, 2, HEIGHT * WIDTH - 3]}
"""Rows 1 and 2 of the first column."""


def annotation(**changes: Any) -> dict[str, Any]:
    row = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": SQUARE, "bbox": [2, 1, 4, 4], "iscrowd": 0}
    return {name: value for name, value in (row | changes).items() if value is not None}


def tree(*annotations: Any, **changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": list(annotations),
    } | changes


def write(root: Path, content: Any, name: str = "instances.json") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def save_image(root: Path, name: str = "images/a.jpg", orientation: int = 1) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(root / name, exif=exif)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_image(tmp_path)
    return tmp_path


def load(root: Path, content: Any) -> Dataset:
    return read_coco(root, [write(root, content)])


def read_one(root: Path, *annotations: Any, **changes: Any) -> AnnotatedImage:
    (source,) = load(root, tree(*annotations, **changes)).splits["train"]
    return source.read()


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
    (instance,) = read_one(root, annotation(iscrowd=1, segmentation=TWO_FORMS, bbox=[0, 0, 12, 8])).instances
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


@pytest.mark.parametrize("outline", [[[50, 50, 60, 50, 60, 60]], [[3, 3, 3, 3, 3, 3]]], ids=["outside", "point"])
def test_an_object_without_a_pixel_is_skipped_with_a_warning(root: Path, outline: list[list[int]]) -> None:
    image = read_one(root, annotation(segmentation=outline), annotation(id=2))
    assert [instance.number for instance in image.instances] == [2]
    (warning,) = image.warnings
    assert "annotation 1 of images/a.jpg has a mask without a pixel inside the image" in str(warning)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (annotation(segmentation=None), "annotation 1 of images/a.jpg has no mask (segmentation is missing or empty)"),
        (annotation(segmentation=[]), "has no mask"),
        (annotation(segmentation="x"), "has no mask"),
        (annotation(segmentation=[[1, 2, 3, 4]]), "x, y for at least 3 points"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "x, y for at least 3 points"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, "6"]]), "value that is not a number"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, 1e300]]), "value that is not a number"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, float("inf")]]), "value that is not a number"),
        (annotation(segmentation=[[1, 2, 3, 4, 5, 10**400]]), "value that is not a number"),
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
def test_a_row_that_cannot_be_used_is_a_problem(root: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError) as caught:
        read_one(root, row)
    (problem,) = caught.value.problems
    assert problem.file == "instances.json"
    assert message in problem.reason


def test_an_outline_that_would_take_all_memory_is_a_problem(root: Path) -> None:
    image = read_one(root, annotation(segmentation=[[0, 0, 99_999, 0, 99_999, 99_999, 0, 99_999]]))
    assert image.instances[0].area == WIDTH * HEIGHT
    zigzag = [value for n in range(5000) for value in (100_000 * (-1) ** n, n)]
    with pytest.raises(ProblemError, match="has a polygon whose outline is longer than 2000000 pixels; correct it"):
        read_one(root, annotation(segmentation=[zigzag]))
    steps = [value for n in range(200_000) for value in (n % 12, n % 8)]  # many points close to each other
    assert len(read_one(root, annotation(segmentation=[steps])).instances) == 1


def test_an_image_of_another_size_is_a_problem(root: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg", "width": 99, "height": HEIGHT}]
    with pytest.raises(ProblemError, match=r"says that images/a\.jpg is 99 x 8 pixels, but it is 12 x 8"):
        read_one(root, annotation(), images=images)


def test_sizes_decide_in_which_frame_a_turned_image_was_annotated(root: Path) -> None:
    save_image(root, orientation=6)
    assert not read_one(root, annotation()).drawn_upright
    upright = [{"id": 1, "file_name": "a.jpg", "width": HEIGHT, "height": WIDTH}]
    assert read_one(root, annotation(), images=upright).drawn_upright
    unsaid = [{"id": 1, "file_name": "a.jpg"}]
    assert not read_one(root, annotation(), images=unsaid).drawn_upright


@pytest.mark.parametrize(
    ("row", "place", "message"),
    [
        ({"file_name": "b.jpg"}, "images[1]", "has no id"),
        ({"id": True, "file_name": "b.jpg"}, "images[1]", "has the id True; write a whole number"),
        ({"id": 2.0, "file_name": "b.jpg"}, "images[1]", "has the id 2.0; write a whole number"),
        ({"id": 2, "file_name": "images\\b.jpg"}, "images[1]", "'images\\\\b.jpg'; replace each backslash with /"),
        ("b.jpg", "images[1]", "has no id"),
        ({"id": 1, "file_name": "b.jpg"}, "images[1]", "has the id 1 of another image"),
        ({"id": 2}, "images[1]", "has no file_name"),
        ({"id": 2, "file_name": "../../etc/passwd"}, "images[1]", "leaves the folder of images"),
        ({"id": 2, "file_name": "/etc/passwd"}, "images[1]", "leaves the folder of images"),
        ({"id": 2, "file_name": "b.jpg", "width": 0}, "images[1]", "has the width 0"),
        ({"id": 2, "file_name": "a.jpg"}, "image 2", "has the file_name 'a.jpg' of another image"),
    ],
)
def test_a_row_of_images_that_cannot_be_used_is_named(root: Path, row: Any, place: str, message: str) -> None:
    content = tree(annotation())
    content["images"].append(row)
    dataset = load(root, content)
    assert len(dataset.splits["train"]) == 1
    ((name, (problem,)),) = dataset.problems.items()
    assert name == f"instances.json {place}"
    assert str(problem).startswith(f"instances.json: {place} ")
    assert message in problem.reason


def test_an_orphan_annotation_is_named(root: Path) -> None:
    dataset = load(root, tree(annotation(), annotation(image_id=7), annotation(image_id=None), 5))
    assert dataset.problems == {}
    reasons = [str(problem) for problem in dataset.orphans]
    assert [reason.split(",")[0] for reason in reasons] == [
        "instances.json: annotations[1] has image_id 7",
        "instances.json: annotations[2] has image_id None",
        "instances.json: annotations[3] has image_id None",
    ]


def test_annotations_of_a_rejected_image_are_dropped_with_it(root: Path) -> None:
    content = tree(annotation(), annotation(image_id=2), annotation(image_id=2))
    content["images"].append({"id": 2, "file_name": "/etc/passwd"})
    dataset = load(root, content)
    assert list(dataset.problems) == ["instances.json images[1]"]
    assert dataset.orphans == []


@pytest.mark.parametrize(
    ("in_images", "in_annotations"), [(1, "1"), ("1", 1), (1, 1.0), (12345678901234567, "12345678901234567")]
)
def test_an_image_id_of_another_type_is_named_with_the_existing_id(
    root: Path, in_images: Any, in_annotations: Any
) -> None:
    images = [{"id": in_images, "file_name": "a.jpg"}]
    (problem,) = load(root, tree(annotation(image_id=in_annotations), images=images)).orphans
    assert problem.reason.startswith(
        f"annotations[0] has image_id {in_annotations!r}, but images has the id {in_images!r}; write both as the same "
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "needs the lists images, annotations and categories"),
        (tree(images={}), "needs the lists"),
        (tree(categories=[]), "categories is empty"),
        (tree(categories=[{"id": 1}]), r"categories\[0\] needs an id and a name"),
        (tree(categories=[{"id": 1, "name": "\ud800"}]), r"categories\[0\] needs an id and a name"),
        (tree(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), r"categories\[1\] repeats"),
        (tree(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), r"categories\[1\] repeats"),
        (tree(images=[{"id": 1, "file_name": "none.jpg"}]), "none of its first 1 images, such as 'none.jpg'"),
    ],
)
def test_a_file_that_is_not_instances_json_is_refused(root: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(root, content)
    assert "instances.json" in str(caught.value)


# Files, splits, classes


def test_files_of_the_official_folders_are_found_with_their_images(tmp_path: Path) -> None:
    save_image(tmp_path, "train2017/a.jpg")
    save_image(tmp_path, "val2017/b.jpg")
    val = tree(images=[{"id": 5, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT}])
    files = [
        write(tmp_path, tree(annotation()), "annotations/instances_train2017.json"),
        write(tmp_path, val, "annotations/instances_val2017.json"),
    ]
    dataset = read_coco(tmp_path, files)
    assert {split: [source.image_id for source in found] for split, found in dataset.splits.items()} == {
        "train": ["train2017/a.jpg"],
        "val": ["val2017/b.jpg"],
    }
    assert dataset.image_ids == {"train2017/a.jpg": 1, "val2017/b.jpg": 5}
    assert dataset.classes == {1: "person", 3: "dog"}


def test_folders_name_the_split_and_test_files_are_ignored(tmp_path: Path) -> None:
    files = []
    for folder in ("train", "valid", "test"):
        save_image(tmp_path, f"{folder}/a.jpg")
        files.append(write(tmp_path, tree(annotation()), f"{folder}/_annotations.coco.json"))
    dataset = read_coco(tmp_path, files)
    assert {split: [source.image_id for source in found] for split, found in dataset.splits.items()} == {
        "train": ["train/a.jpg"],
        "val": ["valid/a.jpg"],
    }
    assert sorted(dataset.image_ids.values()) == [1, 2]  # both files say 1


@pytest.mark.parametrize(("stored", "named"), [("U\u0308bung", "\u00dcbung"), ("\u00dcbung", "U\u0308bung")])
def test_images_are_found_in_another_unicode_form(tmp_path: Path, stored: str, named: str) -> None:
    save_image(tmp_path, f"images/{stored}.jpg")
    images = [{"id": 1, "file_name": f"{named}.jpg"}, {"id": 2, "file_name": f"{stored}.jpg"}]
    dataset = load(tmp_path, tree(annotation(), images=images))
    (source,) = dataset.splits["train"]
    assert (source.image_id, len(source.read().instances)) == (f"images/{stored}.jpg", 1)
    ((problem,),) = dataset.problems.values()
    assert "of another image" in problem.reason


def test_an_image_in_two_files_of_one_split_is_named_with_both(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path, f"images/{name}")
    second = tree(images=[{"id": 7, "file_name": "b.jpg"}, {"id": 8, "file_name": "./a.jpg"}])
    files = [write(tmp_path, content, name) for content, name in ((tree(), "train_1.json"), (second, "train_2.json"))]
    dataset = read_coco(tmp_path, files)
    assert [source.image_id for source in dataset.splits["train"]] == ["images/a.jpg", "images/b.jpg"]
    ((problem,),) = dataset.problems.values()
    assert str(problem) == (
        "train_2.json: image 8 has the file_name './a.jpg' of another image in train_1.json, whose objects would be "
        "lost; put the image's annotations into one file"
    )


def test_files_of_unknown_splits_are_refused(root: Path) -> None:
    files = [write(root, tree(annotation()), f"{name}.json") for name in ("a", "b")]
    with pytest.raises(DataError, match=r"not clear which instances files are for training: a\.json, b\.json"):
        read_coco(root, files)


def test_files_with_contradicting_classes_are_refused(root: Path) -> None:
    files = [
        write(root, tree(annotation()), "train.json"),
        write(root, tree(categories=[{"id": 3, "name": "cat"}]), "val.json"),
    ]
    with pytest.raises(DataError, match="category id 3 is 'cat' here and 'dog' in another file"):
        read_coco(root, files)


def test_category_ids_that_cannot_be_kept_are_renumbered(root: Path) -> None:
    dataset = load(root, tree(annotation(), categories=[{"id": 3, "name": "dog"}, {"id": 0, "name": "person"}]))
    assert dataset.classes == {1: "person", 2: "dog"}
    assert dataset.splits["train"][0].read().instances[0].class_index == 2


# Run lengths


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_compressed_runs_are_read_as_pycocotools_wrote_them(runs: list[int]) -> None:
    pixels = sum(runs)
    text = mask_utils.frPyObjects({"size": [pixels, 1], "counts": runs}, pixels, 1)["counts"].decode()
    assert decompressed_runs(text) == runs


# Damage of any kind

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), inner),
    max_leaves=5,
)


def paths_into(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(found for key in keys for found in paths_into(value[key], (*path, key)))][:400]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_json_raises_nothing_but_problems(root: Path, data: st.DataObject) -> None:
    content = copy.deepcopy(tree(annotation(), annotation(id=2, segmentation=TWO_FORMS, iscrowd=1)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(paths_into(content)[1:]))
        place: Any = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = data.draw(JSON_VALUES)
    images, problems = [], []
    try:
        images = [source.read() for source in load(root, content).splits["train"]]
    except ProblemError as error:
        problems = [str(problem) for problem in error.problems]
    except DataError as error:
        problems = [str(error)]
    assert all(".json" in problem or "a.jpg" in problem for problem in problems)
    for image in images:
        masks = [mask_utils.decode(instance.rle()) for instance in image.instances]
        assert all(mask.shape == (image.height, image.width) and mask.any() for mask in masks)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=127), max_size=12))
def test_every_text_of_run_lengths_is_read_or_refused(text: str) -> None:
    runs = decompressed_runs(text)
    assert runs is None or all(isinstance(run, int) for run in runs)
