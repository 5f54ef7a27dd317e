"""The step `preprocess`: what it writes, what it refuses, and that nothing is ever half-written."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy.io import savemat

from components.preprocess import report
from components.preprocess.report import instances_per_image
from components.preprocess.step import run
from yolact.errors import DataError, SettingsError
from yolact.palette import voc_palette
from yolact_ops.settings.params import Params, SplitConfig, load_params

PERSON, DOG = 15, 12
FOLDERS = {"train": "train", "val": "eval", "test": "eval"}
"""Folder of the processed data by split."""
XML = (
    "<annotation><object><name>{name}</name><truncated>1</truncated><difficult>0</difficult><bndbox><xmin>3</xmin>"
    "<ymin>3</ymin><xmax>{xmax}</xmax><ymax>7</ymax></bndbox></object></annotation>"
)


def save_mask(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())
    image.save(path)


def add_image(root: Path, image_id: str, class_index: int | None, width: int = 4) -> None:
    """A 12 x 10 image; with a class, an object of ``width`` x 5 pixels whose corner is (2, 2)."""
    rng = np.random.default_rng(len(image_id))
    Image.fromarray(rng.integers(0, 255, (10, 12, 3), dtype=np.uint8)).save(root / "JPEGImages" / f"{image_id}.jpg")
    objects = np.zeros((10, 12), dtype=np.uint8)
    if class_index is not None:
        objects[2:7, 2 : 2 + width] = 1
        name = {PERSON: "person", DOG: "dog"}[class_index]
        (root / "Annotations" / f"{image_id}.xml").write_text(XML.format(name=name, xmax=2 + width))
    save_mask(root / "SegmentationObject" / f"{image_id}.png", objects)
    save_mask(root / "SegmentationClass" / f"{image_id}.png", (objects * (class_index or 0)).astype(np.uint8))


def set_split(root: Path, split: str, *image_ids: str) -> None:
    (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in image_ids))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three train images (person 4 wide, dog 6 wide, a negative) and one val image (person 4 wide)."""
    folder = tmp_path / "raw"
    root = folder / "VOCdevkit/VOC2012"
    for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationObject", "SegmentationClass", "Annotations"):
        (root / part).mkdir(parents=True)
    add_image(root, "2007_000001", PERSON)
    add_image(root, "2007_000002", DOG, width=6)
    add_image(root, "2007_000003", None)
    add_image(root, "2008_000001", PERSON)
    set_split(root, "train", "2007_000003", "2007_000001", "2007_000002")
    set_split(root, "val", "2008_000001")
    return folder


@pytest.fixture
def voc(raw: Path) -> Path:
    return raw / "VOCdevkit/VOC2012"


@pytest.fixture
def params(repository: Path) -> Callable[..., Params]:
    base = load_params(repository / "conf" / "base.yaml")

    def with_settings(**settings: Any) -> Params:
        return base.model_copy(update={"data": base.data.model_copy(update=settings)})

    return with_settings


def split(**changes: Any) -> SplitConfig:
    return SplitConfig.model_validate({"train": None, "val": 0.1, "test": 0, "seed": 0} | changes)


@pytest.fixture
def processed(tmp_path: Path) -> Path:
    return tmp_path / "processed"


@pytest.fixture
def preprocess(raw: Path, processed: Path, params: Callable[..., Params]) -> Callable[..., dict[str, Any]]:
    def call(**settings: Any) -> dict[str, Any]:
        run(params(**settings), raw_dir=raw, processed_dir=processed, report_dir=processed.with_name("report"))
        return dict(json.loads((processed / "eval/stats.json").read_text()))

    return call


@pytest.fixture
def preprocess_coco(tmp_path: Path, processed: Path, params: Callable[..., Params]) -> Callable[..., dict[str, Any]]:
    """The same for the folder ``coco``."""

    def call(**settings: Any) -> dict[str, Any]:
        run(params(**settings), raw_dir=tmp_path / "coco", processed_dir=processed, report_dir=tmp_path / "report")
        return dict(json.loads((processed / "eval/stats.json").read_text()))

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_json_and_statistics_are_written(
    preprocess: Callable[..., dict[str, Any]], processed: Path, voc: Path
) -> None:
    stats = preprocess()
    found = contents(processed)
    images = {
        f"train/images/{name}.jpg": (voc / f"JPEGImages/{name}.jpg").read_bytes()
        for name in ("2007_000001", "2007_000002", "2007_000003")
    }
    images["eval/images/2008_000001.jpg"] = (voc / "JPEGImages/2008_000001.jpg").read_bytes()
    assert set(found) == images.keys() | {"train/train.json", "eval/val.json", "eval/stats.json"}
    assert images.items() <= found.items()

    train = json.loads((processed / "train/train.json").read_text())
    assert [image["id"] for image in train["images"]] == [2007000001, 2007000002, 2007000003]
    assert [(a["id"], a["image_id"], a["category_id"], a["bbox"], a["area"]) for a in train["annotations"]] == [
        (1, 2007000001, PERSON, [2, 2, 4, 5], 20),
        (2, 2007000002, DOG, [2, 2, 6, 5], 30),
    ]
    assert all((a["truncated"], a["difficult"]) == (1, 0) for a in train["annotations"])
    assert train["licenses"] == []
    assert len(train["categories"]) == 20

    assert stats["splits"]["train"] == {
        "listed": 3,
        "left_out": 0,
        "images": 3,
        "images_without_instance": 1,
        "images_without_xml": 1,
        "images_turned": 0,
        "images_reduced": 0,
        "images_converted": 0,
        "instances": 2,
        "instances_without_flags": 0,
        "crowds": 0,
        "difficult": 0,
        "truncated": 2,
        "instances_per_image": {"0": 1, "1": 2},
        "image_width": {"min": 12.0, "p25": 12.0, "median": 12.0, "p75": 12.0, "max": 12.0, "mean": 12.0},
        "image_height": {"min": 10.0, "p25": 10.0, "median": 10.0, "p75": 10.0, "max": 10.0, "mean": 10.0},
        "box_width": {"min": 4.0, "p25": 4.5, "median": 5.0, "p75": 5.5, "max": 6.0, "mean": 5.0},
        "box_height": {"min": 5.0, "p25": 5.0, "median": 5.0, "p75": 5.0, "max": 5.0, "mean": 5.0},
        "mask_area": {"min": 20.0, "p25": 22.5, "median": 25.0, "p75": 27.5, "max": 30.0, "mean": 25.0},
    }
    assert stats["classes"]["person"] == {
        "train": {"images": 1, "instances": 1},
        "val": {"images": 1, "instances": 1},
    }
    assert stats["classes"]["cat"]["train"] == {"images": 0, "instances": 0}
    assert (stats["problems"], stats["warnings"]) == ([], [])


