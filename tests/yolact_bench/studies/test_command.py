"""`yolact_bench.studies.command`: studies report errors as the command `yolact` does."""

from __future__ import annotations

import runpy
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from yolact.errors import DataError
from yolact_bench.studies.command import run_study


def test_arguments_reach_the_study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(name: str, rounds: int = 1) -> None:
        print(name, rounds + 1)

    monkeypatch.setattr(sys, "argv", ["study", "one", "--rounds", "2"])
    with pytest.raises(SystemExit) as stopped:
        run_study(main)
    assert stopped.value.code == 0
    assert capsys.readouterr().out == "one 3\n"


def test_a_user_error_is_only_its_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise DataError("image.jpg: damaged")

    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(SystemExit) as stopped:
        run_study(main)
    assert stopped.value.code == 1
    assert capsys.readouterr() == ("", "image.jpg: damaged\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(ValueError, match="a bug"):
        run_study(main)


STUDY = """
import subprocess

import typer

from yolact_bench.studies.command import run_study


def main() -> None:
    process = subprocess.Popen(["sleep", "60"])
    print(process.pid, flush=True)
    try:
        process.wait()
    finally:
        process.kill()
        process.wait()


app = typer.Typer()
app.command()(main)
run_study({what})
"""


def wait_for_end(process: psutil.Process) -> None:
    """The process that adopts an orphan may take its time to collect it: a zombie has ended."""
    with suppress(psutil.NoSuchProcess):
        for _ in range(600):
            if process.status() == psutil.STATUS_ZOMBIE:
                return
            time.sleep(0.1)
        pytest.fail(f"{process} still runs")


@pytest.mark.parametrize("what", ["main", "app"])
def test_a_terminated_study_ends_what_it_started(what: str) -> None:
    study = subprocess.Popen([sys.executable, "-c", STUDY.format(what=what)], stdout=subprocess.PIPE, text=True)
    assert study.stdout is not None
    started = psutil.Process(int(study.stdout.readline()))
    study.terminate()
    assert study.wait(timeout=60) == 143
    wait_for_end(started)


@pytest.mark.parametrize(
    ("study", "arguments", "message"),
    [
        ("preprocessing", "missing", "missing"),
        ("learning", "--against missing.py", "--against missing.py: no such file"),
        ("soak", "serve missing", "yolact serve missing ended with exit code 1: missing"),
        ("soak", "serve --preset missing", "no preset 'missing'"),
        ("gpu_training", "speed --data missing -S train.epoch=1", "did you mean 'epochs'?"),
    ],
)
def test_studies_report_user_errors_so(
    study: str,
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [study, *arguments.split(), "--work", str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"yolact_bench.studies.{study}", raising=False)  # runpy warns otherwise
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(f"yolact_bench.studies.{study}", run_name="__main__")
    assert stopped.value.code == 1
    assert message in capsys.readouterr().err
