"""YOLO segmentation data sets: data.yaml of several tools, label files, and what is left out."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
import yaml
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

ROBOFLOW = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'no']\n"


def line(number: int, outline: Outline, size: tuple[int, int] = SIZE) -> str:
    return " ".join(
        [str(number), *(f"{side / length:.6f}" for p in outline for side, length in zip(p, size, strict=True))]
    )


@pytest.fixture
def roboflow(tmp_path: Path) -> Path:
    write(tmp_path / "data.yaml", ROBOFLOW)
    for folder, name in (("train", "a"), ("train", "b"), ("valid", "c")):
        save_image(tmp_path / folder / "images" / f"{name}.jpg")
    write(tmp_path / "train/labels/a.txt", f"{line(0, LEFT)}\n{line(1, RIGHT)}\n")
    write(tmp_path / "valid/labels/c.txt", f"{line(1, RIGHT)}\n")
    return tmp_path


def test_roboflows_folders_give_splits_classes_and_masks(roboflow: Path) -> None:
    dataset, images = read_all(roboflow)
    assert dataset.format == "YOLO segmentation"
    assert dict(dataset.classes) == {1: "cat", 2: "no"}  # YAML 1.1 reads `no` as false
    assert ids(dataset) == {"train": ["train/images/a.jpg", "train/images/b.jpg"], "val": ["valid/images/c.jpg"]}
    assert_objects(dataset, images["train/images/a.jpg"], ("cat", mask(LEFT)), ("no", mask(RIGHT)))
    assert_objects(dataset, images["train/images/b.jpg"])  # no label file: no objects
    assert (dataset.warnings, dataset.orphans, dataset.problems) == ([], [], {})


@pytest.mark.parametrize(
    "settings_text",
    [
        "path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: no\n",
        "path: /home/someone/pets  # optional\ntrain: images/train\nval: images/val\nnames: {1: no, 0: cat}\n",
        "train: C:\\Users\\me\\pets\\images\\train\nval: C:\\Users\\me\\pets\\images\\val\nnames: [cat, no]\n",
        "train: [images/train]\nval: [images/val]\nnames: [cat, no]\n",
        "path: .\ntrain: train.txt\nval: val.txt\nnames: [cat, no]\n",
    ],
)
def test_entries_are_folders_lists_or_paths_of_other_machines(tmp_path: Path, settings_text: str) -> None:
    write(tmp_path / "pets.yaml", settings_text)
    write(tmp_path / "train.txt", "data/images/train/a.png\n")
    write(tmp_path / "val.txt", "data/images/val/a.png\n")
    for split in ("train", "val"):
        save_image(tmp_path / f"images/{split}/a.png")
        write(tmp_path / f"labels/{split}/a.txt", line(1, RIGHT))
    dataset, images = read_all(tmp_path)
    assert ids(dataset) == {"train": ["images/train/a.png"], "val": ["images/val/a.png"]}
    assert_objects(dataset, images["images/val/a.png"], ("no", mask(RIGHT)))


def test_label_studios_classes_are_read_from_classes_txt(tmp_path: Path) -> None:
    write(tmp_path / "classes.txt", "cat\nno\n")
    write(tmp_path / "notes.json", '{"categories": [], "info": {}}')
    save_image(tmp_path / "images/1a2b-a.jpg")
    write(tmp_path / "labels/1a2b-a.txt", line(1, LEFT))
    dataset, images = read_all(tmp_path)
    assert ids(dataset) == {"train": ["images/1a2b-a.jpg"]}
    assert_objects(dataset, images["images/1a2b-a.jpg"], ("no", mask(LEFT)))


def test_label_files_may_be_next_to_the_images(tmp_path: Path) -> None:
    write(tmp_path / "obj.names", "cat")
    save_image(tmp_path / "obj_train_data/a.JPG")
    write(tmp_path / "obj_train_data/a.txt", line(0, LEFT))
    dataset, images = read_all(tmp_path)
    assert_objects(dataset, images["obj_train_data/a.JPG"], ("cat", mask(LEFT)))


def test_a_turned_image_has_its_outlines_in_the_upright_frame(roboflow: Path) -> None:
    save_image(roboflow / "train/images/a.jpg", (SIZE[1], SIZE[0]), orientation=6)
    dataset, images = read_all(roboflow)
    upright = images["train/images/a.jpg"].as_upright
    assert upright is not None
    assert upright.upright
    assert_objects(dataset, upright, ("cat", mask(LEFT)), ("no", mask(RIGHT)))


def test_lines_that_are_no_outlines_are_dropped_with_their_kind(roboflow: Path) -> None:
    lines = [
        line(0, LEFT),
        "0 0.5 0.5 0.2 0.2",
        line(7, LEFT),
        line(0, LEFT).replace(" ", ","),
        line(0, LEFT).replace("0.1", "nan"),
        f"{line(0, LEFT)} 0.93",
        line(0, [(10 * x, 10 * y) for x, y in LEFT]),
        "0.0 " + line(0, RIGHT)[2:],
    ]
    write(roboflow / "train/labels/a.txt", "\ufeff" + "\n".join(lines))
    dataset, images = read_all(roboflow)
    image = images["train/images/a.jpg"]
    assert_objects(dataset, image, ("cat", mask(LEFT)), ("cat", mask(RIGHT)))
    assert [(problem.file, problem.reason.split()[1], problem.kind) for problem in image.dropped] == [
        ("train/labels/a.txt", "2", "box without an outline"),
        ("train/labels/a.txt", "3", "class without name"),
        ("train/labels/a.txt", "4", "line that is not numbers"),
        ("train/labels/a.txt", "5", "line that is not numbers"),
        ("train/labels/a.txt", "6", "line that is no outline"),
        ("train/labels/a.txt", "7", "coordinates that are not fractions"),
    ]


def test_boxes_alone_are_refused(roboflow: Path) -> None:
    for label in ("train/labels/a.txt", "valid/labels/c.txt"):
        write(roboflow / label, "0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"boxes only \(5 numbers a line, 2 lines\), but YOLACT learns outlines"):
        read_dataset(roboflow)


@pytest.mark.parametrize(
    ("settings_text", "message"),
    [
        (None, "label files without the names of their classes. Write a file data.yaml there, such as:\n  train: "),
        ("train: ../train/images\nnames: 3\n", "names is neither a list of names nor numbers with names"),
        (ROBOFLOW + "kpt_shape: [17, 3]\n", "these are keypoints"),
        ("train: elsewhere/pictures\nval: valid/images\nnames: [a, b]", "train: elsewhere/pictures: no such folder or"),
        ("train: train/images\nnames: []\n", "without a single object, so it has no classes"),
        ("train: train/images\nnames: [a, '']\n", "a class has the name ''"),
    ],
)
def test_what_cannot_be_decided_is_refused(roboflow: Path, settings_text: str | None, message: str) -> None:
    (roboflow / "data.yaml").unlink()
    if settings_text:
        write(roboflow / "data.yaml", settings_text)
    with pytest.raises(DataError) as caught:
        read_dataset(roboflow)
    assert message in str(caught.value)


def test_doubtful_settings_are_warnings(roboflow: Path) -> None:
    write(roboflow / "data.yaml", "train: train/images\nval: train/images\nnc: 3\nnames: [cat, cat]\n")
    dataset, images = read_all(roboflow)
    assert ids(dataset) == {"train": ["train/images/a.jpg", "train/images/b.jpg"]}
    assert [warning.kind for warning in dataset.warnings] == [
        "nc and names differ",
        "one split named twice",
        "images in no split",
    ]
    assert_objects(dataset, images["train/images/a.jpg"], ("cat", mask(LEFT)), ("cat", mask(RIGHT)))


def test_validation_images_that_are_not_here_are_a_warning(roboflow: Path) -> None:
    write(roboflow / "data.yaml", "train: train/images\nval: gone/images\nnames: [cat, no]\n")
    dataset = read_dataset(roboflow)
    assert list(dataset.splits) == ["train"]
    assert "names gone/images for val, which is not here" in dataset.warnings[0].reason


def test_a_label_file_without_image_is_an_orphan(roboflow: Path) -> None:
    write(roboflow / "train/labels/gone.txt", line(0, LEFT))
    write(roboflow / "train/labels/classes.txt", "cat\nno\n")
    assert [orphan.file for orphan in read_dataset(roboflow).orphans] == ["train/labels/gone.txt"]


def test_a_missing_image_of_a_list_is_a_problem(roboflow: Path) -> None:
    write(roboflow / "train.txt", "./train/images/a.jpg\n./train/images/gone.jpg\n")
    write(roboflow / "data.yaml", "train: train.txt\nnames: [cat, no]\n")
    dataset = read_dataset(roboflow)
    assert ids(dataset) == {"train": ["train/images/a.jpg"]}
    assert (
        "names the image './train/images/gone.jpg'" in dataset.problems["train.txt ./train/images/gone.jpg"][0].reason
    )


def test_two_data_sets_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "data.yaml", f"train: images\nnames: [{name}]\n")
        save_image(tmp_path / name / "images/a.jpg")
        write(tmp_path / name / "labels/a.txt", line(0, LEFT))
    with pytest.raises(DataError, match="more than one data set"):
        read_dataset(tmp_path)


WORDS = st.sampled_from(["0", "1", "0.5", "-1", "1e308", "-1e308", "nan", "inf", "1e-300", "x", "0,5", "١", "9" * 400])


@settings(deadline=None, max_examples=30)
@given(
    lines=st.lists(st.lists(WORDS, max_size=12), max_size=5),
    noise=st.binary(max_size=40),
)
def test_any_label_file_gives_objects_and_dropped_lines(lines: list[list[str]], noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "data.yaml", "train: images\nnames: [cat, no]\n")
        for image in "ab":
            save_image(root / f"images/{image}.png")
        write(root / "labels/a.txt", line(0, LEFT))
        write(root / "labels/b.txt", "\n".join(" ".join(words) for words in lines).encode() + b"\n" + noise)
        dataset = read_dataset(root)
        a, b = dataset.splits["train"]
        assert len(a.read().instances) == 1
        with contextlib.suppress(ProblemError):
            image = b.read()
            assert len(image.instances) + len(image.dropped) <= len(lines) + len(noise.split()) + 1


TEXTS = st.recursive(
    st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@settings(deadline=None, max_examples=30)
@given(
    values=st.dictionaries(st.sampled_from(["train", "val", "path", "names", "nc"]), TEXTS),
    noise=st.sampled_from(["", "[" * 5000, "a: &a [*a]", "\tx", "{{", "names: [a]\n"]),
)
def test_any_data_yaml_gives_a_data_set_or_a_message(values: dict[str, object], noise: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "data.yaml", yaml.safe_dump(values) + noise)
        save_image(root / "images/a.png")
        write(root / "labels/a.txt", line(0, LEFT))
        with contextlib.suppress(DataError):
            assert len(read_dataset(root).image_ids) <= 1
