"""The pipelines as a user runs them here, with the preset `smoke`: their tasks are processes that kfp starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from components.evaluate import step as evaluate
from components.ingest import step as ingest
from components.preprocess import step as preprocess
from components.train import training as train
from pipelines.compiler import PIPELINES
from pipelines.config import load_cluster
from pipelines.local import run_pipeline
from tests.pipelines import data_alone
from tests.servers.servers import KEY, SECRET, s3_server, use_s3
from yolact.formats.sample import generate_sample
from yolact.inference.predictor import Predictor
from yolact.settings import SampleConfig
from yolact_ops.commands.task import as_text
from yolact_ops.settings.params import Params, load_params
from yolact_ops.settings.presets import choose
from yolact_ops.sources.raw import REFERENCE
from yolact_ops.transfer.instances import load_instances

SAMPLE = SampleConfig(seed=3, train_images=8, val_images=4, min_size=80, max_size=96, max_objects=2)
SETTINGS = ["runtime.device=cpu", "train.epochs=2", "train.batch_size=2", "evaluate.detect.score_threshold=0.001"]


PATIENCE = 900
"""Time-out in seconds; a run takes half a minute."""


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class Finished:
    """The training pipeline, run once, with train killed in the middle."""

    root: Path
    """Working folder, with ``mlflow.db``."""
    repository: Path
    """Git repository of the data."""
    commit: str
    """That its tag ``v1`` names."""
    params: Params
    shown: str
    """The terminal's output."""
    folder: Path

    def json(self, file: str) -> Any:
        return json.loads((self.folder / file).read_text())

    @property
    def store(self) -> MlflowClient:
        return MlflowClient(tracking_uri=f"sqlite:///{self.root}/mlflow.db")


def kill_train(process: subprocess.Popen[str], checkpoints: Path) -> None:
    """Kill the task `train` after its first epoch; the pipeline itself keeps running."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if any("-step_00000000-" not in path.name for path in checkpoints.glob("*/*-step_*.pt")):
            for child in psutil.Process(process.pid).children(recursive=True):
                command = child.cmdline()
                if "kfp.dsl.executor_main" in command and "train" in command:
                    child.send_signal(signal.SIGKILL)
                    return
        time.sleep(0.01)
    raise AssertionError("train wrote no checkpoint that it could be killed after")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    outside = ("MLFLOW_", "DVC_", "GIT_", "AWS_", "YOLACT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    repository = Path(__file__).parents[2]
    return kept | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture(scope="module")
def finished(repository: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("work")
    data = tmp_path_factory.mktemp("data")
    generate_sample(data / "images", SAMPLE)
    git(data, "init", "-q")
    git(data, "add", "-A")
    git(data, "commit", "-qm", "images")
    git(data, "tag", "v1")
    shutil.copytree(repository / "conf", root / "conf")
    overrides = [*SETTINGS, f"data.source=dvc:{data}#images@v1"]
    command = [sys.executable, "-m", "pipelines", "run-local", "--preset", "smoke", "-o", "out"]
    command += [part for override in overrides for part in ("-S", override)]
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        kill_train(process, root / "out/checkpoints")
        shown, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, shown
    [folder] = (root / "out").glob("training-*")
    before = Path.cwd()
    os.chdir(root)
    try:
        params = choose("smoke", overrides=overrides)
    finally:
        os.chdir(before)
    return Finished(root, data, git(data, "rev-parse", "HEAD"), params, shown, folder)


@pytest.fixture
def here(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to the pipeline's working folder."""
    monkeypatch.chdir(finished.root)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("one_thread")
