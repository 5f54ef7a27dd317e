"""Listing and comparing runs that were logged by hand in a real MLflow store."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner, Result

from yolact.errors import DataError
from yolact.evaluation.bootstrap import Interval
from yolact.evaluation.evaluator import evaluate_coco, index_ground_truth
from yolact_cli.main import app
from yolact_ops.comparison.comparison import compare, param_changes
from yolact_ops.comparison.runs import find_run, list_runs
from yolact_ops.comparison.sides import Side, open_side
from yolact_ops.comparison.tables import MetricRow, class_rows, common_rows, metric_rows
from yolact_ops.lineage.hashing import hash_params
from yolact_ops.registry.versions import IDENTITY, RegisteredModel, RegistryError
from yolact_ops.reports.formatting import percentage_points
from yolact_ops.settings.params import load_params
from yolact_ops.tracking.evaluations import DETECTIONS, FOLDER, GROUND_TRUTH
from yolact_ops.tracking.store import TrackingError

SIDE = 80
CLASSES = {1: "cat", 2: "<dog>", 3: "never seen"}
PLACES = ((5, 5, 30, 30), (40, 40, 30, 20))


def region(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    rle = coco_mask.encode(mask)
    return {
        "bbox": [float(x), float(y), float(width), float(height)],
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
    }


def ground_truth(images: int = 6, classes: dict[int, str] = CLASSES, first: int = 1) -> dict[str, Any]:
    """One object of each of the first two classes in each image; images are numbered from ``first``."""
    objects = [
        {"image_id": first + image, "category_id": category, "iscrowd": 0, "area": float(p[2] * p[3]), **region(*p)}
        for image in range(images)
        for category, p in zip(list(classes)[:2], PLACES, strict=True)
    ]
    return {
        "images": [
            {"id": first + image, "file_name": f"image{image}.png", "width": SIDE, "height": SIDE}
            for image in range(images)
        ],
        "categories": [{"id": number, "name": name} for number, name in classes.items()],
        "annotations": [{"id": number, **item} for number, item in enumerate(objects, start=1)],
    }


def rows_of(truth: dict[str, Any], *, missed: Collection[str] = (), shift: int = 0) -> list[dict[str, Any]]:
    """Detections of everything, shifted by ``shift`` pixels, except the objects in the images ``missed``."""
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    return [
        {"image_id": item["image_id"], "category_id": item["category_id"], "score": 0.9, **region(*place)}
        for item in truth["annotations"]
        for x, y, width, height in [[int(value) for value in item["bbox"]]]
        for place in [(x + shift, y, width, height)]
        if names[item["image_id"]] not in missed
    ]


def side(truth: dict[str, Any], rows: list[dict[str, Any]], name: str = "a", **changes: Any) -> Side:
    facts: dict[str, Any] = {
        "facts": {},
        "params": {"train.lr": "0.1"},
        "evaluate": {"detect": {"max_detections": 100}},
        "milliseconds": 10.0,
        "device": "cpu",
    }
    return Side(name=name, ground_truth=truth, rows=rows, **(facts | changes))


class TestComparison:
    def test_metrics_are_the_evaluators_with_intervals_if_paired(self) -> None:
        truth = ground_truth()
        a, b = rows_of(truth, missed={"image0.png", "image1.png"}), rows_of(truth, shift=3)
        compared = compare(side(truth, a), side(truth, b, "b"), samples=100, min_score=0.3)
        rows = {row.name: row for row in metric_rows(compared)}
        for kind in ("mask", "box"):
            of_a, of_b = (evaluate_coco(index_ground_truth(truth, ""), found, kind).metrics() for found in (a, b))
            for name in of_a:
                row = rows[f"{kind} {name.replace('_', ' ')}"]
                assert (row.a, row.b) == (of_a[name], of_b[name])
                assert (row.gain is not None) == (name in ("AP", "AP50", "AP75"))
                if row.gain:
                    assert row.gain.low <= row.gain.value <= row.gain.high
                    assert row.gain.value == pytest.approx(row.difference)
        assert compared.warnings == []
        assert common_rows(compared) == []

    def test_images_and_classes_in_another_order_are_the_same_data(self) -> None:
        truth, other = ground_truth(), ground_truth(classes={30: "cat", 20: "<dog>", 10: "never seen"}, first=50)
        other["images"].reverse()
        other["annotations"].reverse()
        renumbered = compare(side(truth, rows_of(truth)), side(other, rows_of(other)), samples=100, min_score=0.3)
        assert renumbered.paired is not None
        assert renumbered.paired.images == []
        gain = renumbered.paired.comparisons["mask"].metrics["AP"].gain
        assert gain is not None
        assert (gain.value, gain.low, gain.high) == (0, 0, 0)

    @pytest.mark.parametrize("what", ["images", "mask", "class"])
    def test_different_data_is_reported_and_has_no_interval(self, what: str) -> None:
        truth, other = ground_truth(), ground_truth(images=5 if what == "images" else 6)
        if what == "mask":
            other["annotations"][3] |= region(0, 0, 20, 20)
        if what == "class":
            other["annotations"][3]["category_id"] = 1
        compared = compare(side(truth, rows_of(truth)), side(other, rows_of(other)), samples=100, min_score=0.3)
        assert compared.paired is None
        assert all(row.gain is None for row in [*metric_rows(compared), *class_rows(compared)])
        assert metric_rows(compared)[0].difference is not None
        assert "different data" in compared.warnings[0]

    def test_with_different_class_lists_the_common_classes_are_compared(self) -> None:
        truth = ground_truth()
        fewer = {
            **truth,
            "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "cow"}],
            "annotations": [item for item in truth["annotations"] if item["category_id"] == 1],
        }
        a, b = side(truth, rows_of(truth, missed={"image1.png"})), side(fewer, rows_of(fewer))
        compared = compare(a, b, samples=100, min_score=0.3)
        assert (compared.classes, compared.only_a, compared.only_b) == (["cat"], ["<dog>", "never seen"], ["cow"])
        assert all(row.gain is None for row in metric_rows(compared))  # these are over different classes
        common = {row.name: row for row in common_rows(compared)}
        cats = {**fewer, "categories": fewer["categories"][:1]}
        found = [row for row in a.rows if row["category_id"] == 1]
        assert common["mask AP, 1 common classes"].a == pytest.approx(
            evaluate_coco(index_ground_truth(cats, ""), found, "mask").AP
        )
        assert [row.name for row in class_rows(compared)] == ["cat"]
        assert class_rows(compared)[0].gain is not None

    def test_no_common_classes_and_no_detections_are_not_errors(self) -> None:
        truth, other = ground_truth(), ground_truth(classes={1: "ant", 2: "bee", 3: "fly"})
        assert compare(side(truth, []), side(other, []), samples=100, min_score=0.3).classes == []
        same = compare(side(truth, []), side(truth, []), samples=100, min_score=0.3)
        assert same.paired is not None
        assert metric_rows(same)[0].difference == 0

    def test_other_detection_settings_and_unfinished_runs_are_reported(self) -> None:
        truth = ground_truth()
        b = side(truth, rows_of(truth), evaluate={"detect": {"max_detections": 5}}, remark="run b is FAILED")
        warnings = compare(side(truth, rows_of(truth)), b, samples=100, min_score=0.3).warnings
        assert len(warnings) == 2
        assert warnings[0] == "run b is FAILED"
        assert "different detection settings (max_detections)" in warnings[1]

    def test_detections_of_other_images_are_named_with_their_side(self) -> None:
        truth = ground_truth()
        with pytest.raises(DataError, match="wrong one: detections: image_id 99"):
            compare(
                side(truth, []),
                side(truth, [rows_of(truth)[0] | {"image_id": 99}], "wrong one"),
                samples=100,
                min_score=0,
            )

    def test_zero_has_no_sign_and_nothing_found_no_interval(self) -> None:
        assert [percentage_points(value) for value in (None, -0.0004, 0.0, 0.0004, 0.0006, -0.0206)] == [
            "-",
            "0.0",
            "0.0",
            "0.0",
            "+0.1",
            "-2.1",
        ]
        assert MetricRow("cat", 0.0, 0.0, Interval(0.0, 0.0, 0.0)).interval() == "neither finds any"
        assert MetricRow("cat", 0.5, 0.5, Interval(0.0, -0.0004, 0.01)).interval() == "0.0 to +1.0"
        assert MetricRow("cat", 0.5, 0.5, None).interval() == ""

    def test_params_that_differ_or_are_missing(self) -> None:
        changes = param_changes({"x": "1", "same": "2", "old": "3"}, {"new": "4", "same": "2", "x": "5"})
        assert [(c.key, c.a, c.b) for c in changes] == [("x", "1", "5"), ("old", "3", None), ("new", None, "4")]


# In a store ------------------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, empty_store: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an empty store and settings."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    shutil.copy(repository / "conf" / "base.yaml", tmp_path / "params.yaml")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    return tmp_path


@pytest.fixture
def client(workplace: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{workplace / 'mlflow.db'}")


@pytest.fixture
def log_run(client: MlflowClient, workplace: Path) -> Callable[..., str]:
    """Logs a run as train and evaluate do, and returns its id."""

    def log(
        name: str,
        truth: dict[str, Any] | None = None,
        rows: list[dict[str, Any]] | None = None,
        experiment: str = "yolact",
        status: str = "FINISHED",
        params: dict[str, str] = {},  # noqa: B006
        settings: dict[str, Any] = {},  # noqa: B006
        tags: dict[str, str] = {},  # noqa: B006
    ) -> str:
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else client.create_experiment(experiment)
        run = client.create_run(number, run_name=name, tags=tags)
        run_id = str(run.info.run_id)
        for key, value in params.items():
            client.log_param(run_id, key, value)
        if truth is not None:
            client.log_metric(run_id, "eval/mask_AP", 0.25)
            for artifact, tree in ((GROUND_TRUTH, truth), (DETECTIONS, rows)):
                packed = workplace / Path(artifact).name
                packed.write_bytes(gzip.compress(json.dumps(tree).encode()))
                client.log_artifact(run_id, str(packed), FOLDER)
            report = {"seconds_per_image": 0.02, "device": "cpu", "settings": {"detect": settings}}
            (workplace / "report.json").write_text(json.dumps(report))
            client.log_artifact(run_id, str(workplace / "report.json"), FOLDER)
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        return run_id

    return log


def register(client: MlflowClient, run_id: str, alias: str | None = None, **tags: str) -> str:
    RegisteredModel.open_or_create(client, "yolact")
    tags = dict.fromkeys(IDENTITY, "some") | tags
    version = client.create_model_version("yolact", source=f"runs:/{run_id}/model", run_id=run_id, tags=tags)
    if alias:
        client.set_registered_model_alias("yolact", alias, version.version)
    return str(version.version)


def yolact(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def printed_json(*arguments: str) -> Any:
    result = yolact(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class TestFindingARun:
    def test_a_run_is_found_by_id_prefix_name_and_version(self, client: MlflowClient, log_run: Any) -> None:
        first, second = log_run("first"), log_run("second", experiment="elsewhere")
        version = register(client, second, "champion")
        assert find_run(client, first).info.run_id == first
        assert find_run(client, second[:12]).info.run_id == second
        for reference in ("second", "models:/yolact@champion", f"models:/yolact/{version}"):
            assert find_run(client, reference).info.run_id == second

    def test_a_repeated_evaluation_is_shown_with_the_settings_it_used(self, client: MlflowClient, log_run: Any) -> None:
        detect = load_params(Path("params.yaml")).evaluate.detect
        used, before = detect.replace(score_threshold=0.5), detect.replace(score_threshold=0.25)
        params = {"evaluate.detect.score_threshold": "0.25", "train.lr": "0.1"}
        truth = ground_truth()
        run_id = log_run("again", truth, [], params=params, settings=used.model_dump(mode="json"))
        register(client, run_id, detect_hash=hash_params(before), mask_AP="0.25")
        register(client, run_id, detect_hash=hash_params(used), mask_AP="0.75")
        register(client, run_id, detect_hash=hash_params(used), mask_AP="0.25")
        side, _ = open_side("again", client)
        assert side.params["evaluate.detect.score_threshold"] == "0.5"
        assert side.params["train.lr"] == "0.1"
        assert side.remark is None
        for number, is_of_now in ((1, False), (2, False), (3, True)):
            side, _ = open_side(f"models:/yolact/{number}", client)
            assert (side.remark is None) == is_of_now
            if side.remark:
                assert f"was evaluated again since it registered yolact version {number}" in side.remark
        printed = yolact("compare", "models:/yolact/1", "models:/yolact/3", "--samples", "100").stdout
        assert "A and B are the same run (again)" in printed

    def test_a_reference_to_no_run_or_several_is_reported(self, client: MlflowClient, log_run: Any) -> None:
        ids = {log_run("twin"), log_run("twin")}
        with pytest.raises(DataError, match="matches several runs") as error:
            find_run(client, "twin")
        assert all(run_id[:12] in str(error.value) for run_id in ids)
        for reference in ("nobody", "it's not", "0" * 8):
            with pytest.raises(TrackingError, match=r"has no run .*yolact runs"):
                find_run(client, reference)
        with pytest.raises(RegistryError, match="has no model 'yolact'"):
            find_run(client, "models:/yolact@champion")
        with pytest.raises(RegistryError, match="'models:/yolact' names no version"):
            find_run(client, "models:/yolact")


class TestRuns:
    def test_a_run_with_its_metrics(self, client: MlflowClient, log_run: Any) -> None:
        tags = {"git_commit": "c0ffee" + "0" * 34, "git_dirty": "true", "data_digest": "d1ce" * 16}
        params = {"model.backbone": "resnet18", "model.image_size": "128"}
        run_id = log_run("fine", ground_truth(), [], params=params, tags=tags)
        for name, value in {"train/steps": 200, "train/seconds_per_step": 0.9, "eval/box_AP": 0.5}.items():
            client.log_metric(run_id, name, value)
        register(client, run_id, "candidate")
        (row,) = list_runs(client)
        assert (row.name, row.run_id, row.experiment, row.status) == ("fine", run_id, "yolact", "FINISHED")
        assert (row.mask_ap, row.box_ap, row.mask_ap50, row.steps) == (0.25, 0.5, None, 200)
        assert row.train_seconds == pytest.approx(180)
        assert (row.backbone, row.image_size) == ("resnet18", 128)
        assert (row.git_commit, row.git_dirty, row.data_digest) == (tags["git_commit"], True, tags["data_digest"])
        assert row.versions == ["yolact/1 @candidate"]
        shown = yolact("runs").stdout
        for text in (
            "fine",
            run_id[:8],
            "finished",
            "25.0",
            "50.0",
            "3 min",
            "resnet18 128 px",
            "c0ffee00*",
            "d1ced1ce",
        ):
            assert text in shown

    def test_a_narrow_terminal_drops_columns_and_says_so(self, log_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        run_id = log_run("a-run-with-quite-a-name", ground_truth(), [], params={"model.backbone": "resnet18"})
        monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
        monkeypatch.setenv("COLUMNS", "80")
        lines = re.sub(r"\x1b\[[0-9;]*m", "", yolact("runs").stdout).splitlines()
        (line,) = (line for line in lines if run_id[:8] in line)
        assert "a-run-with-quite-a-name" in line
        assert "25.0" in line
        assert "…" not in line
        assert any(line.startswith("Columns left out: steps, started (UTC)") for line in lines)

    def test_newest_first_limited_filtered_and_by_experiment(self, client: MlflowClient, log_run: Any) -> None:
        for name in ("one", "two", "three"):
            log_run(name, params={"model.backbone": "resnet50" if name == "two" else "resnet18"})
        log_run("other", experiment="elsewhere", status="RUNNING")
        assert {row["name"] for row in printed_json("runs")} == {"one", "two", "three"}
        assert {row["name"] for row in printed_json("runs", "--experiment", "*")} == {"one", "two", "three", "other"}
        assert [row["status"] for row in printed_json("runs", "--experiment", "elsewhere")] == ["RUNNING"]
        assert len(printed_json("runs", "--limit", "2")) == 2
        filtered = printed_json("runs", "--filter", "params.`model.backbone` = 'resnet50'")
        assert [row["name"] for row in filtered] == ["two"]

    def test_no_run_no_experiment_and_a_wrong_filter_are_reported(self, log_run: Any) -> None:
        log_run("one")
        assert "has no such run" in yolact("runs", "--filter", "metrics.x > 3").stdout
        wrong = yolact("runs", "--experiment", "nowhere")
        assert wrong.exit_code == 1
        assert "has no experiment 'nowhere'. There are: Default, yolact" in wrong.stderr
        wrong = yolact("runs", "--filter", "mask AP is good")
        assert wrong.exit_code == 1
        assert "MLflow does not understand the filter" in wrong.stderr


def write_images(folder: Path, truth: dict[str, Any]) -> None:
    """Output of preprocess."""
    (folder / "images").mkdir(parents=True)
    for image in truth["images"]:
        Image.new("RGB", (SIDE, SIDE), (120, 130, 140)).save(folder / "images" / image["file_name"])
    (folder / "val.json").write_text(json.dumps(truth))
    (folder / "stats.json").write_text(json.dumps({"digest": "d1ce" * 16}))


class TestCompare:
    def test_two_runs_with_a_page_of_the_images_in_which_they_differ(self, log_run: Any, workplace: Path) -> None:
        truth = ground_truth()
        write_images(workplace / "data/processed/eval", truth)
        log_run("before", truth, rows_of(truth, missed={"image2.png"}), params={"train.lr": "0.1", "same": "1"})
        log_run("after", truth, rows_of(truth), params={"train.lr": "[bold]", "same": "1"})
        result = yolact("compare", "before", "after", "--samples", "100")
        assert result.exit_code == 0, result.output
        for text in (
            "before",
            "after",
            "train.lr",
            "[bold]",
            "mask AP50",
            "cat",
            "<dog>",
            "never seen",
            "paired bootstrap",
        ):
            assert text in result.stdout
        assert "same" not in result.stdout
        page = (workplace / "reports" / "compare" / "index.html").read_text()
        assert page.count("image2.png: disagreement 2.00") == 1
        assert "image1.png" not in page
        assert page.count('src="data:image/jpeg') == 3
        assert "&lt;dog&gt;" in page
        assert "<dog>" not in page
        kept = json.loads((workplace / "reports" / "compare" / "comparison.json").read_text())
        assert kept["images"][0] == {
            "file_name": "image2.png",
            "objects": 2,
            "found": {"a": 0, "b": 2},
            "false": {"a": 0, "b": 0},
            "disagreement": 2.0,
            "advantage_of_b": 2.0,
        }

    def test_json_has_metrics_intervals_classes_and_settings(self, log_run: Any) -> None:
        truth = ground_truth()
        log_run("before", truth, rows_of(truth, missed={"image2.png"}), params={"train.lr": "0.1"})
        log_run("after", truth, rows_of(truth), params={"train.lr": "0.2"})
        got = printed_json("compare", "before", "after")
        assert got["params"] == {"train.lr": {"a": "0.1", "b": "0.2"}}
        assert got["bootstrap"] == {"images": 6, "samples": 1000, "confidence": 0.95}
        metric = got["metrics"]["mask AP"]
        assert metric["b"] == pytest.approx(1)
        assert metric["difference"] == pytest.approx(metric["b"] - metric["a"])
        assert metric["interval"]["low"] <= metric["difference"] <= metric["interval"]["high"]
        assert got["per_class"].keys() == {"cat", "<dog>"}
        assert got["per_class"]["cat"]["objects"] == 6
        assert got["a"]["milliseconds"] == 20

    def test_without_the_images_the_page_says_how_to_get_them(self, log_run: Any, workplace: Path) -> None:
        truth = ground_truth()
        log_run("before", truth, [])
        log_run("after", truth, rows_of(truth))
        missing = yolact("compare", "before", "after", "--samples", "100")
        assert missing.exit_code == 0
        assert "No images on the page" in missing.stdout
        assert "dvc pull" in (workplace / "reports" / "compare" / "index.html").read_text()
        write_images(workplace / "other" / "eval", ground_truth(images=5))
        (workplace / "out").mkdir()
        (workplace / "out" / "mine.txt").write_text("stays")
        other = yolact("compare", "before", "after", "--samples", "100", "--data", "other", "-o", "out")
        assert "other/eval/val.json is not the split" in other.stdout
        assert {file.name for file in (workplace / "out").iterdir()} == {"mine.txt", "index.html", "comparison.json"}

    def test_a_run_with_itself_differs_in_nothing(self, log_run: Any, workplace: Path) -> None:
        truth = ground_truth()
        write_images(workplace / "data/processed/eval", truth)
        run_id = log_run("same", truth, rows_of(truth))
        result = yolact("compare", run_id, "same", "--samples", "100")
        assert result.exit_code == 0
        assert "No setting differs." in result.stdout
        assert "the same objects in all images" in (workplace / "reports" / "compare" / "index.html").read_text()

    def test_runs_on_different_data_are_shown_side_by_side_with_a_warning(self, log_run: Any, workplace: Path) -> None:
        for name, images in (("before", 6), ("after", 5)):
            truth = ground_truth(images)
            log_run(name, truth, rows_of(truth))
        result = yolact("compare", "before", "after")
        assert result.exit_code == 0
        assert "different data (6 and 5 images)" in result.stdout
        assert "interval" not in result.stdout.replace("have no interval", "")
        assert "no images in common" in (workplace / "reports" / "compare" / "index.html").read_text()

    def test_a_run_without_evaluation_is_named_with_what_to_do(self, log_run: Any) -> None:
        log_run("done", ground_truth(), [])
        for name, status in (("young", "RUNNING"), ("broken", "FAILED")):
            log_run(name, status=status)
            result = yolact("compare", "done", name)
            assert result.exit_code == 1
            assert f"run {name} {'is still running' if status == 'RUNNING' else 'ended as FAILED'}" in result.stderr
            assert "run the evaluate step" in result.stderr

    def test_the_working_folder_is_a_side(self, log_run: Any, workplace: Path) -> None:
        truth = ground_truth()
        write_images(workplace / "data/processed/eval", truth)
        detect = yaml.safe_load((workplace / "params.yaml").read_text())["evaluate"]["detect"]
        log_run("before", truth, rows_of(truth, missed={"image2.png"}), params={"train.lr": "0.5"}, settings=detect)
        missing = yolact("compare", "before", ".")
        assert missing.exit_code == 1
        assert (
            "reports/eval/report.json: no such file. Run the evaluate step first: dvc repro evaluate" in missing.stderr
        )
        report = workplace / "reports" / "eval"
        report.mkdir(parents=True)
        (report / "detections.json").write_text(json.dumps(rows_of(truth)))
        (report / "report.json").write_text(json.dumps({"seconds_per_image": 0.01, "settings": {"detect": detect}}))
        got = printed_json("compare", "before", ".")
        assert got["b"]["name"] == "working folder"
        assert got["params"]["train.lr"] == {"a": "0.5", "b": "0.001"}
        assert got["metrics"]["mask AP"]["b"] == pytest.approx(1)
        assert (got["warnings"], got["paired"]) == ([], True)
