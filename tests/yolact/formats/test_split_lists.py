"""Lists of images that `data.split` names, in formats with and without lists of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.yolact.formats.coco_sets import annotation, image_ids, save_image, tree, write
from yolact.errors import DataError
from yolact.formats.dataset import Dataset, ReadOptions, Split
from yolact.formats.registry import dataset_files, read_dataset
from yolact.formats.split_lists import divided

NAMES = ("cam0/a", "cam0/b", "cam1/a", "cam1/c")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO file without splits, of four images of which two have the same name."""
    rows = [{"id": k, "file_name": f"{name}.jpg", "width": 12, "height": 8} for k, name in enumerate(NAMES)]
    write(tmp_path, tree(*(annotation(id=k, image_id=k) for k in range(4)), images=rows))
    for name in NAMES:
        save_image(tmp_path, f"{name}.jpg", colour="navy" if "cam0" in name else "green")
    return tmp_path


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A VOC folder: `a` and `b` listed for training, `c` for validation, `d` in no list; `e` has no mask."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    mask = np.zeros((8, 12), dtype=np.uint8)
    mask[2:6, 2:6] = 1
    for name in "abcde":
        Image.new("RGB", (12, 8)).save(root / f"JPEGImages/{name}.jpg")
        if name != "e":
            for folder in ("SegmentationClass", "SegmentationObject"):
                Image.fromarray(mask).save(root / folder / f"{name}.png")
    add_list(root, "ImageSets/Segmentation/train.txt", "a", "b")
    add_list(root, "ImageSets/Segmentation/val.txt", "c")
    return root


