"""Images are found by the names that annotation files give them, and never taken for another."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yolact.formats.image_index import ImageIndex, Match, repair_warnings, split_of


def index(root: Path, *files: str) -> ImageIndex:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return ImageIndex(root)


def find(root: Path, files: list[str], name: str, file: str = "labels.json") -> Match:
    return index(root, *files).find_all([name], file)[name]


@pytest.mark.parametrize(
    ("stored", "name", "repair"),
    [
        ("images/a.jpg", "a.jpg", ""),
        ("Images/train/deep/a.jpg", "a.jpg", ""),
        ("images/a.jpg", "./images/a.jpg", ""),
        ("train2017/a.jpg", "http://images.cocodataset.org/train2017/a.jpg", ""),
        ("a.jpg", "s3://bucket/a.jpg?versionId=7#x", ""),
        ("img/a.jpg", "/home/me/img/a.jpg", "path"),
        ("img/a.jpg", r"C:\Users\me\img\a.jpg", "path"),
        ("img/a.jpg", r"\\server\share\img\a.jpg", "path"),
        ("img/a.jpg", "file:///C:/me/a.jpg", "path"),
        ("img/a.jpg", "../../media/upload/4/a.jpg", "path"),
        ("img/a.jpg", r"img\a.jpg", "backslashes"),
        ("img/a b.jpg", "gs://bucket/img/a%20b.jpg", "percent-encoding"),
        ("img/a.jpg", "/data/local-files/?d=img/a.jpg", ""),
        ("img/a.jpg", "/data/local-files/?d=img%5Ca.jpg", "percent-encoding"),
        ("img/a%20b.jpg", "a%20b.jpg", ""),
        ("img/a.jpg", "IMG/A.JPG", "letter case"),
        ("img/\u00dcbung.jpg", "U\u0308bung.jpg", "Unicode form"),
        ("img/U\u0308bung.jpg", "\u00dcbung.jpg", "Unicode form"),
        ("img/a.jpg", "upload/0ea25924-a.jpg", "prefix"),
        ("img/0ea25924-a.jpg", "0ea25924-a.jpg", ""),
        ("img/a.jpeg", "a.png", "suffix"),
        ("img/a.7.jpeg", "a.7", "suffix"),
    ],
)
def test_a_name_of_any_machine_is_found_and_its_repair_named(
    tmp_path: Path, stored: str, name: str, repair: str
) -> None:
    match = find(tmp_path, [stored, "other/b.jpg"], name)
    assert (match.files, match.repair) == ((stored,), repair)


@pytest.mark.parametrize(
    "name", ["b.jpg", "", "..", "/", "C:", "a.jpg/", "images", "?d=", "labels.json", "a.png", "%00"]
)
def test_a_name_of_no_image_is_not_found(tmp_path: Path, name: str) -> None:
    match = find(tmp_path, ["images/c.jpg", "labels.json"], name)
    assert match.files == ()


def test_files_outside_the_folder_are_never_found(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").touch()
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "images/../../secret.jpg"):
        assert find(tmp_path / "set", ["images/a.jpg"], name).files == ()


def test_the_longest_common_end_decides_between_images_of_one_name(tmp_path: Path) -> None:
    files = ["one/cam/a.jpg", "two/cam/a.jpg"]
    assert find(tmp_path, files, "D:/data/two/cam/a.jpg").files == ("two/cam/a.jpg",)
    assert find(tmp_path, files, "a.jpg").files == tuple(files)
    assert find(tmp_path, files, "cam/a.jpg").files == tuple(files)
    assert find(tmp_path, files, "a.jpg", "two/labels.json").files == ("two/cam/a.jpg",)


def test_the_files_split_decides_between_images_of_one_name(tmp_path: Path) -> None:
    files = ["images/train/a.jpg", "images/val/a.jpg"]
    assert find(tmp_path, files, "a.jpg", "annotations/instances_val.json").files == ("images/val/a.jpg",)
    (tmp_path / "images/train/b.jpg").touch()
    found = ImageIndex(tmp_path).find_all(["a.jpg", "b.jpg"], "annotations/val.json")
    assert found["b.jpg"].files == ()  # missing in val


def test_an_image_of_another_camera_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    found = index(tmp_path, "cam1/a.jpg").find_all(["cam1/a.jpg", "cam2/a.jpg"], "labels.json")
    assert [match.files for match in found.values()] == [("cam1/a.jpg",), ()]
    rivals = index(tmp_path, "cam1/a.jpg").find_all(["x/a.jpg", "y/a.jpg"], "labels.json")
    assert [match.files for match in rivals.values()] == [(), ()]


def test_masks_are_not_taken_for_images(tmp_path: Path) -> None:
    files = ["img/a.png", "masks/a.png", "SegmentationClass/b.png", "instance_masks/c.png"]
    found = index(tmp_path, *files).find_all(["a.png", "b.png", "c.jpg"], "labels.json")
    assert [match.files for match in found.values()] == [("img/a.png",), (), ()]


def test_a_link_to_a_parent_folder_ends(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/back").symlink_to(tmp_path)
    assert find(tmp_path, ["images/a.jpg"], "a.jpg").files == ("images/a.jpg",)


def test_equal_repairs_are_one_warning_with_their_number(tmp_path: Path) -> None:
    names = [f"C:\\me\\{n}.jpg" for n in range(5)] + ["IMG/9.JPG"]
    found = index(tmp_path, *[f"img/{n}.jpg" for n in range(10)]).find_all(names, "labels.json")
    warnings = repair_warnings("labels.json", found)
    assert [warning.kind for warning in warnings] == ["file names: path", "file names: letter case"]
    assert warnings[0].reason.startswith("5 of 6 file names have folders that are not here")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("valid/_annotations.json", "val"),
        ("valset/labels.json", "val"),
        ("trainval.json", None),
    ],
)
def test_a_word_names_the_split(path: str, split: str | None) -> None:
    assert split_of(path) == split


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=30) | st.text("ab./\\:?%d=C ", max_size=20))
def test_any_name_gives_files_of_the_folder_or_none(tmp_path: Path, name: str) -> None:
    files = ["a.jpg", "b/a.jpg", "b/b"]
    found = index(tmp_path, *files) if not (tmp_path / "b").exists() else ImageIndex(tmp_path)
    assert set(found.find_all([name], "labels.json")[name].files) <= set(files)