def test_same_input_in_another_place_gives_the_same_bytes(
    raw: Path, tmp_path: Path, params: Callable[..., Params]
) -> None:
    run(params(), raw_dir=raw, processed_dir=tmp_path / "first", report_dir=tmp_path / "first-report")
    (tmp_path / "deeper").mkdir()
    (raw / "VOCdevkit/VOC2012").rename(tmp_path / "deeper/mine")
    run(params(), raw_dir=tmp_path / "deeper", processed_dir=tmp_path / "second", report_dir=tmp_path / "second-report")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert contents(tmp_path / "first-report") == contents(tmp_path / "second-report")


def test_digest_follows_images_and_annotations(preprocess: Callable[..., dict[str, Any]], voc: Path) -> None:
    digests = [preprocess()["digest"]]
    add_image(voc, "2007_000001", PERSON, width=5)
    digests.append(preprocess()["digest"])
    image = voc / "JPEGImages/2007_000001.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    digests.append(preprocess()["digest"])
    assert len(set(digests)) == 3
    assert len(digests[0]) == 64


def test_each_split_has_its_own_digest(preprocess: Callable[..., dict[str, Any]], voc: Path) -> None:
    before = preprocess()["split_digests"]
    assert before["train"] != before["val"]
    image = voc / "JPEGImages/2007_000001.jpg"  # in train
    image.write_bytes(image.read_bytes() + b"\0")
    after = preprocess()["split_digests"]
    assert (after["train"] == before["train"], after["val"] == before["val"]) == (False, True)


def damage_image(root: Path, image_id: str) -> None:
    path = root / "JPEGImages" / f"{image_id}.jpg"
    path.write_bytes(path.read_bytes()[:-40])


def test_problems_are_collected_and_stop_the_step(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path
) -> None:
    preprocess()
    before = contents(processed)
    damage_image(voc, "2007_000001")
    (voc / "SegmentationClass/2007_000002.png").unlink()
    (voc / "SegmentationObject/2007_000002.png").unlink()
    with pytest.raises(DataError) as caught:
        preprocess()
    message = str(caught.value)
    assert ": 2 images cannot be used; data.max_problems allows 0." in message
    assert "JPEGImages/2007_000001.jpg: cannot be decoded to its end" in message
    assert "SegmentationObject/2007_000002.png: no such file" in message
    assert "SegmentationClass/2007_000002.png: no such file" in message
    assert "(data.source: sample) and run `dvc repro`, which fetches them." in message
    assert "data.max_problems=2" in message
    assert contents(processed) == before
    assert not list(processed.parent.glob("*.part"))
    assert not list(processed.parent.glob(".*.part"))


