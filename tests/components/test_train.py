"""The step `train`: what it writes and logs, resuming of killed runs, and error messages."""

from __future__ import annotations

import copy
import csv
import json
import logging
import os
import platform
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from components.train import step, training
from components.train.results import summary, write_plots
from components.train.supervisor import CrashedError
from tests.coloured_boxes import BLUE, RED, SIZE, Box, write_coloured_boxes
from tests.servers.servers import free_port
from tests.yolact.losses.dice import DICE
from yolact.data.coco import CocoInstances
from yolact.distributed import World
from yolact.engine import automatic
from yolact.engine.checkpoint_files import newest_checkpoint
from yolact.engine.schedule import learning_rate
from yolact.engine.trainer import Trainer, TrainingResult
from yolact.errors import EX_UNAVAILABLE, SettingsError
from yolact.losses.terms import LOSS_TERMS
from yolact.models.checkpoints import import_checkpoint
from yolact.models.weights import load_model, read_saved, save_model
from yolact.models.yolact import Yolact
from yolact_ops.settings.params import Params, load_params, parse_params
from yolact_ops.tracking.store import TrackingError
from yolact_ops.tracking.tracker import Tracker

DIGEST = "0123456789abcdef" * 4
OBJECTS: list[Box] = [(RED, (6, 8, 40, 50)), (BLUE, (28, 20, 60, 60))]
"""Category and xyxy of the objects of every image; the second image of a split has the first one alone."""

MODEL = {
    "backbone": "resnet18",
    "backbone_weights": "none",
    "image_size": SIZE,
    "fpn_channels": 16,
    "num_prototypes": 8,
    "anchor_scales": [[16], [24], [32], [40], [56]],
}
RUNTIME = {"device": "cpu", "workers": 0, "checkpoint_every": 2}
TRAIN = {
    "epochs": 10,
    "batch_size": 1,
    "schedule": "cosine",
    "warmup_steps": 3,
    "validate_every": 4,
    "log_every": 3,
}
SPLIT_DIGESTS = {"train": "digest-of-train", "val": "digest-of-val"}
OURS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")


def make_split(folder: Path, split: str, numbers: list[int]) -> None:
    """Write the images and annotations of a split into the processed data in ``folder``."""
    boxes = {number: OBJECTS[: 1 + number % 2] for number in numbers}
    data = folder / ("train" if split == "train" else "eval")
    write_coloured_boxes(data / f"{split}.json", data / "images", boxes)


