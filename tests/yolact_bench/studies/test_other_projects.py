"""`yolact_bench.studies.other_projects`: the part that needs no other project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from yolact.errors import SettingsError
from yolact_bench.studies import other_projects
from yolact_bench.studies.other_projects import Detections, Network, Other, threshold_for

TINY = "backbone=resnet18,image_size=64,fpn_channels=8,separable_convs=true"
APP = other_projects.typer.Typer()
APP.command()(other_projects.main)


def test_our_networks_have_a_row_for_each_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_projects.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(other_projects, "find_spec", lambda name: None)  # no OpenVINO
    arguments = [TINY, "--others", "yolo26n-seg", "--rounds", "2", "--threads", "1"]
    result = CliRunner().invoke(APP, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "yolo26n-seg: left out, because ultralytics is not installed" in result.stderr
    first, _, head, _, *rows = result.stdout.splitlines()
    assert f"torch {torch.__version__.partition('+')[0]}" in first
    assert head.count("|") == 8
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert sorted(cell[2] for cell in cells) == ["ONNX Runtime fp32", "PyTorch fp32"]
    for network, size, _, objects, least, median, memory in cells:
        assert (network, size) == (TINY, "64")
        assert 10 <= int(objects) <= 30
        assert 0 < float(least) <= float(median)
        assert float(memory) > 50
    assert float(cells[0][5]) <= float(cells[1][5])  # the fastest first


@pytest.mark.parametrize("count", [3, 20])
def test_the_threshold_leaves_the_objects_wanted(count: int) -> None:
    scores = np.random.default_rng(0).random(100)
    assert (scores > threshold_for(scores, count)).sum() == count
    assert (scores > threshold_for(scores[:count], count)).all()  # there are no more


def test_a_detector_is_called_with_the_threshold_of_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.array([0.3, 0.9, 0.5, 0.7])

    def build(_: Other) -> Callable[[float], Detections]:
        return lambda threshold: (scores[scores > threshold], np.zeros((int((scores > threshold).sum()), 4, 6)))

    monkeypatch.setitem(other_projects.DETECTORS, "rfdetr", build)
    monkeypatch.setattr(other_projects.torch, "set_num_threads", lambda count: None)
    other = Other("rfdetr-seg-nano", 312, np.zeros((4, 6, 3), np.uint8), 2, 1, Path())
    assert other.load()()[0].tolist() == [0.9, 0.7]


def test_unknown_networks_are_refused() -> None:
    result = CliRunner().invoke(APP, ["--others", "yolo27n-seg"])
    assert isinstance(result.exception, SettingsError)
    assert "yolo27n-seg: unknown" in str(result.exception)


@dataclass(frozen=True)
class SmallMasks:
    """A network whose masks are too small."""

    def load(self) -> Callable[[], Detections]:
        return lambda: (np.ones(2), np.ones((2, 3, 3)))


def test_masks_must_be_as_large_as_the_image() -> None:
    with pytest.raises(SettingsError, match=r"masks have \(3, 3\) pixels, the image \(6, 6\)"):
        Network("small", SmallMasks(), 1, (6, 6))


def test_a_network_that_fails_is_named_and_others_go_on() -> None:
    failures: list[str] = []
    with other_projects.noting("first", failures):
        float("none")
    with other_projects.noting("second", failures):
        pass
    assert failures == ["first: not measured: ValueError: could not convert string to float: 'none'"]