def test_as_many_problems_as_allowed_are_skipped_and_listed(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage_image(voc, "2007_000001")
    with caplog.at_level(logging.WARNING):
        stats = preprocess(max_problems=1)
    assert "JPEGImages/2007_000001.jpg: cannot be decoded" in caplog.text
    (problem,) = stats["problems"]
    assert (problem["image"], problem["file"]) == ("2007_000001", "JPEGImages/2007_000001.jpg")
    assert problem["reason"].startswith("cannot be decoded to its end")
    train = stats["splits"]["train"]
    assert (train["listed"], train["left_out"], train["images"], train["instances"]) == (3, 1, 2, 1)
    assert not (processed / "train/images/2007_000001.jpg").exists()
    assert "2007_000001" not in (processed / "train/train.json").read_text()


def test_long_lists_of_problems_are_shortened_in_the_message_and_complete_on_the_page(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path
) -> None:
    set_split(voc, "train", *(f"2009_{number:06}" for number in range(25)))
    for number in range(25):
        (voc / f"SegmentationObject/2009_{number:06}.png").write_bytes(
            (voc / "SegmentationObject/2007_000001.png").read_bytes()
        )
        (voc / f"SegmentationClass/2009_{number:06}.png").write_bytes(
            (voc / "SegmentationClass/2007_000001.png").read_bytes()
        )
    with pytest.raises(DataError) as caught:
        preprocess(max_problems=24)
    message = str(caught.value)
    assert message.count("no such image") == 20
    assert "and 5 more, see " in message
    page = (processed.with_name("report") / "index.html").read_text()
    assert page.count("<td>no such image") == 25
    assert "the data was not written" in page
    assert not processed.exists()


def test_warnings_are_listed_in_the_statistics(preprocess: Callable[..., dict[str, Any]], voc: Path) -> None:
    (voc / "Annotations/2007_000001.xml").write_text("<annotation></annotation>")
    (warning,) = preprocess()["warnings"]
    assert (warning["image"], warning["file"]) == ("2007_000001", "Annotations/2007_000001.xml")
    assert "no box matches the mask of object index 1 (person)" in warning["reason"]


def test_images_without_a_mask_are_counted_in_a_warning(preprocess: Callable[..., dict[str, Any]], voc: Path) -> None:
    for split in ("train", "val"):
        (voc / f"ImageSets/Segmentation/{split}.txt").unlink()
    (voc / "SegmentationObject/2007_000003.png").unlink()
    (warning,) = preprocess()["warnings"]
    assert (warning["image"], warning["file"]) == ("", "JPEGImages")
    assert warning["reason"].startswith("images without a mask in SegmentationObject are not used: 1, such as '2007_")


def test_an_image_whose_name_is_not_utf_8_is_skipped_as_a_problem(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path
) -> None:
    for split in ("train", "val"):
        (voc / f"ImageSets/Segmentation/{split}.txt").unlink()
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationObject", "png"), ("SegmentationClass", "png")):
        (voc / f"{folder}/2007_000003.{suffix}").rename(voc / f"{folder}/\udcdcbung.{suffix}")  # Latin-1
    with pytest.raises(DataError, match=r"\\udcdcbung: has a name that is not UTF-8; rename it .*convmv"):
        preprocess()
    (problem,) = preprocess(max_problems=1)["problems"]
    assert (problem["image"], problem["file"]) == ("\\udcdcbung", "\\udcdcbung")
    assert "udcdcbung" in (processed.with_name("report") / "index.html").read_text()


def test_image_in_both_splits_is_refused(preprocess: Callable[..., dict[str, Any]], voc: Path) -> None:
    set_split(voc, "val", "2008_000001", "2007_000001")
    with pytest.raises(DataError, match="both train and val: 1, such as '2007_000001'"):
        preprocess()


def test_split_without_any_instance_is_refused(preprocess: Callable[..., dict[str, Any]], voc: Path) -> None:
    set_split(voc, "train", "2007_000001", "2007_000002")
    set_split(voc, "val", "2007_000003")
    with pytest.raises(DataError, match="split 'val' has 1 usable images, without any instance"):
        preprocess()


def test_missing_raw_data_names_the_step_to_run(tmp_path: Path, processed: Path, params: Callable[..., Params]) -> None:
    with pytest.raises(DataError, match="Run the step `ingest` first"):
        run(params(), raw_dir=tmp_path / "nothing", processed_dir=processed, report_dir=tmp_path / "report")
    assert not processed.exists()


HANGS_BEFORE_THE_LAST_FILE = """
import sys, time
from pathlib import Path
from components.preprocess import step
from yolact_ops.settings.params import load_params

def hang(path, tree, write=step.write_json_atomic):
    if path.name == "stats.json":
        print("hanging", flush=True)
        time.sleep(600)
    write(path, tree)

step.write_json_atomic = hang
raw, processed = Path(sys.argv[2]), Path(sys.argv[3])
step.run(load_params(sys.argv[1]), raw_dir=raw, processed_dir=processed, report_dir=processed.with_name("report"))
"""


def test_killed_run_leaves_nothing_that_looks_finished_and_the_next_one_works(
    preprocess: Callable[..., dict[str, Any]], repository: Path, raw: Path, processed: Path
) -> None:
    arguments = [str(repository / "conf/base.yaml"), str(raw), str(processed)]
    with subprocess.Popen(
        [sys.executable, "-c", HANGS_BEFORE_THE_LAST_FILE, *arguments],
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGKILL)
    assert not processed.exists()
    (leftover,) = processed.parent.glob(".processed.*.part")
    assert (leftover / "train/train.json").exists()

    preprocess()
    assert set(json.loads((processed / "eval/stats.json").read_text())["splits"]) == {"train", "val"}
    assert not list(processed.parent.glob(".processed.*"))


def test_command_reports_an_error_in_one_message_and_exits_with_1(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((repository / "conf/base.yaml").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "components.preprocess.step"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "preprocess failed: data/raw: no such folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_real_images_convert_and_their_masks_equal_the_png(
    voc_mini: Path, processed: Path, params: Callable[..., Params]
) -> None:
    run(params(), raw_dir=voc_mini, processed_dir=processed, report_dir=processed.with_name("report"))
    root = voc_mini / "VOCdevkit/VOC2012"
    assert json.loads((processed / "eval/stats.json").read_text())["problems"] == []
    for split in ("train", "val"):
        coco = COCO(processed / FOLDERS[split] / f"{split}.json")
        listed = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [f"{n}.jpg" for n in sorted(listed)]
        for image in coco.loadImgs(coco.getImgIds())[:40]:
            stem = Path(image["file_name"]).stem
            objects = np.asarray(Image.open(root / f"SegmentationObject/{stem}.png"))
            classes = np.asarray(Image.open(root / f"SegmentationClass/{stem}.png"))
            indices = sorted(set(np.unique(objects).tolist()) - {0, 255})
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
            assert len(annotations) == len(indices)
            for index, annotation in zip(indices, annotations, strict=True):
                mask = objects == index
                rows, columns = np.nonzero(mask)
                assert np.array_equal(coco.annToMask(annotation), mask)
                assert annotation["area"] == mask.sum()
                assert annotation["bbox"] == [
                    columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1,
                ]  # fmt: skip
                assert set(classes[mask].tolist()) <= {annotation["category_id"], 255}


def test_image_bytes_survive_unusual_jpeg(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path
) -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (12, 10), (10, 200, 30, 40)).save(buffer, "JPEG")
    (voc / "JPEGImages/2007_000001.jpg").unlink()
    (voc / "JPEGImages/2007_000001.JPEG").write_bytes(buffer.getvalue())
    preprocess()
    assert (processed / "train/images/2007_000001.JPEG").read_bytes() == buffer.getvalue()
    assert json.loads((processed / "train/train.json").read_text())["images"][0]["file_name"] == "2007_000001.JPEG"


# Formats, splits, classes, sizes


def picture(width: int, height: int, seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def make_coco(raw: Path, images: int = 40) -> None:
    """One file without a split; all images show class 1 (`red`), each fourth also a square of class 2 (`blue`)."""
    (raw / "images").mkdir(parents=True)
    arrays, annotations = [], []
    for n in range(images):
        name = f"Bild {n} \N{SNOWFLAKE}.JPG"
        picture(40, 30, seed=n).save(raw / "images" / name, "JPEG", quality=92)
        arrays.append({"id": 100 + n, "file_name": name, "width": 40, "height": 30})
        for category in (1, 2) if n % 4 == 0 else (1,):
            x = 15 * category - 13
            outline = [[x, 5, x + 10, 5, x + 10, 15, x, 15]]
            annotations.append({"image_id": 100 + n, "category_id": category, "segmentation": outline})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    tree = {"images": arrays, "annotations": annotations, "categories": categories}
    (raw / "labels.json").write_text(json.dumps(tree))


def make_coco_split(root: Path, name: str) -> Path:
    """`make_coco` of four images whose names begin with that of the split; returns the JSON file."""
    make_coco(root / name, images=4)
    labels = root / name / "labels.json"
    labels.write_text(labels.read_text().replace("Bild", f"{name} Bild"))
    for path in (root / name / "images").iterdir():
        path.rename(path.with_stem(f"{name} {path.stem}"))
    return labels


def load_split(processed: Path, split: str) -> dict[str, Any]:
    return dict(json.loads((processed / FOLDERS[split] / f"{split}.json").read_text()))


def test_a_coco_file_without_split_is_split_by_class(
    params: Callable[..., Params], tmp_path: Path, processed: Path
) -> None:
    make_coco(tmp_path / "coco")
    run(
        params(split=split(val=0.2)), raw_dir=tmp_path / "coco", processed_dir=processed, report_dir=tmp_path / "report"
    )
    stats = json.loads((processed / "eval/stats.json").read_text())
    assert (stats["format"], stats["split_by"]) == ("COCO", {"train": "source", "val": "share"})
    assert stats["classes"] == {
        "red": {"train": {"images": 32, "instances": 32}, "val": {"images": 8, "instances": 8}},
        "blue": {"train": {"images": 8, "instances": 8}, "val": {"images": 2, "instances": 2}},
    }
    ids = [image["id"] for split in ("train", "val") for image in load_split(processed, split)["images"]]
    assert sorted(ids) == list(range(100, 140))
    name = load_split(processed, "val")["images"][0]["file_name"]
    assert (processed / "eval/images" / name).read_bytes() == (tmp_path / "coco/images" / name).read_bytes()


def test_a_share_of_the_images_is_held_out_and_both_shares_are_stratified(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path, processed: Path
) -> None:
    make_coco(tmp_path / "coco")
    stats = preprocess_coco(split=split(val=0.25, test=0.2))
    assert stats["split_by"] == {"train": "source", "val": "share", "test": "share"}
    counts = {name: found["images"] for name, found in stats["splits"].items()}
    assert counts == {"train": 24, "val": 8, "test": 8}  # val is a share of what is not held out
    assert {name: found["instances"] for name, found in stats["classes"]["blue"].items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    names = {name: {image["id"] for image in load_split(processed, name)["images"]} for name in counts}
    assert sum(map(len, names.values())) == len(set.union(*names.values())) == 40
    before = stats["digest"], stats["split_digests"]
    assert set(before[1]) == {"train", "val", "test"}
    text = (tmp_path / "report/index.html").read_text()
    assert "<th>test images</th><th>test objects</th>" in text
    assert "Gallery: test" in text
    preprocess_coco(split=split(val=0.25, test=0.2, seed=1))
    assert json.loads((processed / "eval/stats.json").read_text())["digest"] != before[0]
    preprocess_coco(split=split(val=0.25))
    assert not (processed / "eval/test.json").exists()


def test_a_test_folder_of_the_source_is_held_out_unless_the_setting_says_none(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path, processed: Path
) -> None:
    for name in ("train", "valid", "test"):
        make_coco_split(tmp_path / "coco", name)
    preprocess_coco()
    assert {path.stem for path in processed.glob("*/t*.json")} == {"train", "test"}
    assert all("test Bild" in image["file_name"] for image in load_split(processed, "test")["images"])
    preprocess_coco(split=split(test="none"))
    assert not (processed / "eval/test.json").exists()
    assert not any("test" in path.name for path in processed.glob("*/images/*"))


def test_test_images_without_annotations_are_left_out_with_a_warning(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in VOC 2012, whose test annotations are not published."""
    before = preprocess()
    for name in ("2008_000002", "2008_000003"):
        picture(12, 10, seed=7).save(voc / f"JPEGImages/{name}.jpg")
    add_image(voc, "2008_000003", None)
    set_split(voc, "test", "2008_000002", "2008_000003")
    with caplog.at_level(logging.WARNING):
        after = preprocess()
    assert "none of its 2 images is annotated, so they are not used" in caplog.text
    assert (after["digest"], after["problems"], set(after["splits"])) == (before["digest"], [], {"train", "val"})
    assert len(list(processed.glob("*/images/*"))) == 4
    with pytest.raises(DataError, match=r"2008_000002\.png|split 'test' has"):  # listed by the user: a mistake
        preprocess(split=split(test=["ImageSets/Segmentation/test.txt"]))


def test_a_test_split_whose_annotations_are_wrong_is_not_left_out(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    make_coco_split(tmp_path / "coco", "train")
    labels = make_coco_split(tmp_path / "coco", "test")
    labels.write_text(labels.read_text().replace('"category_id": ', '"category_id": 9'))
    with pytest.raises(DataError, match="5 of 10 objects cannot be used"):
        preprocess_coco()


@pytest.mark.parametrize(
    ("scale", "finding"),
    [(0.6, "outline beyond the edge of its image, cut off there"), (2.0, "no outline reaches the right 5")],
)
def test_images_that_were_resized_after_annotation_are_doubted(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path, scale: float, finding: str
) -> None:
    make_coco(tmp_path / "coco", images=24)
    path = tmp_path / "coco/labels.json"
    content = json.loads(path.read_text())
    for n, image in enumerate(content["images"]):
        image |= {"width": round(40 * scale), "height": round(30 * scale)}
        file = tmp_path / "coco/images" / image["file_name"]
        picture(image["width"], image["height"], seed=n).save(file, "JPEG")
    for n, row in enumerate(content["annotations"]):  # somewhere in images of 40 x 30
        x, y = (0, 0) if n == 0 else (n % 26, n % 20)
        row["segmentation"] = [[x, y, x + 14, y, x + 14, y + 10, x, y + 10]]
    path.write_text(json.dumps(content))
    stats = preprocess_coco(max_dropped=1.0)
    assert [f["severity"] for f in stats["findings"] if f["kind"].startswith(finding)] == ["doubtful"]


def test_objects_of_another_class_with_the_same_mask_are_doubted_but_kept(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    make_coco(tmp_path / "coco", images=8)
    path = tmp_path / "coco/labels.json"
    content = json.loads(path.read_text())
    content["annotations"].append(content["annotations"][0] | {"category_id": 2, "image_id": 103})
    path.write_text(json.dumps(content))
    stats = preprocess_coco()
    (found,) = (f for f in stats["findings"] if f["kind"] == "mask of another object, with another class")
    assert (found["severity"], found["count"]) == ("doubtful", 1)
    assert sum(part["instances"] for part in stats["splits"].values()) == 11  # 8 red, 2 blue, and this one


def test_an_image_in_two_lists_is_refused(preprocess: Callable[..., dict[str, Any]], voc: Path) -> None:
    set_split(voc, "held", "2008_000001", "2007_000001")
    set_split(voc, "check", "2008_000001")
    lists = {"val": ["ImageSets/Segmentation/check.txt"], "test": ["ImageSets/Segmentation/held.txt"]}
    with pytest.raises(DataError, match="images in both val and test: 1, such as '2008_000001'"):
        preprocess(split=split(**lists))


def test_the_settings_choose_the_annotation_file_and_what_iscrowd_marks(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path, processed: Path
) -> None:
    make_coco(tmp_path / "coco", images=8)
    path = tmp_path / "coco/labels.json"
    tree = json.loads(path.read_text())
    for row in tree["annotations"]:
        row["iscrowd"] = row["category_id"] == 2
    (tmp_path / "coco/labels_2.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"list the same images.*data\.annotations, as \[labels\.json\]"):
        preprocess_coco()
    for crowds, count in (("objects", 0), ("regions", 2)):
        preprocess_coco(annotations=["labels_2.json"], crowds=crowds)
        rows = [row for split in ("train", "val") for row in load_split(processed, split)["annotations"]]
        assert sum(row["iscrowd"] for row in rows) == count


def test_images_that_are_all_near_duplicates_are_split_with_a_warning(
    params: Callable[..., Params], tmp_path: Path, processed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_coco(tmp_path / "coco", images=20)
    for path in (tmp_path / "coco/images").iterdir():
        picture(40, 30, seed=0).save(path, "JPEG", quality=92)
    settings = params(split=split(val=0.2))
    with caplog.at_level(logging.WARNING):
        run(settings, raw_dir=tmp_path / "coco", processed_dir=processed, report_dir=tmp_path / "report")
    stats = json.loads((processed / "eval/stats.json").read_text())
    assert [stats["splits"][split]["images"] for split in ("train", "val")] == [16, 4]
    (divided,) = stats["duplicates"]["divided"]
    assert (divided["images"], len(divided["examples"])) == (20, 5)
    assert stats["duplicates"]["across_splits"]["count"] == 64
    assert "20 images: near-duplicates that are too many to keep in one split" in caplog.text
    assert (
        "20 images: near-duplicates that are too many to keep in one split"
        in (tmp_path / "report/index.html").read_text()
    )


def test_a_single_image_with_objects_cannot_be_split_and_the_message_says_to_annotate_more(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    make_coco(tmp_path / "coco", images=5)
    path = tmp_path / "coco/labels.json"
    tree = json.loads(path.read_text())
    tree["annotations"] = tree["annotations"][:1]
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"without any instance\. Only 1 of all images have objects.*annotate objects"):
        preprocess_coco()


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_the_number_of_workers_changes_no_byte(
    params: Callable[..., Params], raw: Path, tmp_path: Path, layout: str
) -> None:
    folder = raw
    if layout == "coco":
        folder = tmp_path / "coco"
        make_coco(folder)
    else:
        for n in range(40):
            add_image(raw / "VOCdevkit/VOC2012", f"2009_{n:06}", DOG, width=3 + n % 5)
        set_split(raw / "VOCdevkit/VOC2012", "train", *(f"2009_{n:06}" for n in range(40)))
    for workers in (1, 2, 3):
        out, report = tmp_path / f"out{workers}", tmp_path / f"report{workers}"
        run(params(), raw_dir=folder, processed_dir=out, report_dir=report, workers=workers)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2") == contents(tmp_path / "out3")
    assert contents(tmp_path / "report1") == contents(tmp_path / "report2")


def test_classes_are_selected_and_renamed(
    params: Callable[..., Params], tmp_path: Path, processed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_coco(tmp_path / "coco")
    settings = params(classes={"blue": "sea"})
    with caplog.at_level(logging.INFO):
        run(settings, raw_dir=tmp_path / "coco", processed_dir=processed, report_dir=tmp_path / "report")
    assert "dropped: 1 class (red (40)): objects of these classes are left out by data.classes" in caplog.text
    stats = json.loads((processed / "eval/stats.json").read_text())
    assert stats["other_classes"] == {"red": 40}
    assert sum(stats["classes"]["sea"][split]["instances"] for split in ("train", "val")) == 10
    tree = load_split(processed, "train")
    assert tree["categories"] == [{"id": 1, "name": "sea"}]
    assert {row["category_id"] for row in tree["annotations"]} == {1}
    assert (
        "1 class (red (40)): objects of these classes are left out by data.classes"
        in (tmp_path / "report/index.html").read_text()
    )


def test_an_unknown_class_writes_nothing(preprocess: Callable[..., dict[str, Any]], processed: Path) -> None:
    with pytest.raises(SettingsError, match="Did you mean 'person'"):
        preprocess(classes=["Person"])
    assert not processed.exists()


def test_large_and_turned_images_are_rewritten_with_their_masks(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path
) -> None:
    """A red square in a 400 x 300 image that is stored rotated: its mask must cover the red pixels of the result."""
    objects = np.zeros((300, 400), dtype=np.uint8)
    objects[60:180, 248:368] = 1
    pixels = np.where(objects[:, :, None] == 1, [220, 20, 20], [30, 60, 200]).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8  # a quarter turn counter-clockwise: (x, y) goes to (y, 399 - x)
    Image.fromarray(pixels).save(voc / "JPEGImages/2007_000001.jpg", exif=exif, quality=95)
    save_mask(voc / "SegmentationObject/2007_000001.png", objects)
    save_mask(voc / "SegmentationClass/2007_000001.png", objects * np.uint8(PERSON))
    (voc / "Annotations/2007_000001.xml").unlink()
    train = preprocess(max_side=100)["splits"]["train"]
    assert (train["images_turned"], train["images_reduced"]) == (1, 1)
    coco = COCO(processed / "train/train.json")
    (pixels,) = coco.loadImgs([2007000001])
    (row,) = coco.loadAnns(coco.getAnnIds(imgIds=[2007000001]))
    assert (pixels["width"], pixels["height"], pixels["file_name"]) == (75, 100, "2007_000001.jpg")
    with Image.open(processed / "train/images/2007_000001.jpg") as image:
        red = np.asarray(image)[:, :, 0] > 125
    mask = coco.annToMask(row).astype(bool)
    assert (red ^ mask).sum() <= 16, "more than smeared corners"
    assert (row["bbox"], row["area"]) == ([15, 8, 30, 30], 900)


def test_images_of_twelve_megapixels_are_downscaled_as_set_with_their_objects(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path
) -> None:
    """Four discs in 4000 x 3000 pixels; their downscaled masks have the discs' share of the area, box and centre."""
    rows, columns = np.ogrid[:3000, :4000]
    objects = np.zeros((3000, 4000), dtype=np.uint8)
    discs = {1: (500, 700, 300), 2: (3100, 800, 500), 3: (900, 2300, 40), 4: (2500, 2200, 650)}  # x, y, radius
    for number, (x, y, radius) in discs.items():
        objects[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = number
    for name in ("2007_000001", "2008_000001"):
        picture(4000, 3000, seed=len(name)).save(voc / f"JPEGImages/{name}.jpg", quality=85)
        save_mask(voc / f"SegmentationObject/{name}.png", objects)
        save_mask(voc / f"SegmentationClass/{name}.png", np.where(objects, np.uint8(DOG), np.uint8(0)))
        (voc / f"Annotations/{name}.xml").unlink()
    stats = preprocess()
    assert [stats["splits"][split]["images_reduced"] for split in ("train", "val")] == [1, 1]
    with Image.open(processed / "eval/images/2008_000001.jpg") as image:
        assert image.size == (768, 576)
    scale = 768 / 4000
    for row, (x, y, radius) in zip(load_split(processed, "val")["annotations"], discs.values(), strict=True):
        assert row["area"] == pytest.approx(np.pi * (radius * scale) ** 2, rel=0.05)
        left, top, width, height = row["bbox"]
        assert (left + width / 2, top + height / 2) == pytest.approx((x * scale, y * scale), abs=1)
        assert (width, height) == pytest.approx((2 * radius * scale,) * 2, abs=2)


def test_a_downscaled_png_becomes_a_jpeg(preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path) -> None:
    with Image.open(voc / "JPEGImages/2007_000003.jpg") as image:
        image.resize((200, 100)).save(voc / "JPEGImages/2007_000003.png")
    for kind in ("Object", "Class"):
        save_mask(voc / f"Segmentation{kind}/2007_000003.png", np.zeros((100, 200), dtype=np.uint8))
    (voc / "JPEGImages/2007_000003.jpg").unlink()
    preprocess(max_side=64)
    with Image.open(processed / "train/images/2007_000003.png.jpg") as image:
        assert (image.size, image.format) == ((64, 32), "JPEG")


def test_near_duplicates_in_both_splits_are_found_and_reported(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n, name in enumerate(("2007_000001", "2007_000002", "2007_000003")):
        picture(12, 10, seed=n).save(voc / f"JPEGImages/{name}.jpg", quality=95)
    picture(12, 10, seed=1).save(voc / "JPEGImages/2008_000001.jpg", quality=80)
    with caplog.at_level(logging.WARNING):
        (pair,) = preprocess()["duplicates"]["across_splits"]["pairs"]
    assert (pair["train"], pair["val"], pair["equal_files"]) == ("2007_000002.jpg", "2008_000001.jpg", False)
    assert "1 pair: near-duplicates across splits" in caplog.text
    assert "Near-duplicates in two splits" in (processed.with_name("report") / "index.html").read_text()

    shutil.copy(voc / "JPEGImages/2007_000002.jpg", voc / "JPEGImages/2008_000001.jpg")
    shutil.copy(voc / "JPEGImages/2007_000001.jpg", voc / "JPEGImages/2007_000003.jpg")
    duplicates = preprocess()["duplicates"]
    assert [pair["equal_files"] for pair in duplicates["across_splits"]["pairs"]] == [True]
    assert duplicates["equal_files_within"] == {"train": [["2007_000001.jpg", "2007_000003.jpg"]], "val": []}


def test_images_of_one_name_in_two_folders_get_different_names(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path, processed: Path
) -> None:
    for split in ("train", "val"):
        folder = tmp_path / "coco" / split
        make_coco(folder, images=1)
        (folder / "labels.json").rename(folder / "_annotations.coco.json")
    preprocess_coco()
    names = sorted(path.name for path in processed.glob("*/images/*"))
    assert names == [f"{split}__images__Bild 0 \N{SNOWFLAKE}.JPG" for split in ("train", "val")]


def test_an_image_with_too_long_an_output_name_is_a_problem(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path, processed: Path
) -> None:
    make_coco(tmp_path / "coco", images=8)
    path = tmp_path / "coco/labels.json"
    tree = json.loads(path.read_text())
    for pixels, folder in zip(tree["images"], (f"{'x' * 130}/{'y' * 130}", "z"), strict=False):
        image = tmp_path / "coco/images" / pixels["file_name"]
        pixels["file_name"] = f"{folder}/a.jpg"
        (image.parent / folder).mkdir(parents=True)
        image.rename(image.parent / pixels["file_name"])
    path.write_text(json.dumps(tree))
    preprocess_coco(max_problems=1)
    (problem,) = json.loads((processed / "eval/stats.json").read_text())["problems"]
    assert problem["file"] == f"images/{'x' * 130}/{'y' * 130}/a.jpg"
    assert problem["reason"] == (
        "would be written under a name of 277 bytes, which is too long; shorten its name or those of its folders"
    )
    assert len(list(processed.glob("*/images/images__z__a.jpg"))) == 1


def test_errors_of_a_coco_file_count_as_problems(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    make_coco(tmp_path / "coco")
    path = tmp_path / "coco/labels.json"
    tree = json.loads(path.read_text())
    del tree["images"][3]["id"]
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"1 image cannot be used(.|\n)*labels\.json: images\[3\] has no id") as caught:
        preprocess_coco(max_dropped=0)
    assert "1 of 50 objects cannot be used; data.max_dropped allows a share of 0." in str(caught.value)
    stats = preprocess_coco(max_problems=1, max_dropped=0.02)
    assert [len(stats[name]) for name in ("problems", "dropped")] == [1, 1]


def test_a_rejected_image_counts_once_with_any_number_of_annotations(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path, processed: Path
) -> None:
    make_coco(tmp_path / "coco", images=8)
    path = tmp_path / "coco/labels.json"
    tree = json.loads(path.read_text())
    for n in (0, 4):  # these have two annotations each
        tree["images"][n]["file_name"] = f"/images/{n}.jpg"
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r": 2 images cannot be used; data\.max_problems allows 1"):
        preprocess_coco(max_problems=1)
    assert "<b>2</b><span>images left out</span>" in (tmp_path / "report/index.html").read_text()
    preprocess_coco(max_problems=2)
    problems = json.loads((processed / "eval/stats.json").read_text())["problems"]
    assert [problem["image"] for problem in problems] == ["labels.json image 100", "labels.json image 104"]


def test_orphan_annotations_count_as_dropped_objects_and_their_images_are_kept(
    preprocess_coco: Callable[..., dict[str, Any]], tmp_path: Path, processed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_coco(tmp_path / "coco", images=8)
    path = tmp_path / "coco/labels.json"
    tree = json.loads(path.read_text())
    del tree["annotations"][0]["image_id"]
    tree["annotations"][1]["image_id"] = 12345
    path.write_text(json.dumps(tree))
    with pytest.raises(
        DataError, match=r"2 of 10 objects cannot be used; .* a share of 0\.19(.|\n)*data\.max_dropped=0\.2 "
    ):
        preprocess_coco(max_dropped=0.19)
    page = tmp_path / "report/index.html"
    assert "so the data was not written" in page.read_text()
    with caplog.at_level(logging.WARNING):
        preprocess_coco(max_dropped=0.2)
    assert "dropped: 2 of 10 objects: annotation of no image; such as " in caplog.text
    assert "images are used without their dropped objects" in caplog.text
    assert "so the data was not written" not in page.read_text()
    stats = json.loads((processed / "eval/stats.json").read_text())
    assert (stats["problems"], [problem["image"] for problem in stats["dropped"]]) == ([], ["", ""])
    assert sum(stats["splits"][split]["images"] for split in ("train", "val")) == 8


def test_semantic_boundaries_and_voc_masks_of_one_image_give_the_same_objects(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path, params: Callable[..., Params], tmp_path: Path
) -> None:
    preprocess()
    sbd = tmp_path / "sbd"
    (sbd / "inst").mkdir(parents=True)
    for path in (voc / "SegmentationObject").iterdir():
        objects = np.asarray(Image.open(path))
        classes = np.asarray(Image.open(voc / "SegmentationClass" / path.name))
        categories = [[classes[objects == 1].max()]] if objects.any() else np.zeros((0, 1))
        struct = {"Segmentation": objects, "Categories": np.array(categories, dtype=np.uint8)}
        savemat(sbd / f"inst/{path.stem}.mat", {"GTinst": struct}, do_compression=True)
    shutil.copytree(voc / "JPEGImages", sbd / "img")
    for split in ("train", "val"):
        shutil.copy(voc / f"ImageSets/Segmentation/{split}.txt", sbd)
    run(params(), raw_dir=sbd, processed_dir=tmp_path / "from-sbd", report_dir=tmp_path / "report")
    for split in ("train", "val"):
        ours, theirs = load_split(processed, split), load_split(tmp_path / "from-sbd", split)
        assert ours["images"] == theirs["images"]
        flags = ("difficult", "truncated")
        plain = [{key: value for key, value in row.items() if key not in flags} for row in ours["annotations"]]
        assert plain == theirs["annotations"]


# Report


def test_the_page_is_self_contained_and_shows_the_data(
    preprocess: Callable[..., dict[str, Any]], processed: Path
) -> None:
    stats = preprocess()
    folder = processed.with_name("report")
    page = (folder / "index.html").read_text()
    assert set(contents(folder)) == {"index.html", "problems.csv", "stats.json"}
    assert json.loads((folder / "stats.json").read_text()) == stats
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page) == []
    assert page.count("data:image/jpeg;base64,") == 4
    assert "2007_000002.jpg: 12 x 10, 1 object<" in page
    assert stats["digest"][:16] in page


def test_all_problems_and_warnings_are_in_a_list_that_the_page_names_if_it_shows_fewer(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "LISTED_ROWS", 2)
    for name in ("2007_000001", "2007_000002", "2007_000003"):
        damage_image(voc, name)
    (voc / "Annotations/2008_000001.xml").write_text("<annotation></annotation>")
    with pytest.raises(DataError):
        preprocess()
    folder = processed.with_name("report")
    page = (folder / "index.html").read_text()
    assert page.count("<td>cannot be decoded to its end") == 2
    assert "The first 2 of 3; all are in problems.csv, next to this page." in page
    with (folder / "problems.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["list"], row["file"]) for row in rows] == [
        ("problems", "JPEGImages/2007_000001.jpg"),
        ("problems", "JPEGImages/2007_000002.jpg"),
        ("problems", "JPEGImages/2007_000003.jpg"),
        ("warnings", "Annotations/2008_000001.xml"),
    ]
    stats = json.loads((folder / "stats.json").read_text())
    assert [row["reason"] for row in rows] == [row["reason"] for row in [*stats["problems"], *stats["warnings"]]]


def test_text_from_files_is_shown_as_text(
    preprocess: Callable[..., dict[str, Any]], voc: Path, processed: Path
) -> None:
    (voc / "Annotations/2007_000001.xml").write_text(
        "<annotation><object><name>&lt;script&gt;alert(1)</name></object></annotation>"
    )
    preprocess(max_problems=1)
    page = (processed.with_name("report") / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_histograms_count_every_object_once(preprocess: Callable[..., dict[str, Any]]) -> None:
    found = preprocess()["histograms"]["train"]  # boxes of 4 x 5 and 6 x 5 pixels in images of 120
    assert [sum(part["counts"]) for part in found.values()] == [2, 2, 2]
    assert found["box_side"]["counts"][1] == 2  # 0 to 8
    edges, counts = found["mask_share"]["edges"], found["mask_share"]["counts"]
    assert counts[edges.index(0.1) + 1] == 1  # 20 / 120
    assert counts[edges.index(0.2) + 1] == 1  # 30 / 120


def test_the_bar_of_a_class_is_as_long_as_its_objects_in_the_column_that_has_it() -> None:
    counts = {"car": (4, 0), "bus": (2, 7), "cat": (0, 0)}
    classes = {name: {"train": {"instances": a}, "val": {"instances": b}} for name, (a, b) in counts.items()}
    rows = report.class_rows({"classes": classes})
    assert [(name, bar) for name, _, bar in rows] == [("bus", 0.5), ("car", 1.0), ("cat", 0.0)]


def test_the_chart_of_objects_per_image_counts_every_image_once(preprocess: Callable[..., dict[str, Any]]) -> None:
    bars = instances_per_image(preprocess()).bars
    assert [(bar.label, bar.counts) for bar in bars] == [("0", {"train": 1, "val": 0}), ("1", {"train": 2, "val": 1})]
