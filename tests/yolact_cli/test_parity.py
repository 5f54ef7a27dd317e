"""`yolact parity`: tables, JSON, exit codes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.yolact_bench.parity.parity_fixtures import Arrays, encoded_meta, unit_arrays
from yolact_bench.parity import Comparison, FileReport, ParityReport
from yolact_cli.main import app
from yolact_cli.parity import print_report


def units(*prefixes: str, **changes: np.ndarray) -> Arrays:
    arrays = {name: value for name, value in unit_arrays().items() if name.startswith((*prefixes, "meta_json"))}
    return encoded_meta(arrays | {name.replace("__", "/"): value for name, value in changes.items()})


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["parity", *arguments])


def rows(output: str) -> list[list[str]]:
    """Cells of the rows that end in a result."""
    lines = [line.split("   ") for line in output.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return [row for row in cells if len(row) >= 5 and row[4] in ("pass", "FAIL")]


def test_a_row_for_each_tensor_and_a_summary(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **units("coding", "iou"))
    result = invoke(str(tmp_path))
    assert result.exit_code == 0
    found = rows(result.stdout)
    assert [row[:2] for row in found] == [
        ["coding/encoded", "9 x 4"],
        ["coding/decoded", "9 x 4"],
        ["coding/point_form_of_priors", "9 x 4"],
        ["coding/center_size_of_boxes", "9 x 4"],
        ["iou/iou", "4 x 5"],
        ["iou/crowd", "4 x 5"],
    ]
    assert all(row[4] == "pass" and float(row[3]) < 1e-6 for row in found)
    assert "x.npz: unit vectors, 6 checks, 0 failed" in result.stdout
    assert result.stdout.splitlines()[-1] == "6 checks in 1 file, 0 failed (a relative error up to 1e-04 passes)."


def test_a_failed_check_shows_and_sets_the_exit_code(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **units("iou", iou__iou=np.zeros((4, 5))))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    result = invoke(str(tmp_path))
    assert result.exit_code == 1
    assert [row[0] for row in rows(result.stdout) if row[4] == "FAIL"] == ["iou/iou"]
    assert "damaged or truncated" in result.stdout
    assert "3 checks in 2 files, 2 failed" in result.stdout


def test_what_was_not_checked_is_reported(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **units("iou", iou__more=np.zeros(1), other__thing=np.zeros(1)))
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    result = invoke(str(tmp_path))
    assert result.exit_code == 0
    assert "Not checked: 2 arrays that no check uses: iou/more, other/thing" in result.stdout
    assert "Not checked: notes.txt: neither .npz nor JSON" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("Not checked: 2 arrays, 1 file.")


def test_json_has_the_same_content(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **units("iou", iou__iou=np.zeros((5, 4)), other__thing=np.zeros(1)))
    result = invoke(str(tmp_path), "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert {key: report[key] for key in ("tolerance", "comparisons", "failures", "unused", "unrecognised")} == {
        "tolerance": 1e-4,
        "comparisons": 2,
        "failures": 1,
        "unused": 1,
        "unrecognised": [],
    }
    [file] = report["files"]
    assert (file["file"], file["kind"], file["unused"]) == ("x.npz", "unit vectors", ["other/thing"])
    assert file["rows"][0] == {
        "name": "iou/iou",
        "shape": [5, 4],
        "absolute_error": None,
        "relative_error": None,
        "passed": False,
        "note": "our shape is (4, 5)",
    }
    assert file["rows"][1]["relative_error"] < 1e-6


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_a_directory_without_fixtures_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(where)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(where)


NAME = "bn_batch/after/" + "backbone.layers.0.0.bn1." * 4 + "running_mean"
NOTE = "could not be checked: " + "this and that " * 10


@pytest.mark.parametrize("terminal", [True, False])
def test_names_and_notes_are_not_truncated(terminal: bool) -> None:
    """On a narrow terminal they go on in the next line; where the output is piped a name has one line."""
    out = StringIO()
    row = Comparison(NAME, (1, 2, 3), None, None, passed=False, note=NOTE)
    report = ParityReport([FileReport("a file.npz", "network", [row])], [])
    print_report(report, Console(file=out, width=60, force_terminal=terminal, color_system=None))
    text = out.getvalue()
    assert "…" not in text
    assert f"{NAME}: {NOTE}\n" in text
    names = text.partition(f"{NAME}: ")[0]
    assert sum(character == "_" for character in names) == NAME.count("_")
    assert (NAME in names) == (not terminal)
    assert (max(map(len, names.splitlines())) <= 60) == terminal