def test_the_pipeline_gives_the_metrics_of_the_steps_to_the_last_digit_though_train_was_killed(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.root}/mlflow.db")
    params = finished.params
    raw, processed, models = tmp_path / "data/raw", tmp_path / "data/processed", tmp_path / "models"
    ingest.run(params, raw_dir=raw, downloads_dir=tmp_path / "data/downloads")
    preprocess.run(params, raw_dir=raw, processed_dir=processed, report_dir=tmp_path / "reports/data")
    train.run(
        params,
        train_data_dir=processed / "train",
        eval_data_dir=processed / "eval",
        model_dir=models,
        metrics_path=tmp_path / "metrics/train.json",
        plots_dir=tmp_path / "plots/train",
    )
    metrics = tmp_path / "metrics/eval.json"
    evaluate.run(
        params,
        eval_data_dir=processed / "eval",
        model_dir=models,
        metrics_path=metrics,
        report_dir=tmp_path / "reports/eval",
        plots_dir=tmp_path / "plots/eval",
    )
    assert (finished.folder / "evaluate/evaluation/eval.json").read_bytes() == metrics.read_bytes()
    weights = "model.safetensors"
    assert (finished.folder / "train/model" / weights).read_bytes() == (models / weights).read_bytes()
    detections = tmp_path / "reports/eval/detections.json"
    assert json.loads(detections.read_text()), "nothing was found at all"
    assert (finished.folder / "evaluate/evaluation/report/detections.json").read_bytes() == detections.read_bytes()


def test_a_killed_training_is_retried_and_resumes_from_its_checkpoint(finished: Finished) -> None:
    log = (finished.folder / "pipeline.log").read_text()
    assert log.count("Executing task 'train'") == 2
    assert "Task train failed (attempt 1/6). Retrying in 1.0s" in finished.shown
    assert "[train] resuming after epoch" in finished.shown
    assert not any((finished.root / "out/checkpoints").iterdir()), "checkpoints of a finished run were kept"


def test_the_output_has_the_tasks_their_lines_and_the_results_folder(finished: Finished) -> None:
    lines = finished.shown.splitlines()
    tasks = [line.removeprefix("--- ") for line in lines if line.startswith("--- ")]
    assert tasks == ["source", "ingest", "preprocess", "train", "train", "evaluate", "register", "promote"]
    assert "executor_input" not in finished.shown
    assert "KFP Executor" not in finished.shown
    assert "\x1b[" not in finished.shown
    for line in ("model", "metrics", "report", "log"):
        [place] = [found.split()[1] for found in lines if found.startswith(f"{line} ")]
        assert Path(place).exists()
    assert "registered models:/yolact-smoke/1" in lines


def test_the_registered_version_is_tagged_with_the_datas_revision(finished: Finished) -> None:
    pinned = f"dvc:{finished.repository}#images@{finished.commit}"
    version = finished.store.get_model_version("yolact-smoke", "1")
    assert version.tags["data_source"] == pinned
    assert version.tags["data_digest"] == finished.json("preprocess/eval_data/stats.json")["digest"]
    run = finished.store.get_run(version.run_id)
    assert run.data.params["data.source"] == pinned


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outputs(finished: Finished, task: str) -> dict[str, Any]:
    """Metadata of a task's artifacts, as kfp passed them on."""
    artifacts = finished.json(f"{task}/executor_output.json")["artifacts"]
    return {name: entry["artifacts"][0]["metadata"] for name, entry in artifacts.items()}


def test_artifacts_have_the_metadata_that_the_interface_shows(finished: Finished) -> None:
    raw = outputs(finished, "ingest")["raw"]
    assert raw["files"] == sum(path.is_file() for path in (finished.folder / "ingest/raw").rglob("*"))
    assert len(list((finished.folder / "ingest/raw").rglob("*.jpg"))) == SAMPLE.train_images + SAMPLE.val_images
    assert raw["source"].endswith(finished.commit)
    data = outputs(finished, "preprocess")["eval_data"]
    assert outputs(finished, "preprocess")["train_data"] == data
    assert (data["train_images"], data["val_images"]) == (SAMPLE.train_images, SAMPLE.val_images)
    assert data["digest"] == finished.json("preprocess/eval_data/stats.json")["digest"]
    scores = finished.json("evaluate/evaluation/eval.json")
    shown = outputs(finished, "evaluate")["metrics"]
    assert shown["mask_AP50"] == scores["mask"]["AP50"]
    assert shown["box_AR_100"] == scores["box"]["AR_100"]
    run = finished.json("train/model/run.json")["run_id"]
    assert outputs(finished, "train")["model"]["mlflow_run"] == run
    registered = outputs(finished, "register")["registration"]
    assert (registered["name"], registered["version"]) == ("yolact-smoke", 1)
    assert outputs(finished, "promote")["promotion"]["status"] in ("promoted", "refused")
    for page in ("preprocess/report", "evaluate/report"):
        assert (finished.folder / page).read_text().lstrip().lower().startswith("<!doctype html>")
    table = (finished.folder / "evaluate/summary").read_text()
    assert f"| mask | {100 * scores['mask']['AP']:.1f} |" in table


