"""The evaluate step with a predictor of known detections: its files, its page and its errors."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from components.evaluate import step
from components.evaluate.report import evenly_spaced
from yolact.errors import DataError, WeightsError
from yolact.inference.detections import Detections
from yolact_ops.settings.params import Params, load_params

CLASSES = ["circle", "<b>cat & dog</b>", "never/seen"]
CATEGORY_IDS = [3, 5, 9]
WIDTH, HEIGHT, IMAGES = 120, 90, 7


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def write_data(folder: Path, images: int = IMAGES, split: str = "val") -> None:
    """One object of each of the first two classes per image; the image's first pixel names it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    tree: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)],
    }
    for number in range(images):
        pixels = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
        pixels[0, 0] = number
        Image.fromarray(pixels).save(folder / "images" / f"image{number}.png")
        tree["images"].append({"id": number + 1, "file_name": f"image{number}.png", "width": WIDTH, "height": HEIGHT})
        for category, mask in ((3, rectangle(10, 10, 60, 50)), (5, rectangle(70, 20, 110, 80))):
            rle = mask_utils.encode(np.asfortranarray(mask))
            tree["annotations"].append(
                {
                    "id": len(tree["annotations"]) + 1,
                    "image_id": number + 1,
                    "category_id": category,
                    "bbox": mask_utils.toBbox(rle).tolist(),
                    "area": float(mask.sum()),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "iscrowd": 0,
                }
            )
    (folder / f"{split}.json").write_text(json.dumps(tree))


class KnownPredictor:
    """Finds every circle exactly, and nothing else; nothing at all on image 0."""

    classes = CLASSES

    def __init__(self, device: str, batch_size: int) -> None:
        self.device = device
        self.batch_size = batch_size

    def predict(self, images: Sequence[np.ndarray]) -> list[Detections]:
        assert 1 <= len(images) <= self.batch_size == 3
        found = Detections.from_masks(
            boxes=torch.tensor([[10.0, 10.0, 60.0, 50.0]]),
            scores=torch.tensor([0.9]),
            labels=torch.tensor([0]),
            masks=torch.from_numpy(rectangle(10, 10, 60, 50)).bool()[None],
        )
        return [found.above(1.0 if image[0, 0, 0] == 0 else 0.0) for image in images]


