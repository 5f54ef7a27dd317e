"""`yolact_bench.studies.soak`: what it measures, what it takes for growth, and what it finds in a damaged store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient

from tests.small_networks import tiny_config
from yolact.errors import SettingsError
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact_bench.studies import soak
from yolact_bench.studies.soak import Run, Usage


def test_growth_is_that_of_the_line_through_all_tenths_but_the_first() -> None:
    assert soak.growth([100, 0, 1, 2, 3, 4, 5, 6, 7, 8]) == pytest.approx(8)
    assert soak.growth([0, 5, 6, 5, 6, 5, 6, 5, 6, 5]) == pytest.approx(0)
    assert soak.medians([*range(30)]) == [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]
    with pytest.raises(SettingsError, match="9 measurements are too few"):
        soak.medians([*range(9)])


@pytest.mark.parametrize(
    ("usage", "is_flat"),
    [
        (lambda k: Usage(600 if k > 5 else 100, 9, 20 + k % 2), True),  # it starts, then is busy
        (lambda k: Usage(600 + 0.1 * k, 9, 20), True),  # 10 MiB, 1.7 %
        (lambda k: Usage(600 + 0.2 * k, 9, 20), False),
        (lambda k: Usage(600, 9 + k // 60, 20), False),  # a thread that does not end
        (lambda k: Usage(600, 9, 20 + k // 20), False),  # files that are not closed
    ],
)
def test_what_grows_is_found(usage: Callable[[int], Usage], is_flat: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.judged([usage(k) for k in range(100)]) is is_flat
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["memory", "threads", "files"]


def test_usage_is_that_of_a_process_and_its_descendants() -> None:
    """The outer process does nothing but to wait for the inner one."""
    inner = (
        "import sys, threading\n"
        "own, files = bytearray(b'x' * (64 << 20)), [open('/dev/null') for _ in range(10)]\n"
        "[threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range(3)]\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    plain = "print('ready', flush=True); import sys; sys.stdin.read()"
    found = []
    for program in (plain, inner):
        outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
        with subprocess.Popen(
            [sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            found.append(soak.usage(psutil.Process(process.pid)))
            process.communicate()
    before, after = found
    assert before.threads == 2
    assert (after.threads - before.threads, after.files - before.files) == (3, 10)
    assert 64 <= after.memory - before.memory < 70


@pytest.fixture
def few(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts instead of tenths, and the presets of the repository."""
    monkeypatch.chdir(repository)
    monkeypatch.setattr(soak, "TENTHS", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_runs_are_counted_and_what_the_store_lacks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "MOST_SLOWER", 100)
    soak.runs(count=3, at_once=2, work=tmp_path)
    assert "3 runs, " in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "runs")
    done = [Run(**json.loads(line)) for line in Path("runs.jsonl").read_text().splitlines()]
    assert [run.number for run in done] == [1, 2, 3]
    assert len({run.weights for run in done}) == 3
    assert soak.problems(done, "yolact-smoke") == []
    assert soak.problems(done[:2], "yolact-smoke") != []  # a run and a version too many

    client = MlflowClient("sqlite:///mlflow.db")
    weights = next(Path("mlruns").rglob("artifacts/model/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (damaged,) = soak.problems(done, "yolact-smoke")
    assert "has other weights than run" in damaged
    (journal := Path("runs/0002/model/tracking/left")).mkdir(parents=True)
    (journal / "run.json").write_text("{}")
    client.set_terminated(done[0].run_id, "KILLED")
    client.log_metric(done[1].run_id, "train/total", 1.0, step=9)
    client.create_registered_model("stray")
    client.set_registered_model_alias("yolact-smoke", "champion", "1" if done[-1].version != 1 else "2")
    found = soak.problems(done, "yolact-smoke")
    for part in (
        "not sent: runs/0002/model/tracking/left",
        "run 1 is KILLED",
        "run 2 lacks losses, or has some twice",
        "registered models: ",
        "the champion is ",
    ):
        assert any(part in problem for problem in found), f"{part!r} not in {found}"


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_training_is_sampled_and_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):  # it had hardly begun
        soak.train(minutes=0.5, images=8, every=0.5, work=tmp_path)
    assert "exit code 75" in capsys.readouterr().out
    samples = json.loads((tmp_path / "train" / "train.json").read_text())
    assert len(samples) > 3
    assert samples[-1]["memory"] > 50


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_server_is_sampled_under_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_model(Yolact(tiny_config(), 2), ["a", "b"], tmp_path / "model")
    with suppress(SystemExit):
        soak.serve(str(tmp_path / "model"), minutes=0.1, clients=2, every=0.2, work=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("{200: ") for line in lines[:3])
    assert len(json.loads((tmp_path / "serve.json").read_text())) > 3
