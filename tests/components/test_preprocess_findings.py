"""What `preprocess` says it dropped, changed and doubts: in its log, on its page and in ``stats.json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.preprocess.findings import kind_of
from components.preprocess.step import run
from yolact.errors import DataError
from yolact.formats.problems import Problem
from yolact_ops.settings.params import Params, load_params

TRIANGLE, SQUARE = [0, 0, 12, 0, 0, 12], [0, 0, 12, 0, 12, 12, 0, 12]


def outline(shape: Sequence[int], x: int = 4, y: int = 5) -> list[list[int]]:
    return [[value + (x, y)[place % 2] for place, value in enumerate(shape)]]


def write_split(root: Path, split: str, images: Sequence[Sequence[dict[str, Any]]], classes: Sequence[str]) -> Path:
    """Images of 40 x 30 pixels with the given rows; their ids differ between the splits."""
    folder = root / split
    folder.mkdir(parents=True)
    first = {"train": 1, "val": 1001}[split]
    rows, annotations = [], []
    for place, objects in enumerate(images):
        name = f"{split}{place}.jpg"
        cells = np.random.default_rng((first, place)).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((40, 30), Image.Resampling.BICUBIC).save(folder / name)
        rows.append({"id": first + place, "file_name": name, "width": 40, "height": 30})
        annotations += [{"image_id": first + place, "category_id": 1, **row} for row in objects]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    tree = {"images": rows, "annotations": annotations, "categories": categories}
    path = folder / f"instances_{split}.json"
    path.write_text(json.dumps(tree))
    return path


@pytest.fixture
def findings(tmp_path: Path, repository: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """Run preprocess on train and val images; return the findings by kind."""
    base = load_params(repository / "conf" / "base.yaml")

    def call(
        train: Sequence[Sequence[dict[str, Any]]],
        val: Sequence[Sequence[dict[str, Any]]] = ([{"segmentation": outline(TRIANGLE)}],),
        names: Sequence[str] = ("bolt",),
        **settings: Any,
    ) -> dict[str, dict[str, Any]]:
        for split, images in (("train", train), ("val", val)):
            write_split(tmp_path / "raw", split, images, names)
        params = Params.model_validate(base.model_copy(update={"data": base.data.model_copy(update=settings)}))
        out = tmp_path / "processed"
        run(params, raw_dir=tmp_path / "raw", processed_dir=out, report_dir=tmp_path / "report", workers=1)
        stats = json.loads((out / "eval/stats.json").read_text())
        return {found["kind"]: found for found in stats["findings"]}

    return call


Findings = Callable[..., dict[str, dict[str, Any]]]


def test_a_data_set_without_anything_to_say_gives_no_finding(
    findings: Findings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert findings([[{"segmentation": outline(TRIANGLE)}]] * 3) == {}
    assert "nothing was changed or dropped, nothing is doubtful" in caplog.text
    assert "Nothing was changed or dropped, nothing is doubtful." in (tmp_path / "report/index.html").read_text()


def test_exact_duplicates_are_removed_and_counted_but_not_equal_masks_of_two_classes(
    findings: Findings, tmp_path: Path
) -> None:
    twice = [{"segmentation": outline(TRIANGLE)}, {"segmentation": outline(TRIANGLE)}]
    other_class = [{"segmentation": outline(TRIANGLE), "category_id": 2}, {"segmentation": outline(TRIANGLE, x=20)}]
    found = findings([twice, twice, other_class], names=("bolt", "nut"))["exact duplicate of an object, removed"]
    assert (found["severity"], found["count"], found["images"]) == ("changed", 2, 2)
    tree = json.loads((tmp_path / "processed/train/train.json").read_text())
    assert [row["image_id"] for row in tree["annotations"]] == [1, 2, 3, 3]


def test_outlines_that_are_all_boxes_are_doubtful_and_real_outlines_are_not(findings: Findings) -> None:
    square = [{"segmentation": outline(SQUARE)}]
    found = findings([square] * 3, [square])
    [boxes] = [finding for kind, finding in found.items() if "upright rectangle" in kind]
    assert (boxes["severity"], boxes["count"], boxes["total"]) == ("doubtful", 4, 4)


def test_some_rectangles_among_outlines_are_not_doubtful(findings: Findings) -> None:
    images = [[{"segmentation": outline(SQUARE)}]] * 3 + [[{"segmentation": outline(TRIANGLE)}]]
    assert findings(images) == {}


def test_small_objects_that_fill_their_boxes_by_chance_do_not_count_as_boxes(findings: Findings) -> None:
    tiny = [{"segmentation": outline([0, 0, 3, 0, 3, 3, 0, 3])}]
    assert findings([tiny] * 3, [tiny]) == {}


def test_classes_that_a_split_lacks_are_named_once(findings: Findings, caplog: pytest.LogCaptureFixture) -> None:
    names = ("both", "train only", "val only", "nowhere", "crowd only")
    rows = [{"segmentation": outline(TRIANGLE, x=x), "category_id": n} for x, n in ((0, 1), (12, 2), (24, 3))]
    crowd = {"segmentation": outline(SQUARE, x=24), "category_id": 5, "iscrowd": 1}
    crowd["segmentation"] = {"size": [30, 40], "counts": [0, 300, 900]}
    with caplog.at_level(logging.WARNING):
        found = findings([[rows[0], rows[1], crowd]] * 2, [[rows[0], rows[2], crowd]], names, crowds="regions")
    examples = {kind.partition(",")[0].partition(";")[0]: finding["examples"] for kind, finding in found.items()}
    assert examples == {
        "no object in train": ["val only"],
        "no object in val": ["train only"],
        "no object in any image": ["nowhere", "crowd only"],
    }
    assert "doubtful: 1 class (val only): no object in train, so it cannot be learned" in caplog.text


def test_most_images_without_objects_are_doubtful(findings: Findings) -> None:
    shown = [{"segmentation": outline(TRIANGLE)}]
    [(kind, found)] = findings([shown, [], [], []]).items()
    assert "learned as 'nothing here'" in kind
    assert (found["severity"], found["count"], found["total"]) == ("doubtful", 3, 5)


def test_images_without_objects_are_left_out_on_request_but_not_those_of_other_classes(
    findings: Findings, tmp_path: Path
) -> None:
    shown = [{"segmentation": outline(TRIANGLE)}]
    other = [{"segmentation": outline(TRIANGLE), "category_id": 2}]
    found = findings([shown, [], other, []], names=("bolt", "nut"), classes=["bolt"], empty_images="drop")
    left_out = found["no object; left out by data.empty_images"]
    assert (left_out["severity"], left_out["count"]) == ("dropped", 2)
    tree = json.loads((tmp_path / "processed/train/train.json").read_text())
    assert [image["file_name"] for image in tree["images"]] == ["train0.jpg", "train2.jpg"]
    assert len(list((tmp_path / "processed").glob("*/images/*"))) == 3
    train = json.loads((tmp_path / "processed/eval/stats.json").read_text())["splits"]["train"]
    assert (train["listed"], train["left_out"], train["images"]) == (4, 2, 2)


def test_half_of_the_images_without_objects_is_usual(findings: Findings) -> None:
    assert findings([[{"segmentation": outline(TRIANGLE)}], [], []]) == {}


def test_a_validation_split_of_crowds_alone_is_doubtful(findings: Findings) -> None:
    crowd = {"segmentation": {"size": [30, 40], "counts": [0, 300, 900]}, "iscrowd": 1}
    found = findings([[{"segmentation": outline(TRIANGLE)}]] * 2, [[crowd]], crowds="regions")
    [alone] = [finding for kind, finding in found.items() if "AP is not measured" in kind]
    assert (alone["severity"], alone["unit"], alone["count"]) == ("doubtful", "objects", 1)


def test_objects_that_vanish_when_downscaled_count_as_dropped_and_their_share_is_limited(findings: Findings) -> None:
    vanishing = {"segmentation": [[30, 20, 31, 20, 31, 21, 30, 21]]}
    images = [[{"segmentation": outline(TRIANGLE)}, vanishing]] * 4
    with pytest.raises(DataError) as caught:
        findings(images, max_side=10)
    message = str(caught.value)
    assert "4 of 9 objects cannot be used; data.max_dropped allows a share of 0.05." in message
    assert message.count("vanishes when its image is downscaled; such as train/train0.jpg: object 2") == 1
    assert "data.max_dropped=0.45 in params.yaml: their images are then used without them" in message


def test_a_share_below_the_limit_is_dropped_and_reported(findings: Findings, tmp_path: Path) -> None:
    vanishing = {"segmentation": [[30, 20, 31, 20, 31, 21, 30, 21]]}
    found = findings([[{"segmentation": outline(TRIANGLE)}, vanishing]] * 4, max_side=10, max_dropped=0.45)
    dropped = found["vanishes when its image is downscaled"]
    assert (dropped["severity"], dropped["unit"], dropped["count"], dropped["images"]) == ("dropped", "objects", 4, 4)
    assert found["downscaled to data.max_side"]["count"] == 5
    page = (tmp_path / "report/index.html").read_text()
    assert "4 of 9 objects in 4 images: vanishes when its image is downscaled" in page


def test_with_every_object_unusable_no_limit_is_offered(findings: Findings) -> None:
    with pytest.raises(DataError) as caught:
        findings([[{"segmentation": [[100, 100, 110, 100, 110, 110]], "image_id": 77}]], [])
    assert "1 of 1 objects cannot be used" in str(caught.value)
    assert "Or drop them" not in str(caught.value)


def test_category_ids_from_0_are_kept(tmp_path: Path, repository: Path) -> None:
    for split in ("train", "val"):
        path = write_split(tmp_path / "raw", split, [[{"segmentation": outline(TRIANGLE), "category_id": 0}]] * 2, ())
        tree = json.loads(path.read_text())
        tree["categories"] = [{"id": 7, "name": "nut"}, {"id": 0, "name": "bolt"}]
        path.write_text(json.dumps(tree))
    out = tmp_path / "processed"
    run(
        load_params(repository / "conf/base.yaml"),
        raw_dir=tmp_path / "raw",
        processed_dir=out,
        report_dir=tmp_path / "r",
    )
    for file in ("train/train.json", "eval/val.json"):
        tree = json.loads((out / file).read_text())
        assert tree["categories"] == [{"id": 0, "name": "bolt"}, {"id": 7, "name": "nut"}]
        assert [row["category_id"] for row in tree["annotations"]] == [0, 0]
    stats = json.loads((out / "eval/stats.json").read_text())
    assert [stats["classes"][name]["train"]["instances"] for name in ("bolt", "nut")] == [2, 0]


def test_category_ids_that_are_not_the_sources_own_are_said(findings: Findings) -> None:
    rows = [{"segmentation": outline(TRIANGLE)}, {"segmentation": outline(TRIANGLE, x=20), "category_id": 2}]
    found = findings([rows], [rows], ("bolt", "nut"), classes=["nut", "bolt"])
    [renumbered] = [finding for kind, finding in found.items() if "category ids" in kind]
    assert (renumbered["severity"], renumbered["examples"]) == ("changed", ["nut: 1", "bolt: 2"])


def test_problems_without_a_kind_are_grouped_by_their_reason_without_names_and_numbers() -> None:
    first = Problem("a.json", "annotation 12 of images/a.jpg has the class 'bolt' and 3.5 pixels; correct it")
    second = Problem("b.json", "annotation 7 of c.png has the class 'nut; x' and -1 pixels; correct it")
    other = Problem("b.json", "annotation 7 of c.png has no class")
    assert kind_of(first) == kind_of(second) != kind_of(other)
    assert kind_of(Problem("a", "whatever 7", kind="a kind")) == "a kind"