@pytest.fixture(scope="module")
def settings(repository: Path) -> dict[str, Any]:
    tree = load_params(repository / "conf" / "base.yaml").model_dump(mode="json", by_alias=True)
    tree["model"] |= MODEL
    tree["train"] |= TRAIN
    tree["runtime"] |= RUNTIME
    return tree


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, here and in the started commands: sums have the same order."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_workplace(folder: Path, settings: dict[str, Any], empty_store: Path) -> Path:
    """A folder with settings, processed data of two training and one validation image, and an empty store."""
    processed = folder / "data" / "processed"
    make_split(processed, "train", [1, 2])
    make_split(processed, "val", [3])
    (processed / "eval/stats.json").write_text(json.dumps({"digest": DIGEST, "split_digests": SPLIT_DIGESTS}))
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture
def workplace(
    tmp_path: Path, settings: dict[str, Any], empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    monkeypatch.chdir(make_workplace(tmp_path, settings, empty_store))
    yield tmp_path
    shutil.rmtree(tmp_path / "models", ignore_errors=True)  # checkpoints are large, and pytest keeps three sessions'


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any], empty_store: Path) -> Iterator[Path]:
    """The folder of a run that was not interrupted."""
    folder = make_workplace(tmp_path_factory.mktemp("straight"), settings, empty_store)
    with pytest.MonkeyPatch.context() as patch:
        for name in OURS:
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
        patch.chdir(folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        train(parse_params(settings))
        torch.set_num_threads(threads)
    yield folder
    shutil.rmtree(folder / "models")


def train(params: Params, checkpoints: Path | None = None) -> None:
    training.run(
        params,
        train_data_dir=Path("data/processed/train"),
        eval_data_dir=Path("data/processed/eval"),
        model_dir=Path("models"),
        metrics_path=Path("metrics/train.json"),
        plots_dir=Path("plots/train"),
        checkpoints_dir=checkpoints,
    )


def changed(settings: dict[str, Any], **values: Any) -> Params:
    tree = copy.deepcopy(settings)
    for name, value in values.items():
        tree["runtime" if name in tree["runtime"] else "train"][name] = value
    return parse_params(tree)


def store(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def runs(folder: Path) -> list[Run]:
    experiment = store(folder).get_experiment_by_name("yolact")
    assert experiment is not None
    return list(store(folder).search_runs([experiment.experiment_id]))


def rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# --- What a run leaves


def test_all_dvc_outputs_are_written(straight: Path, repository: Path) -> None:
    pipeline = yaml.safe_load((repository / "dvc.yaml").read_text())
    stage = pipeline["stages"]["train"]
    written = [item if isinstance(item, str) else next(iter(item)) for item in stage["outs"]]
    assert len(written) > 5
    for path in written:
        assert (straight / path).exists(), path
    for plot in pipeline["plots"]:
        for name, settings in plot.items():
            files = {name: settings["y"]} if isinstance(settings["y"], str) else settings["y"]
            for path, columns in files.items():
                if path.startswith("plots/train/"):
                    wanted = {settings["x"]} | set([columns] if isinstance(columns, str) else columns)
                    tables = [straight / path] if (straight / path).is_file() else list((straight / path).iterdir())
                    assert tables
                    for table in tables:
                        assert wanted <= set(table.read_text().splitlines()[0].split(","))
    assert not list(straight.rglob("*.part"))


def test_the_curves_are_those_of_the_run(straight: Path, settings: dict[str, Any]) -> None:
    losses = rows(straight / "plots/train/losses.csv")
    steps = [0, 3, 6, 9, 12, 15, 18]  # every third of 20: 10 epochs of 2 steps
    assert [row["step"] for row in losses] == steps
    assert [row["epoch"] for row in losses] == [1 + step // 2 for step in steps]
    for row in losses:
        weighted = row["classification"] + 1.5 * row["box"] + 6.125 * row["mask"] + row["semantic"]
        assert row["total"] == pytest.approx(weighted, rel=1e-5)
    assert losses[-1]["total"] < losses[0]["total"]

    config = parse_params(settings).train
    rates = {row["step"]: row["lr"] for row in rows(straight / "plots/train/lr.csv")}
    assert rates == {step: pytest.approx(learning_rate(step, 20, config)) for step in steps}

    validations = rows(straight / "plots/train/ap.csv")
    assert [row["epoch"] for row in validations] == [4, 8, 10]
    assert all(0 <= row["mask_AP"] <= row["mask_AP50"] <= 1 for row in validations)


def test_the_summary_is_the_end_of_the_curves(straight: Path) -> None:
    summary = json.loads((straight / "metrics/train.json").read_text())
    last = rows(straight / "plots/train/losses.csv")[-1]
    for column in ("total", "classification", "box", "mask", "semantic"):
        assert summary[f"loss_{column}"] == last[column]
    assert summary["steps"] == 20
    assert summary["best_val_mask_AP"] == max(row["mask_AP"] for row in rows(straight / "plots/train/ap.csv"))
    assert summary["seconds_per_step"] > 0


def test_the_term_of_mask_rescoring_has_a_column_if_it_is_trained(straight: Path, tmp_path: Path) -> None:
    """The run above does not have it; this one writes the results of a network with it."""
    assert "mask_iou" not in (straight / "plots/train/losses.csv").read_text()
    assert "loss_mask_iou" not in (straight / "metrics/train.json").read_text()

    logged = [
        {"epoch": 1 + number // 2, "step": number, "lr": 1e-3, "total": 10.0, "classification": 4.0, "box": 3.0}
        | {"mask": 1.0, "semantic": 0.5, "mask_iou": 1.5 - number / 4}
        for number in range(4)
    ]
    validated = [{"epoch": 2, "step": 4, "mask_AP": 0.1}]
    result = TrainingResult({"steps": logged, "epochs": validated}, steps=4, best_score=0.1, seconds_per_step=1.0)
    write_plots(tmp_path, result)
    losses = rows(tmp_path / "losses.csv")
    assert list(losses[0]) == ["epoch", "step", "total", "classification", "box", "mask", "semantic", "mask_iou"]
    assert [row["mask_iou"] for row in losses] == [1.5, 1.25, 1.0, 0.75]
    assert summary(result)["loss_mask_iou"] == pytest.approx((1.0 + 0.75) / 2)


def test_an_external_loss_term_is_in_all_outputs_and_survives_an_interruption(
    workplace: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two logged means; compared with an uninterrupted run."""
    monkeypatch.setitem(LOSS_TERMS, "dice", DICE)
    progress: list[str] = []
    monkeypatch.setattr(tqdm, "set_postfix_str", lambda _, text: progress.append(text))
    weights = settings["train"]["loss"]["weights"] | {"dice": 2.0}
    params = changed(settings, epochs=2, loss=settings["train"]["loss"] | {"weights": weights}, checkpoint_every=1)
    interrupt_before_epoch(1, monkeypatch, params)
    train(params)
    losses = rows(Path("plots/train/losses.csv"))
    assert [row["step"] for row in losses] == [0, 3]
    for row in losses:
        assert 0 < row["dice"] < 1
        assert row["total"] == pytest.approx(sum(weights.get(name, 0) * value for name, value in row.items()), rel=1e-5)
    assert rows(Path("plots/train/loss_terms/dice.csv")) == [
        {"step": row["step"], "loss": row["dice"]} for row in losses
    ]
    assert json.loads(Path("metrics/train.json").read_text())["loss_dice"] == losses[-1]["dice"]
    assert f"dice {losses[-1]['dice']:.2f}" in progress[-1]
    (run,) = runs(workplace)
    history = store(workplace).get_metric_history(run.info.run_id, "train/dice")
    assert sorted((metric.step, metric.value) for metric in history) == [(row["step"], row["dice"]) for row in losses]
    assert run.data.metrics["train/loss_dice"] == losses[-1]["dice"]
    assert run.data.params["train.loss.weights.dice"] == "2.0"

    train(params)
    assert rows(Path("plots/train/losses.csv")) == losses


def test_the_model_knows_its_classes_and_settings(straight: Path, settings: dict[str, Any]) -> None:
    model, classes = load_model(straight / "models")
    assert classes == ["red", "blue"]
    assert model.config == parse_params(settings).model


def test_mlflow_has_the_curves_the_settings_and_the_data(straight: Path, settings: dict[str, Any]) -> None:
    (run,) = runs(straight)
    assert json.loads((straight / "models/run.json").read_text())["run_id"] == run.info.run_id
    assert run.info.status == "FINISHED"

    def history(name: str) -> list[tuple[int, float]]:
        return sorted((m.step, m.value) for m in store(straight).get_metric_history(run.info.run_id, name))

    losses = rows(straight / "plots/train/losses.csv")
    for name in ("total", "classification", "mask"):
        assert history(f"train/{name}") == [(row["step"], row[name]) for row in losses]
    assert history("train/lr") == [(row["step"], row["lr"]) for row in rows(straight / "plots/train/lr.csv")]
    validations = rows(straight / "plots/train/ap.csv")
    for name in ("mask_AP", "mask_AP50", "box_AP", "box_AP50", "epoch"):
        assert history(f"val/{name}") == [(2 * row["epoch"], row[name]) for row in validations]
    for name, value in json.loads((straight / "metrics/train.json").read_text()).items():
        assert run.data.metrics[f"train/{name}"] == pytest.approx(value)

    assert run.data.params["train.lr"] == str(settings["train"]["lr"])
    assert run.data.params["model.backbone"] == "resnet18"
    assert run.data.params["register.experiment"] == "yolact"
    inputs = {item.dataset.name: item for item in run.inputs.dataset_inputs}
    assert {name: item.tags[0].value for name, item in inputs.items()} == {
        "train": "training",
        "val": "validation",
    }
    for name, images, folder in (("train", 2, "train"), ("val", 1, "eval")):
        assert json.loads(inputs[name].dataset.profile) == {"num_rows": images, "digest": SPLIT_DIGESTS[name]}
        path = f"data/processed/{folder}/{name}.json"
        assert json.loads(inputs[name].dataset.source) == {"uri": "sample", "path": path}
    assert run.data.tags["data_digest"] == DIGEST
    note = run.data.tags["mlflow.note.content"]
    best = max(row["mask_AP"] for row in validations)
    for part in ("resnet18", "`sample`", "2 classes (red, blue)", "1 images in val", f"{100 * best:.1f}"):
        assert part in note


@pytest.mark.parametrize("threads", [1, 2])
def test_the_run_has_the_threads_that_it_computed_with(threads: int, workplace: Path, settings: dict[str, Any]) -> None:
    train(changed(settings, epochs=1, threads=threads))
    (run,) = runs(workplace)
    assert run.data.tags["train_threads"] == run.data.params["runtime.threads"] == str(threads)
    assert torch.get_num_threads() == 1  # as before


def test_mlflow_has_speed_machine_and_validation_drawings(straight: Path) -> None:
    (run,) = runs(straight)
    assert {"speed/images_per_second", "speed/data_wait", "speed/seconds_left"} <= run.data.metrics.keys()
    assert "system/cpu_utilization_percentage" in run.data.metrics
    for epoch in (4, 8, 10):
        (picture,) = store(straight).list_artifacts(run.info.run_id, f"validation/epoch_{epoch:04d}")
        assert picture.path.endswith("/3.jpg")  # the one validation image


def test_a_val_split_of_crowd_regions_alone_has_no_ap(
    workplace: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = Path("data/processed/eval/val.json")
    tree = json.loads(path.read_text())
    for row in tree["annotations"]:
        row["iscrowd"] = 1
    path.write_text(json.dumps(tree))
    train(changed(settings, epochs=1))
    assert "crowd regions alone, so AP cannot be measured" in caplog.text
    assert json.loads(Path("metrics/train.json").read_text())["best_val_mask_AP"] is None
    (row,) = csv.DictReader(Path("plots/train/ap.csv").read_text().splitlines())
    assert row == {"epoch": "1", "box_AP": "", "box_AP50": "", "mask_AP": "", "mask_AP50": ""}
    (run,) = runs(workplace)
    assert run.info.status == "FINISHED"
    assert "val/epoch" in run.data.metrics
    assert not {"val/mask_AP", "train/best_val_mask_AP"} & run.data.metrics.keys()


# --- Initial weights


@pytest.fixture
def imported(workplace: Path, settings: dict[str, Any]) -> Path:
    """A checkpoint under the published names, of the run's network for three classes, imported."""
    torch.manual_seed(1)
    config = parse_params(settings).model
    torch.save(Yolact(config, 3).state_dict(), "published.pth")
    size, scales, ratios = config.image_size, config.anchor_scales, config.anchor_ratios
    model = import_checkpoint(
        Path("published.pth"), image_size=size, anchor_scales=scales, anchor_ratios=ratios, square_anchors=False
    )
    save_model(model.network, model.classes, Path("start"))
    return Path("start")


def starting_from(settings: dict[str, Any], folder: Path, **values: Any) -> Params:
    return changed(settings | {"model": settings["model"] | {"initial_weights": str(folder)}}, **values)


def test_a_run_starts_from_an_imported_model_and_logs_what_it_reinitialised(
    imported: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    begun: list[dict[str, torch.Tensor]] = []
    fit = Trainer.fit

    def keep_start(trainer: Trainer) -> TrainingResult:
        begun.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        return fit(trainer)

    monkeypatch.setattr(Trainer, "fit", keep_start)
    train(starting_from(settings, imported, epochs=1))
    file, (start,) = load_file(imported / "model.safetensors"), begun
    again = {name for name, tensor in start.items() if not torch.equal(tensor, file[name])}
    assert {name.rpartition(".")[0] for name in again} == {"prediction_layers.0.conf_layer", "semantic_seg_conv"}
    assert (
        "reinitialised: prediction_layers.0.conf_layer (12 -> 9 channels), semantic_seg_conv (3 -> 2 channels)"
        in caplog.text
    )
    trained = load_file("models/model.safetensors")
    changed_layers = {name for name in start if not torch.equal(trained[name], start[name])}
    assert "proto_net.0.weight" in changed_layers
    assert not any("running" in name or ".bn" in name for name in changed_layers)  # batch norm is frozen


def test_an_interrupted_run_is_not_resumed_with_other_initial_weights(
    imported: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    params = starting_from(settings, imported, epochs=2, validate_every=2, checkpoint_every=1)
    interrupt_before_the_validation(monkeypatch, params)
    caplog.clear()
    interrupt_before_the_validation(monkeypatch, params)
    assert "resuming after epoch 2 of 2" in caplog.text
    assert "reinitialised" not in caplog.text

    caplog.clear()
    tensors = load_file(imported / "model.safetensors")
    save_file(tensors | {"proto_net.0.bias": tensors["proto_net.0.bias"] + 1}, imported / "model.safetensors")
    interrupt_before_the_validation(monkeypatch, params)
    assert "resuming" not in caplog.text
    assert "reinitialised" in caplog.text


# --- Going on


def start(repository: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.Popen(
        [sys.executable, "-m", "components.train.step"],
        env=environment | {"PYTHONPATH": str(repository)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.005)


def wait_for_checkpoint(number: int, process: subprocess.Popen[str]) -> None:
    wait_for(lambda: newest_number() >= number, process)


def newest_number() -> int:
    return newest_checkpoint(Path("models/checkpoints"))[1]


def child_of(process: subprocess.Popen[str]) -> int:
    """The training process of a supervisor."""
    (child,) = psutil.Process(process.pid).children()
    return child.pid


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_ends_as_the_uninterrupted_one(
    workplace: Path, straight: Path, repository: Path
) -> None:
    with start(repository) as process:
        try:
            wait_for(lambda: Path("models/run.json").exists(), process)
            os.kill(child_of(process), signal.SIGKILL)  # its MLflow run has begun, a checkpoint has not
            wait_for_checkpoint(2, process)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    process.communicate(timeout=30)  # the training process ends with it, and closes standard error
    assert not Path("models/model.safetensors").exists()
    (killed,) = runs(workplace)
    assert killed.info.status == "RUNNING"

    before = newest_number()
    with start(repository) as process:
        wait_for_checkpoint(before + 1, process)
        os.kill(child_of(process), signal.SIGKILL)
        _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    resumed = re.findall(r"\[train\] resuming after epoch (\d+) of 10", log)
    assert len(resumed) == 2, log
    assert int(resumed[0]) < int(resumed[1]), log
    again = f"starting again from the checkpoint of step {2 * int(resumed[1])} (restart 1 of 3 without progress)"
    assert f"[train] the training process was killed (SIGKILL): {again}" in log
    assert "Traceback" not in log

    (run,) = runs(workplace)
    assert run.info.run_id == killed.info.run_id
    assert run.info.status == "FINISHED"
    assert len(run.inputs.dataset_inputs) == 2
    found, expected = (load_file(folder / "models/model.safetensors") for folder in (workplace, straight))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in ("losses.csv", "lr.csv", "ap.csv"):
        assert (workplace / "plots/train" / name).read_text() == (straight / "plots/train" / name).read_text()


def test_a_run_asked_to_stop_exits_with_its_own_code_and_is_killed_in_mlflow(
    workplace: Path, settings: dict[str, Any], repository: Path
) -> None:
    tree = changed(settings, epochs=2000, validate_every=2000).model_dump(mode="json", by_alias=True)
    (workplace / "params.yaml").write_text(yaml.safe_dump(tree))  # it would not end before the signal comes
    with start(repository) as process:
        wait_for_checkpoint(2, process)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=300)
    assert process.returncode == 75, log
    assert "train failed: stopped by SIGTERM; a checkpoint is written" in log
    assert "Traceback" not in log
    (run,) = runs(workplace)
    assert run.info.status == "KILLED"


STOPPED = """
import os, signal, sys
from components.train import step, training

name = sys.argv.pop()
work = getattr(training, name)

def stopped(*arguments):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    return work(*arguments)

setattr(training, name, stopped)
step.run_command("train", lambda params: training.run(
    params, train_data_dir=step.Path("data/processed/train"), eval_data_dir=step.Path("data/processed/eval"),
    model_dir=step.Path("models"),
    metrics_path=step.Path("metrics/train.json"), plots_dir=step.Path("plots/train")))
"""
"""The step as a program, which is sent SIGTERM twice when it begins a part of its work: a function of its module."""


@pytest.mark.parametrize(
    ("part", "code", "statuses"),
    [("_load_split", 75, []), ("_log_data", 75, ["KILLED"]), ("_write_results", 0, ["FINISHED"])],
)
def test_a_run_asked_to_stop_before_or_after_its_steps_leaves_a_correct_state(
    workplace: Path, settings: dict[str, Any], repository: Path, part: str, code: int, statuses: list[str]
) -> None:
    tree = changed(settings, epochs=1).model_dump(mode="json", by_alias=True)
    (workplace / "params.yaml").write_text(yaml.safe_dump(tree))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, part],
        env=environment | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    assert ("train failed: stopped by SIGTERM before a step was trained" in done.stderr) == (code == 75)
    assert "Traceback" not in done.stderr
    experiment = store(workplace).get_experiment_by_name("yolact")
    assert [run.info.status for run in (runs(workplace) if experiment else [])] == statuses
    assert Path("models/model.safetensors").is_file() == (code == 0)


CHILD = """
import ctypes, resource, sys
from contextlib import nullcontext
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: else one fault may be for a huge page
import torch
from components.train import step, training

def measure(params, **_):
    for size in (80 << 20, 64 << 20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size, dtype=torch.uint8)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

training.run = measure
step.supervised = lambda: nullcontext((sys.argv[1], lambda: None))
torch.cuda.is_available = lambda: True
step._train_supervised()
"""
"""The step's child process, without its supervisor; in place of training, the page faults of two large tensors."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the limits are glibc's")
@pytest.mark.parametrize(("device", "again"), [("cpu", False), ("cuda", True)])
def test_the_child_process_keeps_freed_memory_if_it_trains_on_a_cpu(
    settings: dict[str, Any], repository: Path, device: str, again: bool
) -> None:
    runtime = settings["runtime"] | {"device": device, "processes": 1}
    work = json.dumps([settings | {"runtime": runtime}, {}, ""])
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, work], env=environment, capture_output=True, text=True, check=True
    )
    first, second = map(int, done.stdout.split())
    assert first > 1000
    assert (second > first / 2) is again


class StoppedError(RuntimeError):
    pass


def test_processes_that_train_together_draw_the_same(
    workplace: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each then takes the rows of its own images, and so draws for them what a single process does."""
    states: list[torch.Tensor] = []

    def stop(*_: Any) -> None:
        states.append(torch.get_rng_state())
        raise StoppedError

    monkeypatch.setattr(training, "Trainer", stop)
    monkeypatch.setattr(World, "broadcast", lambda _, value: value)
    for world in (World(), World(0, 2), World(1, 2)):
        monkeypatch.setattr(training, "joined_world", lambda _, world=world: nullcontext(world))
        with caplog.at_level(logging.INFO), pytest.raises(StoppedError):
            train(parse_params(settings))
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def interrupt_before_epoch(epochs_done: int, patch: pytest.MonkeyPatch, params: Params) -> None:
    train_epoch = Trainer._train_epoch

    def stop(trainer: Trainer) -> None:
        if trainer.epochs_done == epochs_done:
            raise StoppedError
        train_epoch(trainer)

    with patch.context() as inner:
        inner.setattr(Trainer, "_train_epoch", stop)
        with pytest.raises(StoppedError):
            train(params)


def interrupt_before_the_validation(patch: pytest.MonkeyPatch, params: Params) -> None:
    def stop(trainer: Trainer) -> None:
        raise StoppedError

    with patch.context() as inner:
        inner.setattr(Trainer, "_validate", stop)
        with pytest.raises(StoppedError):
            train(params)


def test_only_settings_without_effect_on_the_result_may_change_in_between(
    workplace: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    quick = {"epochs": 2, "validate_every": 2, "checkpoint_every": 1}
    interrupt_before_the_validation(monkeypatch, changed(settings, **quick))
    (first,) = runs(workplace)
    assert first.info.status == "FAILED"

    interrupt_before_the_validation(monkeypatch, changed(settings, **quick, log_every=1, keep_checkpoints=1))
    assert "resuming after epoch 2 of 2" in caplog.text
    assert [run.info.run_id for run in runs(workplace)] == [first.info.run_id]

    caplog.clear()
    interrupt_before_the_validation(monkeypatch, changed(settings, **quick | {"validate_every": 1}, patience=1))
    assert "resuming after epoch 2 of 2" in caplog.text

    caplog.clear()
    train(changed(settings, **quick, lr=2e-3))
    assert "resuming" not in caplog.text
    second = next(run for run in runs(workplace) if run.info.run_id != first.info.run_id)
    assert second.info.status == "FINISHED"
    assert store(workplace).get_run(first.info.run_id).info.status == "FAILED"


def test_a_finished_run_is_continued_with_more_epochs_in_a_run_of_its_own_if_the_schedule_allows_it(
    workplace: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    constant = {"schedule": "step", "lr_milestones": [], "checkpoint_every": 1, "validate_every": 1}
    train(changed(settings, epochs=1, **constant))
    (first,) = runs(workplace)
    for path in ("models/model.safetensors", "models/model.json", "models/run.json", "metrics/train.json"):
        Path(path).unlink()  # as `dvc repro` removes a stage's outputs
    train(changed(settings, epochs=2, **constant))
    assert "continuing after epoch 1 of 2 (train.epochs was 1)" in caplog.text
    assert json.loads(Path("metrics/train.json").read_text())["steps"] == 4
    (second,) = (run for run in runs(workplace) if run.info.run_id != first.info.run_id)
    assert second.data.tags["continued_run_id"] == first.info.run_id
    assert second.data.params["train.epochs"] == "2"
    assert store(workplace).get_run(first.info.run_id).data.metrics["train/steps"] == 2


def test_automatic_epochs_are_logged_with_their_reason_and_are_those_of_the_run(
    workplace: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(automatic, "automatic_epochs", lambda model, images: (images + 1, "for a test"))
    caplog.set_level("INFO")
    train(changed(settings, epochs="auto", validate_every=3))
    assert "train.epochs: auto: 3 epochs for 2 training images, for a test" in caplog.text
    (run,) = runs(workplace)
    assert run.data.params["train.epochs"] == "3"
    assert json.loads((workplace / "metrics" / "train.json").read_text())["steps"] == 6


def test_a_run_whose_schedule_depends_on_its_epochs_is_not_continued_and_says_why(
    workplace: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    short = {"warmup_steps": 0, "checkpoint_every": 1, "validate_every": 1}
    train(changed(settings, epochs=1, **short))
    interrupt_before_epoch(0, monkeypatch, changed(settings, epochs=2, **short))
    assert "cannot be continued: with train.schedule: cosine the learning rate depends on train.epochs" in caplog.text
    best = re.search(r"model\.initial_weights: (\S+)", caplog.text)
    assert best is not None
    load_model(Path(best[1]))


@pytest.mark.parametrize("frozen", [True, False])
def test_more_gradient_accumulation_resumes_the_run_unless_batch_norm_is_trained(
    imported: Path,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    frozen: bool,
) -> None:
    caplog.set_level(logging.INFO)
    start = str(imported) if frozen else "none"
    tree = settings | {"model": settings["model"] | {"initial_weights": start}}
    quick = {"epochs": 2, "validate_every": 2, "checkpoint_every": 1, "batch_size": 2}
    interrupt_before_the_validation(monkeypatch, changed(tree, **quick))
    caplog.clear()
    interrupt_before_the_validation(monkeypatch, changed(tree, **quick, accumulate=2))
    assert ("resuming after epoch 2 of 2" in caplog.text) == frozen


def test_a_tracking_server_that_fails_at_the_end_does_not_cost_the_training(
    workplace: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    params = changed(settings, epochs=1)
    log_metrics = Tracker.log_metrics

    def fail_in_the_end(self: Tracker, metrics: dict[str, float], *arguments: Any, **options: Any) -> None:
        if "train/best_val_mask_AP" in metrics:
            raise TrackingError("the server is unavailable")
        log_metrics(self, metrics, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log_metrics", fail_in_the_end)
        with pytest.raises(TrackingError):
            train(params)
    (first,) = runs(workplace)
    assert first.info.status == "FAILED"

    def train_again(*_: Any) -> None:
        raise AssertionError("a step is trained twice")

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(Trainer, "_train_step", train_again)
        train(params)
    assert "resuming after epoch 1 of 1" in caplog.text
    (run,) = runs(workplace)
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    assert run.data.metrics["train/steps"] == 2

    interrupt_before_the_validation(monkeypatch, params)  # finished: the next run starts over
    assert len(runs(workplace)) == 2


def test_a_task_whose_results_were_lost_after_training_writes_them_again_without_training(
    workplace: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a pipeline task is retried after the upload of its outputs failed."""
    params, checkpoints = changed(settings, epochs=2, validate_every=1), workplace / "volume" / "run-1"
    folders = [workplace / name for name in ("models", "metrics", "plots")]

    def written() -> dict[str, bytes]:
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(workplace).as_posix(): path.read_bytes() for path in files}

    train(params, checkpoints)
    first, kept = written(), sorted(checkpoints.iterdir())
    assert "models/model.safetensors" in first
    for folder in folders:
        shutil.rmtree(folder)

    def train_again(*_: Any) -> None:
        raise AssertionError("a step is trained twice")

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(Trainer, "_train_step", train_again)
        patch.setattr(Trainer, "_validate", train_again)
        train(params, checkpoints)
    assert "has already finished; rewriting its outputs" in caplog.text
    assert written() == first
    assert sorted(checkpoints.iterdir()) == kept
    assert (checkpoints / "tracking").is_dir()
    assert not (workplace / "models" / "tracking").exists()
    (run,) = runs(workplace)
    assert run.info.status == "FINISHED"


# --- Errors


@pytest.mark.parametrize(
    ("checkpoints", "journals"), [(None, "models/tracking"), (Path("volume/run-1"), "volume/run-1/tracking")]
)
def test_a_training_that_is_given_up_ends_its_run_in_mlflow(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, checkpoints: Path | None, journals: str
) -> None:
    """What `sync` does with the journal of a killed process is tested with it."""
    synced: list[Path] = []

    def give_up(*_: Any) -> int:
        raise CrashedError("killed three times", 137)

    def sync(folder: Path) -> Iterator[None]:
        synced.append(folder)  # not before the result is asked for
        yield None

    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(step, "_supervise", give_up)
    monkeypatch.setattr(step, "sync", sync)
    with pytest.raises(CrashedError):
        step.run(
            parse_params(settings),
            train_data_dir=Path("data/processed/train"),
            eval_data_dir=Path("data/processed/eval"),
            model_dir=Path("models"),
            metrics_path=Path("metrics/train.json"),
            plots_dir=Path("plots/train"),
            checkpoints_dir=checkpoints,
        )
    assert synced == [Path(journals)]


@pytest.mark.usefixtures("workplace")
def test_anchors_that_miss_objects_are_named_before_training(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Anchors of 640 pixels on images of 64."""
    model = settings["model"] | {"anchor_scales": [[640]] * 5}
    with pytest.raises(SettingsError, match="cuda:99"):  # the next thing that start-up checks
        train(changed(settings | {"model": model}, device="cuda:99"))
    assert "the anchors miss 3 of 3 objects" in caplog.text
    assert "yolact anchors data/processed" in caplog.text


def test_fitted_anchors_are_those_of_the_model_of_its_run_and_of_its_checkpoint(
    workplace: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(automatic, "ENOUGH_OBJECTS", 1)
    params = changed(settings, epochs=1, fit_anchors=True)
    data = CocoInstances.load(Path("data/processed/train/train.json"))
    fitted = automatic.resolve(params, data).model
    assert fitted.anchor_scales != params.model.anchor_scales
    for _ in range(2):
        train(params, checkpoints=Path("checkpoints"))
    assert "this run has already finished" in caplog.text
    assert read_saved(Path("models")).config == fitted
    (run,) = runs(workplace)
    assert run.data.params["model.anchor_scales"] == str(fitted.anchor_scales)


@pytest.fixture
def fails(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Run ``python -m components.train.step`` in this process, as a process of ``torchrun``; its message."""

    def call() -> str:
        monkeypatch.setattr(sys, "argv", ["step.py"])
        monkeypatch.setenv("WORLD_SIZE", "1")
        monkeypatch.delitem(sys.modules, "components.train.step", raising=False)
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("components.train.step", run_name="__main__")
        assert ended.value.code == 1
        _, _, message = capsys.readouterr().err.rpartition("\ntrain failed: ")
        assert "Traceback" not in message
        return message.rstrip("\n")

    return call


@pytest.mark.usefixtures("workplace")
def test_missing_data_says_what_to_run_and_is_not_tried_again(repository: Path) -> None:
    shutil.rmtree("data")
    with start(repository) as process:
        _, log = process.communicate(timeout=300)
    assert process.returncode == 1
    what = "data/processed/train/train.json: no such file. Run the preprocess step first: dvc repro preprocess"
    assert log == f"\ntrain failed: {what}\n"


@pytest.mark.fault
@pytest.mark.usefixtures("workplace")
def test_a_server_that_is_away_has_an_exit_code_of_its_own(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the supervisor passes on, so that what started the step can start it again."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with start(repository) as process:
        _, log = process.communicate(timeout=300)
    assert process.returncode == EX_UNAVAILABLE, log
    assert "train failed: could not reach the tracking store" in log


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_objects_is_rejected(fails: Any, split: str) -> None:
    path = Path("data/processed") / {"train": "train/train.json", "val": "eval/val.json"}[split]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    images = {"train": 2, "val": 1}[split]
    assert fails().startswith(f"{path}: {images} images without any object")
    assert not Path("models").exists()


def test_data_without_a_digest_is_rejected(fails: Any) -> None:
    Path("data/processed/eval/stats.json").unlink()
    assert "data/processed/eval/stats.json: no such file" in fails()


def test_data_without_split_digests_asks_for_preprocess(fails: Any) -> None:
    Path("data/processed/eval/stats.json").write_text(json.dumps({"digest": DIGEST}))
    assert "data/processed/eval/stats.json: key 'split_digests' is missing or empty. Run the preprocess step" in fails()
    assert not Path("models").exists()


def test_a_missing_image_is_named_and_the_run_marked_as_failed(fails: Any, workplace: Path) -> None:
    Path("data/processed/train/images/2.png").unlink()
    assert "data/processed/train/images/2.png: no such image" in fails()
    (run,) = runs(workplace)
    assert run.info.status == "FAILED"


def test_an_unavailable_device_is_named(fails: Any, settings: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(settings | {"runtime": settings["runtime"] | {"device": "cuda:99"}}))
    assert "cuda:99" in fails()


@pytest.mark.parametrize("part", ["yolact.models.yolact.Yolact.to", "yolact.engine.trainer.Ema"])
def test_a_network_that_does_not_fit_into_memory_says_what_to_try(
    fails: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The network is moved to the device, and the averaged weights are a second network."""

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    Path("params.yaml").write_text(yaml.safe_dump(settings | {"train": settings["train"] | {"ema_decay": 0.9}}))
    monkeypatch.setattr(part, fail)
    assert fails() == (
        "out of memory with the network alone on cpu. Try one of these: train.ema_decay: 0 (no second network of "
        "averaged weights); a smaller model.backbone. The run then starts over. (CUDA out of memory. Tried to "
        "allocate 20.00 MiB.)"
    )


def test_missing_backbone_weights_are_named(fails: Any, settings: dict[str, Any]) -> None:
    model = settings["model"] | {"backbone_weights": "nowhere.pth"}
    Path("params.yaml").write_text(yaml.safe_dump(settings | {"model": model}))
    assert fails().startswith("model.backbone_weights: nowhere.pth: no such file. It may be none, imagenet, ")


def test_a_missing_initial_model_is_named(fails: Any, settings: dict[str, Any]) -> None:
    model = settings["model"] | {"initial_weights": "nowhere"}
    Path("params.yaml").write_text(yaml.safe_dump(settings | {"model": model}))
    assert fails().startswith("model.initial_weights: nowhere: no such folder. It may be none, a folder with model.")


def test_a_run_does_not_start_from_the_model_that_it_replaces(fails: Any, settings: dict[str, Any]) -> None:
    model = settings["model"] | {"initial_weights": "./models/"}
    Path("params.yaml").write_text(yaml.safe_dump(settings | {"model": model}))
    assert fails() == (
        "model.initial_weights: ./models/: this run writes its model there; "
        "copy the existing model to another folder and name that folder"
    )
    assert not Path("models").exists()


def test_a_file_instead_of_the_model_folder_is_named(fails: Any) -> None:
    Path("models").write_text("mine")
    assert fails() == "models: File exists"
    assert Path("models").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named_and_the_run_marked_as_failed(
    fails: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: for root, who runs the tests in containers, every folder is writable."""

    def refuse(*_: Any, dir: Path, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(dir / ".x.part"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    message = fails()
    (run,) = runs(workplace)
    assert run.info.status == "FAILED"
    assert message == (
        f"models/tracking/{run.info.run_id}: permission denied. Give yourself read and write permission, or use "
        "another folder."
    )


def test_a_full_disk_is_reported_and_keeps_the_last_checkpoint(fails: Any) -> None:
    """A file size limit: weights fit (45 MB), weights with their momentum (90 MB) do not."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64_000_000, hard))
    try:
        message = fails()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith("models/checkpoints: checkpoint 2 could not be written to the end; is the disk full?")
    assert [path.name[:20] for path in Path("models/checkpoints").glob("*")] == ["000001-step_00000000"]
