"""The ingest step: finds the data set, copies what later steps read, and never leaves it incomplete."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kfp.dsl import Dataset

from components.ingest import display, step
from components.ingest.step import run as run_step
from yolact.errors import DataError
from yolact_ops.settings.params import Params

SOURCE_FILES = {
    "JPEGImages/2012_000001.jpg": b"image one",
    "JPEGImages/2012_000002.jpg": b"image two",
    "Annotations/2012_000001.xml": b"<annotation/>",
    "SegmentationClass/2012_000001.png": b"classes",
    "SegmentationObject/2012_000001.png": b"objects",
    "ImageSets/Segmentation/train.txt": b"2012_000001\n",
    "ImageSets/Segmentation/val.txt": b"",
    "ImageSets/Main/train.txt": b"2012_000001\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with VOCdevkit/VOC2012; its files are not real images, which ingest does not check."""
    for name, data in SOURCE_FILES.items():
        path = tmp_path / "source" / "VOCdevkit" / "VOC2012" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "source"


def run(params: Params, *, raw_dir: Path) -> None:
    """The step, with its downloads next to its output."""
    run_step(params, raw_dir=raw_dir, downloads_dir=raw_dir.parent / "downloads")


def with_source(params: Params, source: Path | str) -> Params:
    return params.model_copy(update={"data": params.data.model_copy(update={"source": str(source)})})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("inside", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_a_folder_is_copied_with_any_name_of_its_root(
    params: Params, source: Path, tmp_path: Path, inside: str
) -> None:
    run(with_source(params, source / inside), raw_dir=tmp_path / "raw")
    assert contents(tmp_path / "raw" / "VOCdevkit" / "VOC2012") == SOURCE_FILES
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["VOCdevkit"]


def test_only_what_later_steps_read_is_copied(params: Params, source: Path, tmp_path: Path) -> None:
    (source / "VOCdevkit" / "VOC2012" / "Results").mkdir()
    (source / "VOCdevkit" / "VOC2012" / "Results" / "large.bin").write_bytes(b"x")
    (source / "VOCdevkit" / "notes.txt").write_bytes(b"x")
    run(with_source(params, source), raw_dir=tmp_path / "raw")
    assert contents(tmp_path / "raw" / "VOCdevkit") == {f"VOC2012/{name}": data for name, data in SOURCE_FILES.items()}


def test_annotations_and_split_files_may_be_missing(params: Params, source: Path, tmp_path: Path) -> None:
    voc = source / "VOCdevkit" / "VOC2012"
    shutil.rmtree(voc / "Annotations")
    (voc / "ImageSets" / "Segmentation" / "train.txt").unlink()
    run(with_source(params, source), raw_dir=tmp_path / "raw")
    missing = {"Annotations/2012_000001.xml", "ImageSets/Segmentation/train.txt"}
    assert contents(tmp_path / "raw" / "VOCdevkit" / "VOC2012").keys() == SOURCE_FILES.keys() - missing


def test_all_lists_may_be_missing(params: Params, source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "VOCdevkit" / "VOC2012" / "ImageSets")
    run(with_source(params, source), raw_dir=tmp_path / "raw")
    kept = {name for name in SOURCE_FILES if not name.startswith("ImageSets/")}
    assert contents(tmp_path / "raw" / "VOCdevkit" / "VOC2012").keys() == kept


def test_links_become_files(params: Params, source: Path, tmp_path: Path) -> None:
    image = source / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2012_000002.jpg"
    image.rename(tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    classes = source / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    classes.rename(tmp_path / "classes")
    classes.symlink_to(tmp_path / "classes", target_is_directory=True)
    run(with_source(params, source), raw_dir=tmp_path / "raw")
    assert contents(tmp_path / "raw" / "VOCdevkit" / "VOC2012") == SOURCE_FILES
    assert not any(path.is_symlink() for path in (tmp_path / "raw").rglob("*"))


def test_files_copied_from_a_read_only_folder_can_be_changed_replaced_and_removed(
    params: Params, source: Path, tmp_path: Path
) -> None:
    places = [source, *source.rglob("*")]
    for path in places:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for _ in range(2):
            run(with_source(params, source), raw_dir=tmp_path / "out" / "raw")
    finally:
        for path in places:
            path.chmod(0o755)
    copies = list((tmp_path / "out").rglob("*"))
    assert contents(tmp_path / "out/raw/VOCdevkit/VOC2012") == SOURCE_FILES
    assert [path for path in copies if path.stat().st_mode & 0o700 != (0o700 if path.is_dir() else 0o600)] == []
    shutil.rmtree(tmp_path / "out")  # fails for an ordinary user where a folder is read-only


def test_a_link_to_a_parent_folder_is_not_followed(params: Params, source: Path, tmp_path: Path) -> None:
    voc = source / "VOCdevkit" / "VOC2012"
    (voc / "JPEGImages" / "up").symlink_to(voc, target_is_directory=True)
    run(with_source(params, source), raw_dir=tmp_path / "raw")
    assert contents(tmp_path / "raw" / "VOCdevkit" / "VOC2012") == SOURCE_FILES


def test_links_in_a_circle_are_followed_once(params: Params, source: Path, tmp_path: Path) -> None:
    images = source / "VOCdevkit" / "VOC2012" / "JPEGImages"
    other = tmp_path / "other"
    other.mkdir()
    (other / "more.jpg").write_bytes(b"more")
    (other / "back").symlink_to(images, target_is_directory=True)
    (images / "on").symlink_to(other, target_is_directory=True)
    run(with_source(params, source), raw_dir=tmp_path / "raw")
    found = contents(tmp_path / "raw" / "VOCdevkit" / "VOC2012")
    assert found == SOURCE_FILES | {"JPEGImages/on/more.jpg": b"more"}


def test_a_second_run_gives_the_same_files_and_drops_stale_ones(params: Params, source: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    run(with_source(params, source), raw_dir=raw)
    (raw / "VOCdevkit" / "VOC2012" / "JPEGImages" / "stale.jpg").write_bytes(b"x")
    run(with_source(params, source), raw_dir=raw)
    assert contents(raw / "VOCdevkit" / "VOC2012") == SOURCE_FILES


def test_the_sample_is_generated_into_the_same_place_with_the_same_bytes(params: Params, tmp_path: Path) -> None:
    few = params.data.sample.model_copy(update={"train_images": 2, "val_images": 1})
    params = params.model_copy(update={"data": params.data.model_copy(update={"source": "sample", "sample": few})})
    run(params, raw_dir=tmp_path / "raw")
    first = contents(tmp_path / "raw")
    run(params, raw_dir=tmp_path / "raw")
    assert contents(tmp_path / "raw") == first
    assert len([name for name in first if name.startswith("VOCdevkit/VOC2012/JPEGImages/")]) == 3


def test_the_summary_counts_files_and_bytes(
    params: Params, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=step.__name__):
        run(with_source(params, source), raw_dir=tmp_path / "raw")
    (line,) = [record.getMessage() for record in caplog.records if record.name == step.__name__]
    assert f"{source}: {len(SOURCE_FILES)} files, {sum(map(len, SOURCE_FILES.values()))} bytes" in line


@pytest.mark.parametrize("reference", [None, "abc"])
def test_kubeflow_shows_the_size_of_files_but_none_of_a_reference(
    params: Params, source: Path, tmp_path: Path, reference: str | None
) -> None:
    raw = Dataset(uri=str(tmp_path / "raw"), metadata={})
    given = with_source(params, source)
    run_step(given, raw_dir=Path(raw.path), downloads_dir=tmp_path / "downloads", reference=reference)
    display.describe(raw, given, "abc")
    shown = {"source": str(source), "fingerprint": "abc"}
    sizes = [len(content) for content in contents(tmp_path / "raw").values()]
    assert raw.metadata == shown | ({"by_reference": True} if reference else {"files": len(sizes), "bytes": sum(sizes)})


def test_a_missing_source_is_named_with_what_is_supported(params: Params, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.source: '.*nowhere' does not exist .*sample; voc2012; sbd; a folder"):
        run(with_source(params, tmp_path / "nowhere"), raw_dir=tmp_path / "raw")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/voc.tar", "unknown kind.*Supported are"),
        ("s3:///voc.tar", "names no bucket"),
        ("dvc:repository", "lacks a part.*#data/images@v2"),
        ("dvc:repository#path", "lacks a part"),
        ("dvc:--upload-pack=x#path@v1", "can begin with '-'"),
    ],
)
def test_a_misspelled_source_is_refused_with_the_right_spelling(
    params: Params, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run(with_source(params, text), raw_dir=tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_folder_that_lacks_a_part_of_its_format_is_refused_with_its_name(
    params: Params, source: Path, tmp_path: Path
) -> None:
    shutil.rmtree(source / "VOCdevkit" / "VOC2012" / "SegmentationObject")
    with pytest.raises(DataError) as caught:
        run(with_source(params, source), raw_dir=tmp_path / "raw")
    message = str(caught.value)
    assert f"{source / 'VOCdevkit' / 'VOC2012'} has no folder SegmentationObject, which PASCAL VOC needs" in message
    assert not (tmp_path / "raw").exists()


def test_an_unreadable_file_is_named_and_the_old_output_is_kept(params: Params, source: Path, tmp_path: Path) -> None:
    raw = tmp_path / "out" / "raw"
    run(with_source(params, source), raw_dir=raw)
    image = source / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2012_000002.jpg"
    image.unlink()
    image.symlink_to(source / "gone.jpg")  # even root cannot read it
    with pytest.raises(DataError, match=r"(?s)1 files below .*JPEGImages.*2012_000002\.jpg: .*No such file"):
        run(with_source(params, source), raw_dir=raw)
    assert contents(raw / "VOCdevkit" / "VOC2012") == SOURCE_FILES
    assert [path.name for path in raw.parent.iterdir()] == ["raw"]


def test_nothing_is_left_when_the_copy_is_interrupted(
    params: Params, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def broken_off(origin: str, target: str) -> None:
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(target)
        Path(target).write_bytes(Path(origin).read_bytes())

    monkeypatch.setattr(shutil, "copyfile", broken_off)
    with pytest.raises(KeyboardInterrupt):
        run(with_source(params, source), raw_dir=tmp_path / "out" / "raw")
    assert len(copied) == 3
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("raw", ["source", "source/VOCdevkit", "source/VOCdevkit/VOC2012", "."])
def test_a_source_inside_the_output_is_refused_and_kept(params: Params, source: Path, tmp_path: Path, raw: str) -> None:
    with pytest.raises(DataError, match="the same folder, or one contains the other"):
        run(with_source(params, source), raw_dir=tmp_path / raw)
    assert contents(source / "VOCdevkit" / "VOC2012") == SOURCE_FILES


def test_an_output_inside_the_source_or_behind_a_link_to_it_is_refused(
    params: Params, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="the same folder, or one contains the other"):
        run(with_source(params, source), raw_dir=source / "VOCdevkit" / "VOC2012" / "JPEGImages" / "raw")
    (tmp_path / "link").symlink_to(source, target_is_directory=True)
    with pytest.raises(DataError, match="the same folder, or one contains the other"):
        run(with_source(params, tmp_path / "link"), raw_dir=source)
    assert contents(source / "VOCdevkit" / "VOC2012") == SOURCE_FILES


def test_the_command_prints_the_error_and_exits_with_1(repository: Path, tmp_path: Path) -> None:
    settings = (repository / "conf" / "base.yaml").read_text(encoding="utf-8")
    assert settings.count("source: sample ") == 1
    (tmp_path / "params.yaml").write_text(settings.replace("source: sample ", "source: nowhere "), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-m", "components.ingest.step"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "ingest failed: data.source: 'nowhere' does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_under_dvc_repro_a_failure_says_how_to_restore_the_data(repository: Path, source: Path, tmp_path: Path) -> None:
    """Real DVC removes `data/raw` before it runs the step's command, so nothing is left after a failure."""
    settings = (repository / "conf" / "base.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(settings.replace("source: sample ", f"source: {source} "), encoding="utf-8")
    stage = "{cmd: python -m components.ingest.step, params: [data.source], outs: [data/raw]}"
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  ingest: {stage}\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(repository), "DVC_NO_ANALYTICS": "1", "PATH": path}

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert call("dvc", "init", "-q", "--no-scm").returncode == 0
    assert call("dvc", "repro").returncode == 0
    source.rename(tmp_path / "moved")
    alone = call(sys.executable, "-m", "components.ingest.step")
    assert (alone.returncode, "dvc checkout" in alone.stderr) == (1, False)  # data/raw is still there
    failed = call("dvc", "repro", "--force")
    assert failed.returncode != 0
    assert "does not exist" in failed.stderr
    assert "Restore the earlier data with `dvc checkout data/raw`" in failed.stderr
    assert not (tmp_path / "data/raw").exists()
    assert call("dvc", "checkout", "data/raw").returncode == 0
    assert contents(tmp_path / "data/raw/VOCdevkit/VOC2012") == SOURCE_FILES


def test_real_images_are_copied_byte_for_byte(params: Params, voc_mini: Path, tmp_path: Path) -> None:
    run(with_source(params, voc_mini), raw_dir=tmp_path / "raw")
    for folder in ("JPEGImages", "SegmentationObject"):
        origin, copy = (root / "VOCdevkit" / "VOC2012" / folder for root in (voc_mini, tmp_path / "raw"))
        assert digests(origin) == digests(copy)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
