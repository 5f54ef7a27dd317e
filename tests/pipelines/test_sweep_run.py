"""A sweep as a user runs it on this machine: real trainings with the preset `smoke`, stopped in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

PATIENCE = 900
"""Time-out in seconds; the whole takes about two minutes."""

SWEEP = [
    *(sys.executable, "-m", "pipelines", "sweep", "--preset", "smoke", "--trials", "3", "--parallel", "2"),
    *("-S", "train.lr=loguniform(1e-4,1e-2)", "-S", "train.optimizer=choice(sgd,adamw)"),
    *("-S", "train.epochs=4", "-S", "runtime.device=cpu", "--name", "trying"),
]


@pytest.mark.slow
def test_a_sweep_is_stopped_goes_on_and_registers_its_best_model(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "conf", tmp_path / "conf")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_", "YOLACT_"))}
    python_path = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
    environment = kept | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    folder = tmp_path / "runs" / "trying"

    process = subprocess.Popen(
        SWEEP, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not list(folder.glob("trials/*/checkpoints/*-step_*[1-9]-*.pt")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 75, shown
    assert "The same command goes on" in shown

    done = subprocess.run(
        SWEEP, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    logs = [path.read_text() for path in sorted(folder.glob("trials/*/log.txt"))]
    assert len(logs) == 3
    assert any("[train] resuming" in log for log in logs), "the stopped trials went on from their checkpoints"
    assert len(list(folder.glob("data/processed/train/train.json"))) == 1

    store = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = store.get_experiment_by_name("yolact-smoke")
    runs = store.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    [parent] = parents
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(trials) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.params["space.train.lr"] == "loguniform(0.0001, 0.01)"
    values = {run.info.run_id: run.data.metrics["eval/mask_AP"] for run in trials}
    assert parent.data.metrics["mask_AP"] == max(values.values())
    assert len({run.data.params["train.lr"] for run in trials}) == 3

    version = store.get_model_version("yolact-smoke", "1")
    best = json.loads((folder / "trials" / parent.data.tags["best_trial"] / "run.json").read_text())["run_id"]
    assert version.run_id == best
    assert values[best] == max(values.values())
    assert json.loads((folder / "promotion.json").read_text())["status"] in ("promoted", "refused")
    assert "registered models:/yolact-smoke/1" in done.stdout
