"""COCO data sets from any source: which files, which images, which classes, and a report of every problem."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from tests.yolact.formats.coco_sets import (
    HEIGHT,
    SQUARE,
    TWO_FORMS,
    WIDTH,
    annotation,
    image_ids,
    kinds,
    load,
    save_image,
    tree,
    write,
)
from yolact.errors import DataError
from yolact.formats.coco import read_coco
from yolact.formats.dataset import ReadOptions
from yolact.formats.problems import ProblemError
from yolact.formats.registry import read_dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_image(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("row", "place", "message"),
    [
        ({"file_name": "b.jpg"}, "images[1]", "has no id"),
        ({"id": True, "file_name": "b.jpg"}, "images[1]", "has the id True; write a whole number"),
        ({"id": 2.5, "file_name": "b.jpg"}, "images[1]", "has the id 2.5; write a whole number"),
        ("b.jpg", "images[1]", "has no id"),
        ({"id": 1, "file_name": "b.jpg"}, "images[1]", "has the id 1 of another image"),
        ({"id": 2}, "images[1]", "has no file_name"),
        ({"id": 2, "file_name": "../../etc/passwd"}, "image 2", "there is no such file"),
        ({"id": 2, "file_name": "/etc/passwd"}, "image 2", "there is no such file"),
        ({"id": 2, "file_name": "b.jpg"}, "image 2", "there is no such file"),
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


def test_each_annotation_of_no_image_is_a_problem(root: Path) -> None:
    orphans = [annotation(image_id=7), annotation(image_id="7"), annotation(image_id=8), annotation(image_id=None), 5]
    dataset = load(root, tree(annotation(), *orphans))
    assert dataset.problems == {}
    assert [problem.reason.split(",")[0].split(";")[0] for problem in dataset.orphans] == [
        *["an annotation has image_id 7"] * 2,
        "an annotation has image_id 8",
        *["an annotation has no image_id"] * 2,
    ]


def test_annotations_of_a_rejected_image_are_dropped_with_it(root: Path) -> None:
    content = tree(annotation(), annotation(image_id=2), annotation(image_id=2))
    content["images"].append({"id": 2})
    dataset = load(root, content)
    assert list(dataset.problems) == ["instances.json images[1]"]
    assert dataset.orphans == []


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
        (tree(images=[{"id": 1, "file_name": "none.jpg"}]), "none of its 1 images is found below .*'none.jpg'"),
        (tree(annotation(segmentation=[]), annotation(segmentation=None)), "none of its 2 annotations has an outline"),
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
    dataset = read_coco(tmp_path, files, ReadOptions())
    assert {split: [source.image_id for source in found] for split, found in dataset.splits.items()} == {
        "train": ["train2017/a.jpg"],
        "val": ["val2017/b.jpg"],
    }
    assert dataset.image_ids == {"train2017/a.jpg": 1, "val2017/b.jpg": 5}
    assert dataset.classes == {1: "person", 3: "dog"}


def test_keypoints_are_read_if_there_is_no_other_file(tmp_path: Path) -> None:
    save_image(tmp_path, "val2017/a.jpg")
    write(tmp_path, tree(annotation(keypoints=[1, 1, 2])), "annotations/person_keypoints_val2017.json")
    assert image_ids(read_dataset(tmp_path)) == {"train": ["val2017/a.jpg"]}
    write(tmp_path, tree(annotation(), annotation()), "annotations/instances_val2017.json")
    (source,) = read_dataset(tmp_path).splits["train"]
    assert len(source.read().instances) == 2


def test_images_that_are_still_packed_are_named(root: Path) -> None:
    (root / "images.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of its 1 images is found .* Unpack images\.zip in its folder\."):
        load(root, tree(images=[{"id": 1, "file_name": "none.jpg"}]))


def test_folders_name_the_split(tmp_path: Path) -> None:
    files = []
    for folder in ("train", "valid", "test"):
        save_image(tmp_path, f"{folder}/a.jpg")
        files.append(write(tmp_path, tree(annotation()), f"{folder}/_annotations.coco.json"))
    dataset = read_coco(tmp_path, files, ReadOptions())
    assert image_ids(dataset) == {"train": ["train/a.jpg"], "val": ["valid/a.jpg"], "test": ["test/a.jpg"]}
    assert sorted(dataset.image_ids.values()) == [1, 2, 3]  # all files say 1
    without = read_coco(tmp_path, files, ReadOptions(splits=("train", "val")))
    assert image_ids(without) == {"train": ["train/a.jpg"], "val": ["valid/a.jpg"]}


def test_files_that_list_the_same_images_are_refused_with_the_setting_that_chooses(root: Path) -> None:
    files = [write(root, tree(annotation()), name) for name in ("a.json", "a_old.json")]
    with pytest.raises(DataError, match=r"list the same images, such as .*data\.annotations, as \[a\.json\]"):
        read_coco(root, files, ReadOptions())
    for chosen in (["a.json"], ["source/a.json"], ["*a.json"], {"train": ["a.json"]}):
        dataset = read_coco(root, files, ReadOptions(annotations=chosen))
        assert image_ids(dataset) == {"train": ["images/a.jpg"]}
    with pytest.raises(DataError, match=r"no JSON file below .* is 'b\.json'\. There are: a\.json, a_old\.json"):
        read_coco(root, files, ReadOptions(annotations=["b.json"]))


def test_data_annotations_says_which_file_is_which_split(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save_image(tmp_path, f"images/{name}.jpg")
    files = [write(tmp_path, tree(images=[{"id": 1, "file_name": f"{n}.jpg"}]), f"{n}.json") for n in ("a", "b", "c")]
    joined = read_coco(tmp_path, files, ReadOptions())
    assert image_ids(joined) == {"train": ["images/a.jpg", "images/b.jpg", "images/c.jpg"]}
    assert kinds(joined) == ["annotation files that are joined"]
    chosen = ReadOptions(annotations={"train": ["a.json"], "val": ["b.json"], "test": ["c.json"]})
    assert image_ids(read_coco(tmp_path, files, chosen)) == {
        "train": ["images/a.jpg"],
        "val": ["images/b.jpg"],
        "test": ["images/c.jpg"],
    }


def test_a_validation_file_alone_is_used_for_training_with_a_warning(tmp_path: Path) -> None:
    save_image(tmp_path, "val2017/a.jpg")
    dataset = read_coco(tmp_path, [write(tmp_path, tree(), "annotations/instances_val2017.json")], ReadOptions())
    assert image_ids(dataset) == {"train": ["val2017/a.jpg"]}
    assert kinds(dataset) == ["no annotation file for training"]


def test_a_file_without_split_beside_a_validation_file_is_refused_with_the_setting(root: Path) -> None:
    files = [write(root, tree(annotation()), f"{name}.json") for name in ("val", "all")]
    with pytest.raises(DataError, match=r"files is for training: all\.json, val\.json\. Choose by the setting"):
        read_coco(root, files, ReadOptions())


def test_parts_with_the_same_ids_and_names_are_joined_each_with_its_own_images(tmp_path: Path) -> None:
    """As Supervisely exports a project of two data sets."""
    files = []
    for colour, part in (("grey", "ds0"), ("red", "ds1")):
        save_image(tmp_path, f"{part}/images/a.jpg", colour=colour)
        files.append(write(tmp_path, tree(annotation()), f"{part}/annotations/instances.json"))
    dataset = read_coco(tmp_path, files, ReadOptions())
    assert image_ids(dataset) == {"train": ["ds0/images/a.jpg", "ds1/images/a.jpg"]}
    assert sorted(dataset.image_ids.values()) == [1, 2]
    save_image(tmp_path, "ds1/images/a.jpg")  # the same bytes as in the other part
    with pytest.raises(DataError, match="list the same images"):
        read_coco(tmp_path, files, ReadOptions())


def test_several_rows_of_one_image_are_joined(root: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "./a.jpg"}, {"id": 2, "file_name": "./a.jpg"}]
    dataset = load(root, tree(annotation(), annotation(id=2, image_id=2, category_id=1), images=images))
    (source,) = dataset.splits["train"]
    assert [instance.class_index for instance in source.read().instances] == [2, 1]
    assert kinds(dataset) == ["repeated row of images", "image in several rows"]


@pytest.mark.parametrize("key", ["coco_url", "flickr_url", "path"])
def test_an_image_without_file_name_is_found_by_its_address(root: Path, key: str) -> None:
    content = tree(annotation(), images=[{"id": 1, "file_name": None, key: "http://host.example/images/a.jpg"}])
    dataset = load(root, content)
    assert image_ids(dataset) == {"train": ["images/a.jpg"]}
    assert kinds(dataset) == ["no file_name"]


def test_outlines_of_larger_images_are_refused_if_no_size_is_stated(root: Path) -> None:
    large = [[4 * value for value in SQUARE[0]]]
    with pytest.raises(DataError, match="outlines lie outside the image in 1 of 1 images, and no width and height"):
        load(root, tree(annotation(segmentation=large), images=[{"id": 1, "file_name": "a.jpg"}]))
    assert load(root, tree(annotation(segmentation=large))).splits  # the stated size agrees with the image


# Crowds

MASK = {"segmentation": TWO_FORMS, "iscrowd": 1}


@pytest.mark.parametrize(
    ("rows", "setting", "crowds", "kind"),
    [
        ([annotation(**MASK)] * 3, "auto", [False] * 3, ["iscrowd read as objects"]),
        ([annotation(**MASK)] * 3, "regions", [True] * 3, []),
        ([annotation(), annotation(), annotation(**MASK)], "auto", [False, False, True], ["many crowd regions"]),
        ([annotation(), annotation(), annotation(**MASK)], "objects", [False] * 3, []),
        ([*[annotation()] * 30, annotation(**MASK)], "auto", [*[False] * 30, True], []),
        (
            [annotation(), annotation(**MASK, attributes={"occluded": False})],
            "auto",
            [False] * 2,
            ["iscrowd read as objects"],
        ),
    ],
    ids=["all", "all as regions", "some", "some as objects", "few", "CVAT"],
)
def test_iscrowd_marks_objects_if_most_rows_have_it_or_the_setting_says_so(
    root: Path, rows: list[Any], setting: Any, crowds: list[bool], kind: list[str]
) -> None:
    dataset = load(root, tree(*rows), crowds=setting)
    assert [instance.crowd for instance in dataset.splits["train"][0].read().instances] == crowds
    assert kinds(dataset) == kind


def test_a_tool_for_brush_masks_that_the_file_names_decides_what_iscrowd_marks(root: Path) -> None:
    content = tree(*[annotation()] * 3, annotation(**MASK))
    for info, kind in (({"description": "Exported from CVAT"}, "iscrowd read as objects"), ({}, "many crowd regions")):
        assert kinds(load(root, content | {"info": info})) == [kind]


# Classes


def test_names_decide_where_the_ids_of_files_differ(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_image(tmp_path, f"images/{name}.jpg")
    val = tree(
        annotation(category_id=0),
        images=[{"id": 1, "file_name": "b.jpg"}],
        categories=[{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}],
    )
    files = [write(tmp_path, tree(annotation()), "train.json"), write(tmp_path, val, "val.json")]
    dataset = read_coco(tmp_path, files, ReadOptions())
    names = list(dataset.classes.values())
    assert sorted(names) == ["cat", "dog", "person"]
    for split in ("train", "val"):
        (instance,) = dataset.splits[split][0].read().instances
        assert names[instance.class_index - 1] == "dog"
    assert "category ids that differ between files" in kinds(dataset)


def test_unused_roots_and_backgrounds_are_no_classes(root: Path) -> None:
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 9, "name": "_background_", "supercategory": "none"},
        {"id": 1, "name": "dog", "supercategory": "pets"},
        {"id": 2, "name": "cat", "supercategory": "pets"},
    ]
    dataset = load(root, tree(annotation(category_id=1), categories=categories))
    assert dataset.classes == {1: "dog", 2: "cat"}
    assert kinds(dataset) == ["category that is only a root"]
    used = load(root, tree(annotation(category_id=0), annotation(category_id=9), categories=categories))
    assert used.classes == {0: "pets", 1: "dog", 2: "cat", 9: "_background_"}
    assert kinds(used) == ["background as a class"]


def test_one_name_with_two_ids_is_one_class(root: Path) -> None:
    categories = [{"id": 0, "name": "dog", "supercategory": "none"}, {"id": 4, "name": "dog", "supercategory": "dog"}]
    dataset = load(root, tree(annotation(category_id=4), categories=categories))
    assert (dataset.classes, dataset.source_category_ids) == ({4: "dog"}, {4: 4})
    assert kinds(dataset) == ["category with several ids"]
    both = load(root, tree(annotation(category_id=4), annotation(id=2, category_id=0), categories=categories))
    assert [instance.class_index for instance in both.splits["train"][0].read().instances] == [1, 1]
    assert "they are merged" in both.warnings[0].reason


def test_category_ids_from_0_are_kept_and_others_renumbered(root: Path) -> None:
    kept = load(root, tree(annotation(), categories=[{"id": 3, "name": "dog"}, {"id": 0, "name": "person"}]))
    assert kept.classes == {0: "person", 3: "dog"}
    assert kept.splits["train"][0].read().instances[0].class_index == 2  # the position among the classes
    categories = [{"id": 3, "name": "dog"}, {"id": "a", "name": "person"}]
    changed = load(root, tree(annotation(), categories=categories))
    assert changed.classes == {1: "dog", 2: "person"}
    assert changed.source_category_ids == {1: 3, 2: "a"}


# Damage of any kind

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5) | st.just("1"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), inner),
    max_leaves=5,
)


def paths_into(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(found for key in keys for found in paths_into(value[key], (*path, key)))][:400]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
