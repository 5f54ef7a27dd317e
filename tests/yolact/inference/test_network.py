"""A network prepared for inference computes the same as the network itself."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.yolact.networks import VARIANTS, assert_outputs_close, images, trained_like
from yolact.errors import SettingsError
from yolact.inference import onednn
from yolact.inference.network import InferenceNetwork, fold_batch_norm, fold_into
from yolact.models.maskiou import MaskIouNet
from yolact.models.yolact import Yolact
from yolact.structures import RawOutputs

pytestmark = pytest.mark.usefixtures("one_thread")


def tensors_of(outputs: RawOutputs) -> tuple[Tensor, ...]:
    return outputs.boxes, outputs.class_logits, outputs.mask_coefficients, outputs.prototypes


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without oneDNN's fused convolutions."""
    monkeypatch.setattr(onednn, "is_available", lambda dtype: False)


# --- batch norm ---------------------------------------------------------------------------------------------------


def test_batch_norm_is_folded_by_its_formula() -> None:
    """By hand: 3 (2 x + 1 - 5) / sqrt(15 + 1) + 7 = 1.5 x + 4."""
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=1.0).eval()
    for parameter, value in ((conv.weight, 2), (conv.bias, 1), (norm.weight, 3), (norm.bias, 7)):
        nn.init.constant_(parameter, value)
    norm.running_mean.fill_(5)
    norm.running_var.fill_(15)
    fold_into(conv, norm)
    assert conv.weight.item() == pytest.approx(1.5)
    assert conv.bias.item() == pytest.approx(4)
    torch.testing.assert_close(conv(torch.full((1, 1, 1, 1), 2.0)), torch.full((1, 1, 1, 1), 7.0))