@pytest.mark.usefixtures("here")
def test_a_registered_model_is_evaluated_on_a_revision_and_unchanged_data_is_not_prepared_again(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "params": as_text(finished.params),
        "model": "models:/yolact-smoke/1",
        "data_repository": str(finished.repository),
        "data_path": "images",
        "data_revision": "v1",
    }
    done = run_pipeline("evaluation", arguments, load_cluster(), finished.root / "out")
    shown = capsys.readouterr().out
    assert shown.count("cache hit") == 2
    assert not (done.folder / "ingest").exists()
    metrics = (done.folder / "evaluate/evaluation/eval.json").read_bytes()
    assert metrics == (finished.folder / "evaluate/evaluation/eval.json").read_bytes()
    run = finished.store.get_run(json.loads((done.folder / "fetch/model/run.json").read_text())["run_id"])
    assert run.info.run_id != finished.json("train/model/run.json")["run_id"]
    assert run.data.tags["evaluated_version"] == "yolact-smoke/1"
    assert run.data.metrics["eval/box_AR_100"] == json.loads(metrics)["box"]["AR_100"]


@pytest.fixture
def bucket(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a real S3 server, with the data set's images in it."""
    images = tmp_path / "bucket" / "images"
    (images / "more").mkdir(parents=True)
    for number, image in enumerate(sorted((finished.repository / "images").rglob("*.jpg"))[:5]):
        shutil.copy2(image, images / ("more" if number % 2 else "") / image.name)
    (images / "broken.jpg").write_bytes(b"no picture")
    (images / "notes.txt").write_text("not an image")
    with s3_server(tmp_path) as address:
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        yield tmp_path / "bucket"


@pytest.mark.usefixtures("here", "one_thread")
def test_a_folder_in_s3_is_predicted_in_shards_as_the_predictor_alone_does(finished: Finished, bucket: Path) -> None:
    arguments = {
        "model": "models:/yolact-smoke/1",
        "images": "s3://bucket/images",
        "destination": "s3://bucket/found",
        "shards": 2,
        "batch_size": 1,
        "device": "cpu",
    }
    done = run_pipeline("batch_prediction", arguments, load_cluster(), finished.root / "out")
    rows = json.loads((done.folder / "merge/predictions/detections.json").read_text())
    listed = json.loads((done.folder / "merge/predictions/images.json").read_text())
    assert [entry["id"] for entry in listed["images"]] == [1, 2, 3, 5, 6], "4 is broken.jpg, by its name"
    predictor = Predictor.load(
        finished.folder / "train/model", finished.params.evaluate.detect, device="cpu", batch_size=1
    )
    expected = []
    for entry in listed["images"]:
        found = predictor.predict(bucket / "images" / entry["file_name"])
        assert found.instance_masks.height == entry["height"]
        expected += found.to_coco(entry["id"])
    assert rows == json.loads(json.dumps(expected))
    assert rows
    names = {entry["id"]: entry["name"] for entry in listed["categories"]}
    assert list(names.values()) == predictor.classes
    [problem] = json.loads((bucket / "found/problems.json").read_text())
    assert (problem["id"], problem["file_name"]) == (4, "broken.jpg")
    for file in ("detections.json", "images.json"):
        assert (bucket / "found" / file).read_bytes() == (done.folder / "merge/predictions" / file).read_bytes()


@pytest.mark.usefixtures("here")
def test_a_failed_task_ends_the_pipeline_with_its_message(
    finished: Finished, environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pipelines", "run-local", "--preset", "smoke", "-o", str(tmp_path)]
    command += ["-S", f"data.source=dvc:{finished.repository}#images@v9"]
    done = subprocess.run(
        command, cwd=finished.root, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    first, *_ = done.stderr.strip().splitlines()
    assert first.startswith("source failed: data.source: dvc:")
    assert "has no branch, tag or commit 'v9'" in first
    assert f"The full output of the tasks is in {tmp_path / 'training.log'}." in done.stderr


def test_a_wrong_setting_is_refused_before_anything_runs(finished: Finished, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pipelines", "run-local", "--preset", "smoke"]
    command += ["-o", "unused", "-S", "train.epoch=1"]
    done = subprocess.run(
        command, cwd=finished.root, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert "train.epoch: unknown key; did you mean 'epochs'?" in done.stderr
    assert not (finished.root / "unused").exists()


@pytest.mark.usefixtures("one_thread")
def test_scans_of_parts_give_the_bytes_of_one_preprocess_task(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setitem(PIPELINES, "data", data_alone.build)
    base = load_params(repository / "conf" / "base.yaml")
    found = {}
    for shard_size in (0, 3):
        data = base.data.model_copy(update={"source": "sample", "sample": SAMPLE, "shard_size": shard_size})
        for parts in (1, 3):
            cluster = load_cluster(overrides=[f"scan_parts={parts}", "parallel.scan=2"])
            output = tmp_path / f"{shard_size}-{parts}"
            done = run_pipeline("data", {"params": as_text(base.model_copy(update={"data": data}))}, cluster, output)
            assert (done.folder / "preprocess/eval_data/stats.json").is_file()
            log = (done.folder / "pipeline.log").read_text()
            assert len(re.findall(r"Executing task 'scan", log)) == (parts if parts > 1 else 0)
            found[shard_size, parts] = {
                path.relative_to(done.folder): path.read_bytes()
                for folder in ("train_data", "eval_data", "report", "report_files")
                for path in sorted((done.folder / "preprocess").glob(f"{folder}*/**/*"))
                if path.is_file()
            }
        assert found[shard_size, 3] == found[shard_size, 1]
    assert any(path.suffix == ".tar" for path in found[3, 3])
    assert any(path.name == "index.html" for path in found[0, 3])


@pytest.mark.usefixtures("one_thread")
def test_shards_go_to_s3_and_the_artifacts_have_annotations_and_indexes_alone(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by the task that merges the scans."""
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setitem(PIPELINES, "data", data_alone.build)
    base = load_params(repository / "conf" / "base.yaml")
    data = base.data.model_copy(update={"source": "sample", "sample": SAMPLE, "shard_size": 3})
    runtime = base.runtime.model_copy(update={"shards": "s3://bucket/shards"})
    params = base.model_copy(update={"data": data, "runtime": runtime})
    (tmp_path / "s3/bucket").mkdir(parents=True)
    with s3_server(tmp_path / "s3") as address:
        use_s3(monkeypatch, address)
        done = run_pipeline("data", {"params": as_text(params)}, load_cluster(overrides=["scan_parts=2"]), tmp_path)
        found = {name: contents(done.folder / f"preprocess/{name}_data") for name in ("train", "eval")}
        assert {str(path) for path in found["train"]} == {"train.json", "train.arrow"}
        assert {str(path) for path in found["eval"]} == {"val.json", "val.arrow", "stats.json"}
        for file, count in (("train_data/train", SAMPLE.train_images), ("eval_data/val", SAMPLE.val_images)):
            split = load_instances(done.folder / f"preprocess/{file}.json", runtime)
            assert len([split.read_image(image) for image in split.images]) == count


@pytest.mark.usefixtures("one_thread")
def test_raw_data_by_reference_gives_the_bytes_of_copied_data(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setitem(PIPELINES, "data", data_alone.build)
    generate_sample(tmp_path / "s3/bucket/set", SAMPLE)
    base = load_params(repository / "conf" / "base.yaml")
    params = base.model_copy(update={"data": base.data.model_copy(update={"source": "s3://bucket/set"})})
    with s3_server(tmp_path / "s3") as address:
        use_s3(monkeypatch, address)
        ingest.run(params, raw_dir=tmp_path / "raw", downloads_dir=tmp_path / "downloads")
        expected = tmp_path / "expected"
        preprocess.run(params, raw_dir=tmp_path / "raw", processed_dir=expected, report_dir=tmp_path / "report")
        for parts in (1, 2):
            cluster = load_cluster(overrides=["raw_by_reference=true", f"scan_parts={parts}"])
            done = run_pipeline("data", {"params": as_text(params)}, cluster, tmp_path / f"{parts}")
            assert [path.name for path in (done.folder / "ingest/raw").iterdir()] == [REFERENCE]
            for name in ("train", "eval"):
                assert contents(done.folder / f"preprocess/{name}_data") == contents(expected / name)