def add_list(root: Path, file: str, *lines: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read(root: Path, lists: Mapping[Split, list[str]]) -> Dataset:
    return read_dataset(root, ReadOptions(class_names=["thing"], lists=lists))


def doubts(dataset: Dataset) -> list[str]:
    return [str(warning) for warning in dataset.warnings if "list" in warning.kind]


def test_a_list_names_images_by_path_or_by_the_end_of_it(coco: Path) -> None:
    add_list(coco, "lists/val.txt", r"D:\project\cam0\b.jpg", "/data/set/cam1/a.jpg")
    add_list(coco, "lists/test.txt", "c")
    dataset = read(coco, {"val": ["lists/val.txt"], "test": ["lists/test.txt"]})
    assert image_ids(dataset) == {
        "train": ["cam0/a.jpg"],
        "val": ["cam0/b.jpg", "cam1/a.jpg"],
        "test": ["cam1/c.jpg"],
    }
    assert doubts(dataset) == []


def test_several_lists_of_one_split_are_joined_and_lists_for_training_leave_the_others_out(coco: Path) -> None:
    add_list(coco, "one.txt", "cam0/a", "cam0/b")
    add_list(coco, "two.txt", "cam0/b", "cam1/a")
    dataset = read(coco, {"train": ["one.txt", "two.txt"]})
    assert image_ids(dataset) == {"train": ["cam0/a.jpg", "cam0/b.jpg", "cam1/a.jpg"]}
    assert doubts(dataset) == [".: images in no list of data.split are not used: 1"]


def test_a_path_may_begin_above_the_data_or_be_only_the_file(voc: Path) -> None:
    add_list(voc, "ImageSets/Segmentation/held.txt", "b")
    for path in (
        "VOC2012/ImageSets/Segmentation/held.txt",
        r"ImageSets\Segmentation\held.txt",
        "Segmentation/held.txt",
    ):
        dataset = read(voc.parent, {"test": [path]})
        assert image_ids(dataset) == {"train": ["a"], "val": ["c"], "test": ["b"]}


def test_voc_lists_of_the_source_count_unless_the_setting_replaces_them(voc: Path) -> None:
    add_list(voc, "mine.txt", "c", "d")
    assert image_ids(read(voc, {"val": ["mine.txt"]})) == {"train": ["a", "b"], "val": ["c", "d"]}
    assert image_ids(read(voc, {"train": ["mine.txt"]})) == {"train": ["c", "d"]}  # `c` is in one split only
    assert image_ids(read(voc, {"test": ["mine.txt"]})) == {"train": ["a", "b"], "test": ["c", "d"]}


def test_two_lists_of_one_split_are_refused_with_the_setting_that_chooses(voc: Path) -> None:
    (voc / "ImageSets/Segmentation/train.txt").unlink()
    for name, lines in (("train_small", "a"), ("train_large", "ab")):
        add_list(voc, f"ImageSets/Segmentation/{name}.txt", *lines)
    with pytest.raises(
        DataError, match=r"both lists of split 'train'\. Choose by the setting data\.split\.train, as \["
    ):
        read_dataset(voc)
    chosen = read(voc, {"train": ["ImageSets/Segmentation/train_large.txt"]})
    assert image_ids(chosen) == {"train": ["a", "b"], "val": ["c"]}


def test_a_test_list_of_the_source_is_read_and_can_be_left_out(voc: Path) -> None:
    add_list(voc, "ImageSets/Segmentation/test.txt", "d")
    own = ReadOptions(class_names=["thing"])
    assert image_ids(read_dataset(voc, own)) == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    without = replace(own, splits=("train", "val"))
    assert image_ids(read_dataset(voc, without)) == {"train": ["a", "b"], "val": ["c"]}
    for name in ("train", "val"):
        (voc / f"ImageSets/Segmentation/{name}.txt").unlink()
    assert image_ids(read_dataset(voc, own)) == {"test": ["d"], "train": ["a", "b", "c"]}


def test_lines_that_name_no_annotated_image_are_counted(voc: Path) -> None:
    add_list(voc, "mine.txt", "a", "e", "nowhere")
    dataset = read(voc, {"val": ["mine.txt"]})
    assert image_ids(dataset)["val"] == ["a"]
    assert doubts(dataset) == ["mine.txt: 2 of 3 lines name no annotated image, such as 'e'"]


@pytest.mark.parametrize(
    ("lines", "path", "reason"),
    [
        (("a",), "mine.txt", r"mine.txt: 'a' may be cam0/a.jpg or cam1/a.jpg. Write its folder too"),
        (("x", "y"), "mine.txt", r"mine.txt: none of its 2 lines names an image of the data set, as 'x'"),
        ((), "mine.txt", r"mine.txt: empty"),
        (("cam0/a",), "other.txt", r"data.split.val: there is no list 'other.txt' below .* Its text files: .*mine.txt"),
        (("cam0/a",), "../..", r"there is no list '../..' below"),
        (("cam0/a",), "same.txt", r"data.split.val: 'same.txt' may be .*one/same.txt or .*two/same.txt"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(coco: Path, lines: tuple[str, ...], path: str, reason: str) -> None:
    add_list(coco, "mine.txt", *lines)
    add_list(coco, "one/same.txt", "cam0/a")
    add_list(coco, "two/same.txt", "cam0/b")
    with pytest.raises(DataError, match=reason):
        read(coco, {"val": [path]})


def test_lists_that_leave_nothing_for_training_are_refused(coco: Path) -> None:
    add_list(coco, "all.txt", *NAMES)
    with pytest.raises(DataError, match=r"the lists of data\.split leave no image for training"):
        read(coco, {"test": ["all.txt"]})


def test_a_list_in_a_folder_of_its_own_is_copied_with_the_data(voc: Path, tmp_path: Path) -> None:
    add_list(voc, "lists/held.txt", "b")
    (files,) = dataset_files(voc)
    for name in files.names:
        if (files.origin / name).is_file():
            (tmp_path / "raw" / files.target / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "raw" / files.target / name).write_bytes((files.origin / name).read_bytes())
    assert (tmp_path / "raw/VOCdevkit/VOC2012/lists/held.txt").read_text() == "b\n"


def test_images_with_one_name_and_two_suffixes_can_both_be_listed(coco: Path) -> None:
    rows = [
        {"id": k, "file_name": name, "width": 12, "height": 8} for k, name in enumerate(("x.jpg", "x.png", "y.jpg"))
    ]
    write(coco, tree(*(annotation(id=k, image_id=k) for k in range(3)), images=rows))
    for row in rows:
        save_image(coco, str(row["file_name"]))
    add_list(coco, "val.txt", "x.jpg", "x.png")
    assert image_ids(read(coco, {"val": ["val.txt"]})) == {"train": ["y.jpg"], "val": ["x.jpg", "x.png"]}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["train", "val", "test", ""]), min_size=1),
    st.dictionaries(st.sampled_from(["train", "val", "test"]), st.sets(st.sampled_from("abcdef"), min_size=1)),
)
def test_every_image_is_where_a_list_says_or_else_where_the_source_says(
    tmp_path_factory: pytest.TempPathFactory, own: dict[str, str], lists: dict[Split, set[str]]
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    for split, names in lists.items():
        add_list(folder, f"{split}.txt", *sorted(names))
    splits: dict[str, list[Named]] = {}
    for name, split in own.items():
        splits.setdefault(split, []).append(Named(name))
    dataset = Dataset("made up", str(folder), {1: "thing"}, splits, {}, {})
    options: dict[Split, list[str]] = {split: [f"{split}.txt"] for split in lists}
    listed = {name for names in lists.values() for name in names}
    unlisted = {name for name, split in own.items() if name not in listed and (split == "train" or split in lists)}
    if any(names.isdisjoint(own) for names in lists.values()) or not ("train" in lists or unlisted):
        with pytest.raises(DataError, match=r"none of its|leave no image for training"):
            divided(dataset, [folder], options)
        return
    found = {split: set(names) for split, names in image_ids(divided(dataset, [folder], options)).items()}
    for name, split in own.items():
        listed = {other for other, names in lists.items() if name in names}
        rest = "train" if split in lists else split
        expected = listed or ({rest} if rest and rest not in lists else set())
        assert {other for other, names in found.items() if name in names} == expected


class Named:
    """An image of which only the name is asked."""

    def __init__(self, image_id: str) -> None:
        self.image_id = image_id

    def read(self) -> object:
        raise AssertionError("lists are made without reading images")
