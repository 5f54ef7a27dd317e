"""`yolact_bench.studies.gpu_training` on a CPU with small networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from components.ingest import step as ingest
from tests.yolact.engine.runs import make_images, small_params
from yolact.engine.trainer import Trainer
from yolact.models.complexity import measure_complexity
from yolact_bench.studies import gpu_training
from yolact_ops.settings import presets


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("Tesla K80", None),
    ],
)
def test_the_peak_is_that_of_the_named_gpu(name: str, peak: float | None) -> None:
    assert gpu_training.peak_of(name) == peak


def test_a_cpu_has_no_known_peak() -> None:
    assert gpu_training.known_peak(torch.device("cpu"), "bf16") is None


@pytest.fixture
def task(tmp_path: Path) -> gpu_training.SpeedTask:
    """Two rounds of three steps of two images."""
    make_images(tmp_path / "train" / "images", 3).rename(tmp_path / "train" / "train.json")
    params = small_params(batch_size=2, epochs=1, log_every=3, precision="fp32")
    return gpu_training.SpeedTask(params, tmp_path, 3, 2, from_loader=False, peak_tflops=0.5, folder=tmp_path)


@pytest.mark.parametrize("from_loader", [False, True])
def test_the_trainer_runs_all_steps_and_the_warm_up_does_not_count(
    task: gpu_training.SpeedTask, from_loader: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    reported: list[list[dict[str, float]]] = []
    step, metrics = Trainer._train_step, gpu_training._speed
    monkeypatch.setattr(Trainer, "_train_step", lambda self, batch: (seen.append(batch.image_ids), step(self, batch)))
    monkeypatch.setattr(gpu_training, "_speed", lambda *args: (reported.append(args[1]), metrics(*args))[1])
    found = gpu_training.measure_speed(gpu_training.replace(task, from_loader=from_loader))
    assert len(seen) == 1 + 3 + 2 * 3
    repeated = [seen[k] == seen[k % gpu_training.HELD_BATCHES] for k in range(len(seen))]
    assert all(repeated) != from_loader
    (rounds,) = reported
    assert len(rounds) == 2
    assert isinstance(found, gpu_training.Speed)
    assert found.images_per_second == pytest.approx(sum(row["images_per_second"] for row in rounds) / 2)
    assert found.peak_memory_gib == rounds[-1]["resident_memory_gib"]
    forward = measure_complexity(task.params.model, 2).flops
    assert found.tflops == pytest.approx(3 * forward * found.images_per_second / 1e12)
    assert found.share_of_peak == pytest.approx(found.tflops / 0.5)


def test_a_batch_that_does_not_fit_is_reported_and_not_raised(
    task: gpu_training.SpeedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Trainer, "_train_step", fail)
    assert str(gpu_training.measure_speed(task)).startswith("out of memory with 2 images of 64 px")


def test_a_folder_in_voc_format_goes_through_all_steps(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)  # where the presets are; the command changes it
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "the command's own takes its place")
    ingest.run(presets.choose("smoke"), raw_dir=tmp_path / "voc", downloads_dir=tmp_path / "downloads")
    work = tmp_path / "work"
    arguments = ["converge", str(tmp_path / "voc"), "--epochs", "2", "--preset", "smoke", "--work", str(work)]
    done = CliRunner().invoke(gpu_training.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads((work / "converge.json").read_text(encoding="utf-8"))
    assert result["evaluation"] == json.loads((work / "metrics/eval.json").read_text(encoding="utf-8"))
    assert list(result["seconds"]) == ["ingest", "preprocess", "train", "evaluate"]
    assert result["settings"]["train"]["epochs"] == 2
    assert result["training_images_per_second"] > 0
    assert 0 <= result["training_data_wait"] <= 1
    assert result["loader_images_per_second"] > 0
    assert str(work / "reports/eval/index.html") in done.output
    assert (work / "reports/eval/index.html").is_file()
    assert (work / "mlflow.db").is_file()
