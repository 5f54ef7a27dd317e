"""What the sources of a prediction name: files, folders, globs, lists, cameras, standard input, S3."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.servers.servers import s3_server, use_s3
from yolact.errors import DataError
from yolact_ops.prediction.inputs import Input, Names, find_inputs


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")


def found(folder: Path, *sources: str, exclude: Path | None = None) -> list[tuple[str, str]]:
    return [(item.kind, item.file_name) for item in find_inputs(sources, folder / "fetched", exclude)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    touch(root / "b.JPG", root / "a.png", root / "clip.mp4", root / "notes.md", root / ".hidden.png")
    touch(root / "sub" / "c.webp", root / "sub" / "deep" / "d.mov", root / ".cache" / "e.png")
    return root


def test_a_folder_gives_its_images_and_videos_and_those_below(files: Path) -> None:
    assert found(files, str(files)) == [
        ("image", "a.png"),
        ("image", "b.JPG"),
        ("video", "clip.mp4"),
        ("image", "sub/c.webp"),
        ("video", "sub/deep/d.mov"),
    ]


def test_earlier_results_inside_the_folder_are_left_out(files: Path) -> None:
    assert ("image", "sub/c.webp") not in found(files, str(files), exclude=files / "sub")


def test_globs_and_single_files_of_any_suffix(files: Path) -> None:
    assert found(files, str(files / "**" / "*.[pw]*")) == [("image", "a.png"), ("image", "c.webp")]
    assert found(files, str(files / "notes.md"), str(files / "a.png")) == [("image", "notes.md"), ("image", "a.png")]


def test_a_file_with_the_characters_of_a_glob_is_a_file(files: Path) -> None:
    touch(files / "shot [1].png")
    assert found(files, str(files / "shot [1].png")) == [("image", "shot [1].png")]


def test_a_list_names_paths_relative_to_itself_and_a_missing_one_costs_itself(files: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        f"\ufeffin/a.png\n\nin/gone.png\n{files / 'clip.mp4'}\nin/sub\n", encoding="utf-8"
    )
    assert found(tmp_path, str(tmp_path / "list.txt")) == [
        ("image", "a.png"),
        ("image", "gone.png"),
        ("video", "clip.mp4"),
        ("image", "c.webp"),
        ("video", "deep/d.mov"),
    ]


@pytest.mark.parametrize("source", ["camera:2", "/dev/video2"])
def test_cameras_are_devices(tmp_path: Path, source: str) -> None:
    expected = Input("camera", "camera:2", Path("/dev/video2"), "camera2.mp4")
    assert find_inputs([source], tmp_path) == [expected]


def test_standard_input_is_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"bytes")))
    assert find_inputs(["-"], tmp_path) == [Input("image", "standard input", b"bytes", "stdin.jpg")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.png", "gone.png: no such file or folder"),
        ("empty", "empty: no image or video is in this folder"),
        ("*.png", "no image or video matches"),
        ("blank.txt", "blank.txt: has no path"),
        ("binary.txt", "binary.txt: not a text file of paths"),
    ],
)
def test_what_holds_nothing_to_predict_is_named(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataError, match=message.replace("*", r"\*")):
        find_inputs([str(tmp_path / source)], tmp_path / "fetched")


def test_names_are_stems_and_unique_also_without_letter_case() -> None:
    names = Names()
    given = [names.unique(name) for name in ("x/a.png", "y/A.jpg", "a-2.png", "z/a.b.c", f"{'é' * 200}.png", "a.gif")]
    assert given[:4] == ["a", "A-2", "a-2-2", "a.b"]
    assert len(f"{given[4]}_000001_100.png".encode()) <= 255
    assert given[5] == "a-3"


def test_a_prefix_on_s3_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "s3" / "bucket" / "images"
    touch(root / "b.jpg", root / "sub" / "a.mp4", root / "notes.txt")
    with s3_server(tmp_path / "s3") as address:
        use_s3(monkeypatch, address)
        [first, second] = find_inputs(["s3://bucket/images"], tmp_path / "fetched")
        assert (first.kind, first.address, first.file_name) == ("image", "s3://bucket/images/b.jpg", "b.jpg")
        assert (second.kind, second.file_name) == ("video", "sub/a.mp4")
        assert Path(str(first.content)).read_bytes() == b"content"
        with pytest.raises(DataError, match="no image or video"):
            find_inputs(["s3://bucket/images/notes.txt"], tmp_path / "other")
