"""The study of a busy machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yolact_bench.studies import busy_machine


def test_each_kind_of_waiting_has_its_variable() -> None:
    assert [busy_machine.variables(kind) for kind in ("default", "passive", "1000")] == [
        {},
        {"OMP_WAIT_POLICY": "passive"},
        {"GOMP_SPINCOUNT": "1000"},
    ]


@pytest.mark.slow
def test_it_measures_all_situations(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setattr(busy_machine, "TRIES", 1)
    busy_machine.main("default,1000", rounds=1, steps=1, threads=1, work=tmp_path)
    results = json.loads((tmp_path / "busy_machine.json").read_text())["results"]
    assert list(results) == ["default", "1000"]
    assert all(speed > 0 for kind in results.values() for found in kind.values() for speed, _ in found)
    assert "two trainings" in capsys.readouterr().out
