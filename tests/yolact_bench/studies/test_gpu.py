"""`yolact_bench.studies.gpu` on a CPU with the smoke preset."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import typer
from typer.testing import CliRunner

from yolact_bench.studies import gpu


def part(code: str, file: Path | None = None) -> gpu.Part:
    return gpu.Part("part", (sys.executable, "-c", code), file)


def test_a_part_gives_its_json_from_its_output_or_its_file(tmp_path: Path) -> None:
    assert gpu.measured(part("print('{\"a\": 1}')"), 60) == {"a": 1}
    (tmp_path / "x.json").write_text('{"b": 2}')
    assert gpu.measured(part("print('no JSON')", tmp_path / "x.json"), 60) == {"b": 2}


@pytest.mark.parametrize(
    ("code", "seconds", "why"),
    [
        ("pass", -1, "not measured: no time left"),
        ("raise SystemExit(3)", 60, "not measured: exit code 3, see its messages above"),
        ("import time; time.sleep(60)", 0.5, "not measured: not done after 0 s"),
    ],
)
def test_a_part_that_is_not_measured_says_why(code: str, seconds: float, why: str) -> None:
    assert gpu.measured(part(code), seconds) == why


def test_a_part_out_of_time_ends_with_the_processes_that_it_started(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    child = f"import os, pathlib, time; pathlib.Path({str(noted)!r}).write_text(str(os.getpid())); time.sleep(60)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert gpu.measured(part(program), 3) == "not measured: not done after 3 s"
    with suppress(psutil.NoSuchProcess):
        left = psutil.Process(int(noted.read_text()))
        left.wait(10)  # times out if it lives on


def test_the_table_has_the_main_numbers_of_each_part() -> None:
    inference = {"settings": {"batch": 4}, "backends": [{"name": "yolact bf16", "milliseconds": {"total": 8.0}}]}
    batches = [{"batch": 8, "images_per_second": 90.4}, {"batch": 32, "error": "out of memory"}]
    trained = {
        "evaluation": {"mask": {"AP": 0.25, "AP50": 0.5}},
        "seconds": {"train": 61.2},
        "training_images_per_second": 300.0,
    }
    results = {
        "a": {"seconds": 1.4, "result": {"inference": inference}},
        "b": {"seconds": 2.0, "result": {"batches": batches}},
        "c": {"seconds": 3.0, "result": trained},
        "d": {"seconds": 0.0, "result": "not measured: no time left"},
    }
    assert gpu.table(results)[2:] == [
        "| a | yolact bf16: 8.0 ms, 500 images/s | 1 |",
        "| b | batch 8: 90 images/s; batch 32: out of memory | 2 |",
        "| c | mask AP 0.250, AP50 0.500; 300 images/s; train 61 s | 3 |",
        "| d | not measured: no time left | 0 |",
    ]


@pytest.mark.slow
def test_all_parts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.chdir(repository)
    app = typer.Typer()
    app.command()(gpu.main)
    small = "--networks smoke --device cpu --precision fp32 --batch 2 --rounds 1 --converge=--preset=smoke"
    small += " --converge=--epochs=1 --training=--image-size=64 --training=--precision=fp32 --training=--batches=2"
    small += " --training=--steps=1 --training=--rounds=1"
    result = CliRunner().invoke(app, [*small.split(), "--work", str(tmp_path)])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == ["smoke, batch 1", "smoke, batch 2", "training steps", "short training"]
    assert all(isinstance(row["result"], dict) for row in found.values())
