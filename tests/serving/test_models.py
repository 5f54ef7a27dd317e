"""The test of a model before it is served: what it runs, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serving.models import Offer, SelfTestError, ServedModel, self_test
from tests.serving.conftest import CLASSES
from yolact.inference.export import export_onnx
from yolact.inference.onnx_predictor import OnnxPredictor
from yolact.inference.predictor import Predictor
from yolact.models.yolact import Yolact
from yolact.structures import RawOutputs

TENSORS = ("boxes", "class_logits", "mask_coefficients", "prototypes")


def served(predictor: Predictor | OnnxPredictor) -> ServedModel:
    return ServedModel(Offer("yolact", "1"), predictor)


def load(model_dir: Path, monkeypatch: pytest.MonkeyPatch, images_at_once: int = 1000) -> Predictor:
    """With batches of 8, of which the network runs so many images at once."""
    monkeypatch.setattr("yolact.inference.network.CPU_PIXELS", images_at_once * 64 * 64)
    return Predictor.load(model_dir, device="cpu", batch_size=8)


@pytest.mark.parametrize(
    ("images_at_once", "parts"), [(1, [1]), (2, [1, 2, 1]), (3, [1, 3, 1]), (8, [1, 8]), (1000, [1, 8])]
)
def test_an_image_runs_alone_and_in_a_batch_that_is_full_or_has_two_parts(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, images_at_once: int, parts: list[int]
) -> None:
    predictor = load(model_dir, monkeypatch, images_at_once)
    run, sizes = predictor.network._tensors, []

    def run_part(part: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(part))
        return run(part)

    monkeypatch.setattr(predictor.network, "_tensors", run_part)
    self_test(served(predictor))
    assert sizes == parts


def test_a_server_without_batches_tests_one_image(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load(model_dir, monkeypatch)
    predictor.batch_size = 1
    changed(predictor, lambda name, tensor: pytest.fail("a batch has run") if len(tensor) > 1 else tensor)
    self_test(served(predictor))


def changed(predictor: Predictor, change: Callable[[str, Tensor], Tensor]) -> None:
    """Change what the network computes."""
    forward = predictor.forward

    def changed_forward(images: Sequence[Tensor]) -> RawOutputs:
        outputs = forward(images)
        return dataclasses.replace(outputs, **{name: change(name, getattr(outputs, name)) for name in TENSORS})

    predictor.forward = changed_forward  # type: ignore[method-assign]


@pytest.mark.parametrize("images_at_once", [2, 1000])
@pytest.mark.parametrize("name", TENSORS)
def test_images_of_a_batch_that_are_mixed_up_are_noticed(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, images_at_once: int
) -> None:
    predictor = load(model_dir, monkeypatch, images_at_once)
    changed(predictor, lambda of, tensor: tensor.flip(0) if of == name else tensor)
    with pytest.raises(SelfTestError, match=f"the network's {name} for an image in a batch are not its own"):
        self_test(served(predictor))


def test_an_image_of_a_batch_may_be_rounded_differently(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load(model_dir, monkeypatch)
    changed(predictor, lambda _, tensor: tensor.bfloat16().float() if len(tensor) > 1 else tensor)
    self_test(served(predictor))


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("batch", [False, True])
def test_what_is_not_finite_is_noticed(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, batch: bool
) -> None:
    def break_one(of: str, tensor: Tensor) -> Tensor:
        if of == name and (len(tensor) > 1) == batch:
            tensor = tensor.clone()
            tensor.view(len(tensor), -1)[0, 5] = torch.inf
        return tensor

    predictor = load(model_dir, monkeypatch)
    changed(predictor, break_one)
    with pytest.raises(SelfTestError, match=f"the network's {name} are not finite"):
        self_test(served(predictor))


@pytest.mark.parametrize(("batch", "batches"), [(None, [1, 2]), (3, [3, 3])], ids=["any", "fixed"])
def test_an_exported_file_runs_a_small_batch(
    tmp_path: Path, network: Yolact, monkeypatch: pytest.MonkeyPatch, batch: int | None, batches: list[int]
) -> None:
    export_onnx(network, CLASSES, tmp_path / "model.onnx", batch=batch)
    predictor = OnnxPredictor(tmp_path / "model.onnx", batch_size=8)
    run, sizes = predictor._run, []

    def run_batch(inputs: Any) -> Any:
        sizes.append(len(inputs))
        return run(inputs)

    monkeypatch.setattr(predictor, "_run", run_batch)
    self_test(served(predictor))
    assert sizes == batches


@pytest.mark.slow
def test_an_exported_network_is_tested_likewise(
    tmp_path: Path, network: Yolact, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(network, CLASSES, tmp_path / "model.onnx")
    model = served(OnnxPredictor(tmp_path / "model.onnx"))
    self_test(model)
    run = model.predictor._run  # type: ignore[attr-defined]
    for change, message in (
        (lambda name, array: array * float("nan") if name == 1 else array, "the network's scores are not finite"),
        (lambda name, array: array[::-1].copy() if name == 3 else array, "the network's prototypes for an image in a"),
    ):

        def broken(inputs: Any, change: Any = change) -> list[Any]:
            return [change(name, array) for name, array in enumerate(run(inputs))]

        monkeypatch.setattr(model.predictor, "_run", broken)
        with pytest.raises(SelfTestError, match=message):
            self_test(model)
