"""`yolact_bench.studies.gpu` on a CPU with the smoke preset."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

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


def inference(network: str, batch: int, **images_per_second: float) -> dict[str, Any]:
    """The result of a part."""
    backends = [
        {"name": name, "milliseconds": {"total": 1000 * batch / speed}, "images_per_second": speed}
        for name, speed in images_per_second.items()
    ]
    found = {"inference": {"settings": {"batch": batch}, "backends": backends}}
    return {"network": network, "seconds": 1.4, "result": found}


def test_the_table_has_the_main_numbers_of_each_part_and_the_best_batch_size() -> None:
    batches = [{"batch": 8, "images_per_second": 90.4}, {"batch": 32, "error": "out of memory"}]
    trained = {
        "evaluation": {"mask": {"AP": 0.25, "AP50": 0.5}},
        "seconds": {"train": 61.2},
        "training_images_per_second": 300.0,
    }
    results = {
        "a": {"network": None, "seconds": 2.0, "result": {"batches": batches}},
        "b": {"network": None, "seconds": 3.0, "result": trained},
        "r50, batch 1": inference("r50", 1, fp32=100.0, bf16=125.0),
        "lite, batch 1": inference("lite", 1, fp32=200.0),
        "r50, batch 4": inference("r50", 4, fp32=500.0, bf16=900.0),
        "r50, batch 8": inference("r50", 8, fp32=400.0, bf16=1000.0),
        "lite, batch 8": {"network": "lite", "seconds": 0.0, "result": "not measured: no time left"},
    }
    assert gpu.table(results)[2:] == [
        "| a | batch 8: 90 images/s; batch 32: out of memory | 2 |",
        "| b | mask AP 0.250, AP50 0.500; 300 images/s; train 61 s | 3 |",
        "| r50, batch 1 | fp32: 10.0 ms, 100 images/s; bf16: 8.0 ms, 125 images/s | 1 |",
        "| lite, batch 1 | fp32: 5.0 ms, 200 images/s | 1 |",
        "| r50, batch 4 | fp32: 8.0 ms, 500 images/s; bf16: 4.4 ms, 900 images/s | 1 |",
        "| r50, batch 8 | fp32: 20.0 ms, 400 images/s; bf16: 8.0 ms, 1000 images/s | 1 |",
        "| lite, batch 8 | not measured: no time left | 0 |",
        "| r50, best batch size | fp32: 500 images/s at batch 4; bf16: 1000 images/s at batch 8 | |",
        "| lite, best batch size | fp32: 200 images/s at batch 1 | |",
    ]


@pytest.mark.slow
def test_all_parts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.chdir(repository)
    app = typer.Typer()
    app.command()(gpu.main)
    small = "--networks smoke --device cpu --precision fp32 --batches 2,3 --rounds 1 --converge=--preset=smoke"
    small += " --converge=--epochs=1 --training=--image-size=64 --training=--precision=fp32 --training=--batches=2"
    small += " --training=--steps=1 --training=--rounds=1"
    result = CliRunner().invoke(app, [*small.split(), "--work", str(tmp_path)])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "gpu.json").read_text())
    sizes = (1, 2, 3)
    assert list(found) == ["training steps", "short training", *(f"smoke, batch {size}" for size in sizes)]
    assert all(isinstance(row["result"], dict) for row in found.values())
    for size in sizes:
        measured = found[f"smoke, batch {size}"]["result"]["inference"]
        assert measured["settings"]["batch"] == size
        assert (measured["backends"][0]["memory"] is None) == (size > 1)
    assert result.stdout.splitlines()[-1].startswith("| smoke, best batch size | yolact fp32: ")