@dataclass
class KeptTracker:
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: list[tuple[Path, str, tuple[str, ...]]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics |= metrics

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def show_as_table(self, artifact: str) -> None:
        self.tables.append(artifact)

    def log_artifacts(self, folder: Path, artifact_path: str, *, without: tuple[str, ...] = ()) -> None:
        assert (folder / "index.html").is_file()
        self.artifacts.append((folder, artifact_path, without))

    def log_artifact(self, file: Path, artifact_path: str) -> None:
        self.files[f"{artifact_path}/{file.name}"] = file.read_bytes()


@pytest.fixture
def params(repository: Path) -> Params:
    base = load_params(repository / "conf" / "base.yaml")
    changed = base.evaluate.model_copy(update={"batch_size": 3, "gallery_images": 4})
    return base.model_copy(update={"evaluate": changed})


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> KeptTracker:
    kept = KeptTracker()

    @contextmanager
    def resume_run(params: Params, run_file: Path, *, step: str, needs_store: bool) -> Iterator[KeptTracker]:
        assert (run_file.name, step, needs_store) == ("run.json", "evaluate", False)  # a laptop's folder stays
        yield kept

    monkeypatch.setattr(step, "resume_run", resume_run)
    monkeypatch.setattr(step.Predictor, "load", lambda directory, config, **options: KnownPredictor(**options))
    return kept


def run(params: Params, folder: Path) -> None:
    step.run(
        params,
        eval_data_dir=folder / "processed",
        model_dir=folder / "models",
        metrics_path=folder / "metrics" / "eval.json",
        report_dir=folder / "reports" / "eval",
        plots_dir=folder / "plots" / "eval",
        scores_dir=folder / "metrics",
    )


@pytest.fixture
def evaluated(params: Params, tracker: KeptTracker, tmp_path: Path) -> Path:
    write_data(tmp_path / "processed")
    run(params, tmp_path)
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


CIRCLE_AP = 86 / 101
"""Six of seven found, none wrong: precision 1 at the recalls 0.00 to 0.85, then 0."""


def test_metrics_are_correct_and_contain_no_times(evaluated):
    metrics = json.loads((evaluated / "metrics" / "eval.json").read_text())
    assert set(metrics) == {"split", "images", "box", "mask", "any_class"}
    assert (metrics["split"], metrics["images"]) == ("val", IMAGES)
    half_found = pytest.approx(43 / 101)  # six of fourteen: the recalls 0.00 to 0.42
    assert metrics["any_class"] == {kind: {"AP": half_found, "AP50": half_found} for kind in ("mask", "box")}
    for section in (metrics["box"], metrics["mask"]):
        assert section["per_class"]["circle"]["AP50"] == pytest.approx(CIRCLE_AP)
        assert section["per_class"]["circle"]["instances"] == IMAGES
        assert section["AP50"] == section["AP70"] == pytest.approx(CIRCLE_AP / 2)
        assert section["AP_small"] is None
        assert section["per_class"]["never/seen"] == {"AP": None, "AP50": None, "AP70": None, "instances": 0}


def test_images_held_out_are_evaluated_instead_of_the_validation_images(
    params: Params, tracker: KeptTracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for images, split in ((IMAGES, "val"), (3, "test")):
        write_data(tmp_path / "processed", images, split)
    with caplog.at_level("INFO"):
        run(params, tmp_path)
    metrics = json.loads((tmp_path / "metrics" / "eval.json").read_text())
    assert (metrics["split"], metrics["images"]) == ("test", 3)
    assert "3 images of the test split" in caplog.text
    ap = metrics["any_class"]["mask"]["AP"]
    assert re.search(rf"mask +AP .* AP_any_class {ap:.3f}  AP50_any_class {ap:.3f}\n", caplog.text)
    assert "Evaluation on the test split" in (tmp_path / "reports/eval/index.html").read_text()
    assert set(tracker.files) == {"eval/ground_truth.json.gz", "eval/detections.json.gz"}


def test_each_kind_of_metrics_has_a_file_without_classes_for_dvc(evaluated):
    metrics = json.loads((evaluated / "metrics" / "eval.json").read_text())
    for kind in ("box", "mask"):
        scores = json.loads((evaluated / "metrics" / f"{kind}.json").read_text())
        assert metrics[kind] == scores | {"per_class": metrics[kind]["per_class"]}
        assert "per_class" not in scores


def test_a_second_run_gives_identical_metrics_plots_and_detections(evaluated, params):
    names = ["metrics/eval.json", "plots/eval/pr_curve.csv", "plots/eval/per_class.csv"]
    names += [f"reports/eval/{name}" for name in ("detections.json", "pr_curves.png", "gallery.jpg")]
    before = {name: (evaluated / name).read_bytes() for name in names}
    run(params, evaluated)
    assert {name: (evaluated / name).read_bytes() for name in names} == before


def test_report_files(evaluated):
    report = evaluated / "reports" / "eval"
    detections = json.loads((report / "detections.json").read_text())
    assert [row["image_id"] for row in detections] == [2, 3, 4, 5, 6, 7]
    assert set(detections[0]) == {"image_id", "category_id", "bbox", "score", "mask_score", "segmentation"}
    table = rows(report / "per_class.csv")
    assert [row["class"] for row in table] == CLASSES
    assert float(table[0]["mask_AP50"]) == pytest.approx(CIRCLE_AP)
    assert table[0]["detections"] == "6"
    assert table[2]["mask_AP50"] == ""
    assert sorted(path.name for path in (report / "gallery").iterdir()) == [
        "01_image0.jpg",
        "02_image2.jpg",
        "03_image4.jpg",
        "04_image6.jpg",
    ]
    for name in ("pr_curves.png", "gallery.jpg", "gallery/01_image0.jpg"):
        with Image.open(report / name) as picture:
            picture.load()
    facts = json.loads((report / "report.json").read_text())
    assert facts["images"] == IMAGES
    assert facts["seconds_per_image"] >= 0
    assert not [path for path in report.parent.iterdir() if path.name.endswith(".part")]


def test_gallery_shows_the_detection_only_where_there_is_one(evaluated):
    gallery = evaluated / "reports" / "eval" / "gallery"

    def colourful(name: str) -> tuple[bool, bool]:
        pixels = np.asarray(Image.open(gallery / name).convert("RGB")).astype(int)
        spread = pixels.max(axis=2) - pixels.min(axis=2)
        half = pixels.shape[1] // 2
        return bool((spread[:, :half] > 60).any()), bool((spread[:, half:] > 60).any())

    assert colourful("01_image0.jpg") == (True, False)
    assert colourful("02_image2.jpg") == (True, True)


def test_plots_tables(evaluated):
    curve = rows(evaluated / "plots" / "eval" / "pr_curve.csv")
    assert list(curve[0]) == ["recall", "mask", "box"]
    assert len(curve) == 101
    assert float(curve[85]["recall"]) == pytest.approx(0.85)
    assert float(curve[85]["box"]) == pytest.approx(0.5)  # circle 1, the other class 0
    assert float(curve[86]["box"]) == 0
    table = rows(evaluated / "plots" / "eval" / "per_class.csv")
    assert list(table[0]) == ["class", "box_AP50", "mask_AP50"]
    assert [row["class"] for row in table] == CLASSES[:2]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_names_every_class_and_loads_nothing(evaluated):
    source = (evaluated / "reports" / "eval" / "index.html").read_text()
    page = _Page()
    page.feed(source)
    text = " ".join(page.text)
    for name in CLASSES:
        assert name in text  # as text: markup in a class name is escaped
    assert page.tags.count("b") == 5  # the headline metrics; none from a class name
    assert len(page.addresses) == 1 + 4  # curves and gallery
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", source)
    assert f"{100 * CIRCLE_AP:.1f}" in text


def test_tracked_metrics(evaluated, tracker):
    assert tracker.metrics["eval/mask_AP50"] == pytest.approx(CIRCLE_AP / 2)
    assert tracker.metrics["eval/box_AP"] == pytest.approx(CIRCLE_AP / 2)
    assert tracker.metrics["eval/per_class/mask_AP70/circle"] == pytest.approx(CIRCLE_AP)
    expected = {f"eval/{kind}_{name}_any_class" for kind in ("box", "mask") for name in ("AP", "AP50")}
    any_class = {name: value for name, value in tracker.metrics.items() if name.endswith("_any_class")}
    assert any_class == dict.fromkeys(expected, pytest.approx(43 / 101))  # as in metrics/eval.json
    assert "eval/box_AP_small" not in tracker.metrics
    assert not any("never" in name for name in tracker.metrics)
    assert tracker.artifacts == [(evaluated / "reports" / "eval", "eval", ("detections.json",))]
    packed = {name: gzip.decompress(data) for name, data in tracker.files.items()}
    assert packed == {
        "eval/ground_truth.json.gz": (evaluated / "processed" / "val.json").read_bytes(),
        "eval/detections.json.gz": (evaluated / "reports" / "eval" / "detections.json").read_bytes(),
    }


def test_the_per_class_table_can_be_shown_by_mlflow(evaluated, tracker):
    assert tracker.tables == ["eval/per_class.json"]
    table = json.loads((evaluated / "reports" / "eval" / "per_class.json").read_text())
    (circle, cat, never) = (dict(zip(table["columns"], row, strict=True)) for row in table["data"])
    assert (circle["class"], circle["instances"], circle["detections"]) == ("circle", IMAGES, IMAGES - 1)
    assert circle["mask_AP50"] == pytest.approx(CIRCLE_AP)
    assert cat["mask_AP50"] == 0
    assert never["mask_AP50"] is None


def test_the_description_of_the_run_has_the_metrics(tracker, evaluated):
    note = tracker.tags["mlflow.note.content"]
    for part in ("resnet50", "550 px", f"{IMAGES} images", f"| mask AP50 | {50 * CIRCLE_AP:.1f} |"):
        assert part in note


def test_no_gallery_if_disabled(params, tracker, tmp_path):
    write_data(tmp_path / "processed")
    none = params.evaluate.model_copy(update={"gallery_images": 0})
    run(params.model_copy(update={"evaluate": none}), tmp_path)
    report = tmp_path / "reports" / "eval"
    assert not (report / "gallery.jpg").exists()
    assert "Gallery" not in (report / "index.html").read_text()


def test_a_failing_report_keeps_the_old_one(evaluated, params, monkeypatch):
    index = evaluated / "reports" / "eval" / "index.html"
    before = index.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(step, "write_report", fail)
    with pytest.raises(OSError, match="disk full"):
        run(params, evaluated)
    assert index.read_bytes() == before
    assert [path.name for path in index.parent.parent.iterdir()] == ["eval"]


def test_missing_data_says_which_step_to_run(params, tracker, tmp_path):
    with pytest.raises(DataError, match=r"val\.json.*preprocess"):
        run(params, tmp_path)


def test_missing_model_says_which_step_to_run(params, tmp_path):
    write_data(tmp_path / "processed")
    with pytest.raises(WeightsError, match=r"models.*train"):
        run(params, tmp_path)


def test_an_empty_split_is_rejected(params, tracker, tmp_path):
    write_data(tmp_path / "processed", images=0)
    with pytest.raises(DataError, match=r"val\.json: has no images"):
        run(params, tmp_path)


def test_other_classes_are_rejected_and_both_lists_named(params, tracker, tmp_path, monkeypatch):
    write_data(tmp_path / "processed")
    monkeypatch.setattr(KnownPredictor, "classes", ["circle", "zebra"])
    with pytest.raises(DataError) as refused:
        run(params, tmp_path)
    assert "circle, zebra" in str(refused.value)
    assert ", ".join(CLASSES) in str(refused.value)
    assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize(("total", "wanted"), [(1, 1), (7, 4), (10, 10), (3, 8), (120, 24), (100, 1), (5, 0)])
def test_evenly_spaced_indices_are_distinct_sorted_and_cover_the_range(total, wanted):
    indices = evenly_spaced(total, wanted)
    assert len(indices) == min(total, wanted)
    assert indices == sorted(set(indices))
    share = total / max(1, len(indices))
    for number, index in enumerate(indices):
        assert number * share <= index + 1
        assert index <= (number + 1) * share