def test_a_convolution_without_bias_gets_one() -> None:
    pair = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    nn.init.normal_(pair[1].running_mean)
    x = torch.randn(2, 3, 5, 5)
    expected = pair(x)
    fold_into(*pair)
    torch.testing.assert_close(pair[0](x), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_folding_batch_norm_keeps_the_outputs(variant: str) -> None:
    network = trained_like(variant)
    with torch.no_grad():
        expected = network.tensors(images(2))
        fold_batch_norm(network)
        found = network.tensors(images(2))
    assert not [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert_outputs_close(found[:4], expected[:4], 1e-5)


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images_at_once", "parts"), [(0.5, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (5, [5])])
def test_on_a_cpu_large_batches_run_in_parts_and_their_outputs_are_joined(
    images_at_once: float, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained_like("basic blocks")
    batch = images(5)
    monkeypatch.setattr("yolact.inference.network.CPU_PIXELS", int(images_at_once * batch.shape[2] * batch.shape[3]))
    prepared = InferenceNetwork(model)
    run, sizes = prepared._tensors, []

    def run_part(part: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(part))
        return run(part)

    monkeypatch.setattr(prepared, "_tensors", run_part)
    found = prepared(batch)
    with torch.no_grad():
        expected = model(batch)
    assert sizes == parts
    assert_outputs_close(tensors_of(found), tensors_of(expected), 2e-5)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_match_the_network(variant: str, batch: int) -> None:
    model = trained_like(variant)
    found = InferenceNetwork(model)(images(batch))
    with torch.no_grad():
        expected = model(images(batch))
    assert_outputs_close(tensors_of(found), tensors_of(expected), 2e-5)
    assert torch.equal(found.anchors, expected.anchors)
    assert found.semantic_logits is None
    assert found.boxes.dtype == torch.float32


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_are_the_same_without_onednn(variant: str, plain: None) -> None:
    model = trained_like(variant)
    found = InferenceNetwork(model)(images(2))
    with torch.no_grad():
        expected = model(images(2))
    assert_outputs_close(tensors_of(found), tensors_of(expected), 1e-5)
    assert torch.equal(found.anchors, expected.anchors)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (33, 33), (70, 110)])
def test_another_input_size_has_its_own_anchors(height: int, width: int) -> None:
    model = trained_like("bottlenecks")
    found = InferenceNetwork(model)(images(1, height, width))
    with torch.no_grad():
        expected = model(images(1, height, width))
    assert_outputs_close(tensors_of(found), tensors_of(expected), 1e-5)
    assert torch.equal(found.anchors, expected.anchors)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_input_is_not_changed_and_the_outputs_are_repeatable(memory_format: Any) -> None:
    """The fused operations write into their inputs if nothing else reads them: a second run would reveal a mistake."""
    network = InferenceNetwork(trained_like("basic blocks"))
    x = images(2).to(memory_format=memory_format)
    before = x.clone()
    first = tensors_of(network(x))
    kept = [tensor.clone() for tensor in first]
    for one, other in zip(tensors_of(network(x)), kept, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(x, before)
    for one, other in zip(first, kept, strict=True):
        assert torch.equal(one, other)  # the second run has not written over the first one's outputs


def test_a_model_may_be_converted_in_place() -> None:
    model = trained_like("bottlenecks")
    expected = tensors_of(InferenceNetwork(model)(images(1)))
    found = tensors_of(InferenceNetwork(model, in_place=True)(images(1)))
    assert_outputs_close(found, expected, 0)


def test_a_model_in_training_mode_is_run_in_evaluation_mode() -> None:
    model = trained_like("basic blocks")
    expected = InferenceNetwork(model)(images(1))
    found = InferenceNetwork(model.train())(images(1))
    assert_outputs_close(tensors_of(found), tensors_of(expected), 0)
    assert model.training


def test_callers_may_compute_gradients_through_the_outputs() -> None:
    outputs = InferenceNetwork(trained_like("basic blocks"))(images(1))
    assert not outputs.boxes.requires_grad
    factor = torch.ones(1, requires_grad=True)
    (outputs.boxes * factor).sum().backward()  # inference tensors would refuse
    assert factor.grad is not None


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_close(variant: str) -> None:
    model = trained_like(variant)
    found = InferenceNetwork(model, "bf16")(images(2))
    with torch.no_grad():
        expected = model(images(2))
    assert {tensor.dtype for tensor in tensors_of(found)} == {torch.bfloat16}
    assert found.anchors.dtype == torch.float32
    assert_outputs_close(tensors_of(found), tensors_of(expected), 0.06)  # 8 bits, and some twenty layers


def test_bfloat16_is_close_without_onednn(plain: None) -> None:
    model = trained_like("bottlenecks")
    found = InferenceNetwork(model, "bf16")(images(1))
    with torch.no_grad():
        expected = model(images(1))
    assert_outputs_close(tensors_of(found), tensors_of(expected), 0.06)


def test_onednn_is_used_for_the_precisions_that_the_processor_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some processors oneDNN has only float32; PyTorch's own convolutions have both."""
    monkeypatch.setattr(onednn, "is_available", lambda dtype: dtype == torch.float32)
    made: list[torch.dtype] = []

    class Kept(onednn.OneDnnNetwork):
        def __init__(self, network: Yolact) -> None:
            made.append(next(network.parameters()).dtype)
            super().__init__(network)

    monkeypatch.setattr(onednn, "OneDnnNetwork", Kept)
    model = trained_like("basic blocks")
    InferenceNetwork(model, "bf16")(images(1))
    assert made == []
    if torch.backends.mkldnn.is_available():
        InferenceNetwork(model, "fp32")(images(1))
        assert made == [torch.float32]


def test_the_mask_rescoring_network_is_a_copy_in_float32() -> None:
    model = trained_like("basic blocks", image_size=256, mask_rescoring=True)
    network = InferenceNetwork(model, "bf16")
    assert isinstance(network.maskiou_net, MaskIouNet)
    assert network.maskiou_net is not model.maskiou_net
    assert {parameter.dtype for parameter in network.maskiou_net.parameters()} == {torch.float32}
    assert isinstance(model.maskiou_net, MaskIouNet)
    assert InferenceNetwork(trained_like("basic blocks")).maskiou_net is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_is_not_changed(precision: Any) -> None:
    model = trained_like("deformable")
    before = copy.deepcopy(model.state_dict())
    InferenceNetwork(model, precision)(images(1))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_preparing_a_network_does_not_change_the_random_state() -> None:
    """A resumed training must draw the same numbers as an uninterrupted one, although they validate at different
    times."""
    model = trained_like("basic blocks")
    onednn.is_available.cache_clear()
    before = torch.get_rng_state()
    InferenceNetwork(model)
    assert torch.equal(torch.get_rng_state(), before)


# --- compilation ----------------------------------------------------------------------------------------------------


def test_compile_passes_the_network_to_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def kept(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", kept)
    monkeypatch.setenv("CXX", sys.executable)  # a compiler that is never called
    model = trained_like("bottlenecks")
    network = InferenceNetwork(model, compile=True)
    assert asked == [{"mode": "default", "dynamic": False}]  # CUDA graphs are for GPUs
    with torch.no_grad():
        expected = model(images(2))
    assert_outputs_close(tensors_of(network(images(2))), tensors_of(expected), 1e-5)
    asked.clear()
    InferenceNetwork(model)
    assert asked == []


# --- errors ---------------------------------------------------------------------------------------------------------


def test_an_unknown_precision_is_rejected() -> None:
    with pytest.raises(SettingsError, match="precision 'half' is unknown; choose one of fp32, bf16, fp16"):
        InferenceNetwork(trained_like("basic blocks"), "half")  # type: ignore[arg-type]


def test_half_precision_is_rejected_on_a_cpu() -> None:
    with pytest.raises(SettingsError, match=r"'fp16' needs a GPU; on a CPU use bf16 .* or fp32"):
        InferenceNetwork(trained_like("basic blocks"), "fp16")
