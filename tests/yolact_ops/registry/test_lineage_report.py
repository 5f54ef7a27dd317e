"""The lineage of versions that an earlier release registered: their settings have other keys than today's."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolact_ops.registry import lineage_report
from yolact_ops.registry.lineage_report import LineageReport


def test_settings_of_an_earlier_release_are_part_of_the_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "params.yaml"
    old.write_text("model: {initial_weights: w.pth}\ntrain: {loss: {class_weight: 1.0}}\n", encoding="utf-8")
    monkeypatch.setattr(lineage_report, "fetch_files", lambda *_: old)
    tags = {"data_source": "sample"}
    settings = lineage_report._settings("yolact", 1, tags)
    report = LineageReport("yolact", 1, [], tags, None, settings)
    assert "artifacts/params.yaml --dst-path rebuilt" in report.commands()[1]
    doubts = report.doubts()
    assert any("model.initial_weights = w.pth" in doubt for doubt in doubts)
    assert not any("has no settings" in doubt for doubt in doubts)


def test_a_version_without_settings_says_so() -> None:
    report = LineageReport("yolact", 1, [], {}, None, lineage_report._settings("yolact", 1, {}))
    assert not any("params.yaml" in command for command in report.commands())
    assert any("the version has no settings" in doubt for doubt in report.doubts())


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({}, "with as many threads and"),
        ({"train_threads": "2", "evaluate_threads": "2"}, "with as many threads (2, by runtime.threads) and"),
        (
            {"train_threads": "2", "evaluate_threads": "4"},
            "with as many threads (training 2, evaluation 4, by runtime.threads) and",
        ),
    ],
)
def test_the_doubts_name_the_threads_of_the_version(tags: dict[str, str], said: str) -> None:
    report = LineageReport("yolact", 1, [], tags, None, {"model": {}})
    assert any(said in doubt for doubt in report.doubts())
