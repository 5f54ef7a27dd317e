"""`yolact_bench.studies.light_models` with a small network."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from typer.testing import CliRunner, Result

from yolact.class_names import VOC_CLASSES
from yolact_bench.speed.calibration import calibrated_network
from yolact_bench.speed.images import read_images
from yolact_bench.studies import light_models
from yolact_bench.studies.networks import network_config

TINY = "backbone=resnet18,image_size=64,fpn_channels=8,separable_convs=true"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, with the threads of this process."""
    monkeypatch.setattr(light_models.torch, "set_num_threads", lambda count: None)
    app = light_models.typer.Typer()
    app.command()(light_models.main)

    def call(*arguments: str) -> Result:
        result = CliRunner().invoke(app, [TINY, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return call


def test_the_table_has_a_row_for_each_network_and_runtime(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def stub(*_: Any) -> dict[str, list[Callable[[], object]]]:
        return {name: [lambda: calls.append("forward"), lambda: calls.append("whole")] for name in ("one", "two")}

    monkeypatch.setattr(light_models, "runtimes", stub)
    monkeypatch.setattr(light_models.time, "process_time", itertools.count().__next__)  # each call is a second later
    result = run("--rounds", "2", "--threads", "1", "--cpu-time")
    rows = [line.split(" | ") for line in result.stdout.splitlines()[2:]]
    assert [row[1] for row in rows] == ["one", "two"]
    assert all(row[0] == f"| {TINY}" and len(row) == 7 for row in rows)
    assert [row[-2:] for row in rows] == [["1000.0 (1000.0)", "1000.0 (1000.0) |"]] * 2
    assert calls == ["forward", "whole"] * 2 * (light_models.WARM_UP + 2)


def test_all_runtimes_a_training_step_and_a_file_are_measured(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(light_models, "WARM_UP", 0)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "relu.onnx")
    result = run("--training", "--bf16", "--rounds", "1", "--onnx", str(tmp_path / "relu.onnx"))
    head, _, *rows = (line.strip("| ").split(" | ") for line in result.stdout.splitlines())
    assert head[-1] == "training step of 4, ms (median)"
    fp32, bf16, exported, file = rows
    assert [row[1] for row in (fp32, bf16, exported)] == ["PyTorch fp32", "PyTorch bf16", "onnxruntime"]
    assert float(fp32[-1].split()[0]) > float(fp32[-3].split()[0])  # more than a forward pass of one image
    assert len(bf16) == len(exported) == len(head) - 1  # no training there
    assert file[:2] == ["relu.onnx", "onnxruntime"]
    assert float(file[-1].split()[0]) >= 0


def test_a_network_that_cannot_be_exported_is_measured_in_pytorch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [image] = read_images([])
    model = calibrated_network(network_config(TINY), len(VOC_CLASSES), image)
    with torch.no_grad():
        next(model.fpn.parameters()).fill_(torch.inf)  # as overflow would
    found = light_models.runtimes(model, image, tmp_path / "network.onnx", bf16=False)
    assert list(found) == ["PyTorch fp32"]
    assert capsys.readouterr().err.startswith("resnet18: ")
