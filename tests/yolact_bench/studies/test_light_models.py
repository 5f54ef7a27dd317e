"""`yolact_bench.studies.light_models` without waiting for the networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from yolact_bench.studies import light_models

TINY = "backbone=resnet18,image_size=64,fpn_channels=8,separable_convs=true"


def test_settings_differ_from_the_base_and_anchors_follow_the_input() -> None:
    config = light_models.model_config("backbone=resnet18,image_size=275,head_convs=2")
    assert (config.backbone, config.image_size, config.head_convs, config.protonet_convs) == ("resnet18", 275, 2, 3)
    assert config.anchor_scales == [[16], [32], [64], [128], [256]]
    assert config.backbone_weights == "none"


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="fpn_chanels"):
        light_models.model_config("fpn_chanels=8")


def test_the_table_has_a_row_for_each_network_and_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def stub(*_: Any) -> dict[str, list[Callable[[], object]]]:
        return {name: [lambda: calls.append("forward"), lambda: calls.append("whole")] for name in ("one", "two")}

    monkeypatch.setattr(light_models, "runtimes", stub)
    monkeypatch.setattr(light_models.torch, "set_num_threads", lambda count: None)
    app = light_models.typer.Typer()
    app.command()(light_models.main)
    result = CliRunner().invoke(app, [TINY, "--rounds", "2", "--threads", "1"])
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ") for line in result.stdout.splitlines()[2:]]
    assert [row[1] for row in rows] == ["one", "two"]
    assert all(row[0] == f"| {TINY}" and len(row) == 7 for row in rows)
    assert calls == ["forward", "whole"] * 2 * (light_models.WARM_UP + 2)


def test_a_training_step_has_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light_models, "WARM_UP", 0)
    monkeypatch.setattr(light_models.torch, "set_num_threads", lambda count: None)
    app = light_models.typer.Typer()
    app.command()(light_models.main)
    result = CliRunner().invoke(app, [TINY, "--training", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    head, _, first, second = (line.strip("| ").split(" | ") for line in result.stdout.splitlines())
    assert head[-1] == "training step of 4, ms (median)"
    assert first[1] == "PyTorch fp32"
    assert float(first[-1].split()[0]) > float(first[-3].split()[0])  # more than a forward pass of one image
    assert second[1] == "onnxruntime"
    assert len(second) == len(head) - 1  # no training there
