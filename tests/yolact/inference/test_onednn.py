"""The network for CPUs against PyTorch's own convolutions, in higher precision where useful."""

from __future__ import annotations

import copy
import platform
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.yolact.networks import VARIANTS, assert_outputs_close, images, trained_like
from yolact.inference import onednn
from yolact.inference.network import fold_batch_norm
from yolact.inference.onednn import OneDnnNetwork, is_available
from yolact.inference.winograd import EnlargingWinogradConv2d, WinogradConv2d
from yolact.models.backbones.deformable import DeformableConv2d
from yolact.models.yolact import Yolact

pytestmark = pytest.mark.usefixtures("one_thread")

X86_LINUX = platform.system() == "Linux" and platform.machine() == "x86_64"
needs_onednn = pytest.mark.skipif(not is_available(torch.float32), reason="no oneDNN on this kind of machine")


# --- availability -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not X86_LINUX, reason="only x86 Linux is sure to have oneDNN")
def test_onednn_is_available_on_x86_linux() -> None:
    """Otherwise a PyTorch that renames these operations would make the network slow unnoticed."""
    assert is_available(torch.float32)


def test_fused_convolutions_are_unavailable_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not is_available.__wrapped__(torch.float32)


@pytest.mark.parametrize("error", [AttributeError("no such operation"), RuntimeError("bf16 needs avx512")])
def test_fused_convolutions_are_unavailable_if_their_operations_fail(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Tensor:
        raise error

    monkeypatch.setattr(onednn._FusedConv, "forward", fail)
    assert not is_available.__wrapped__(torch.float32)


@needs_onednn
def test_a_precision_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch rejects bfloat16 here on processors without support for it, but has its own convolutions."""
    tried: list[tuple[torch.dtype, torch.dtype]] = []
    forward = onednn._FusedConv.forward

    def kept(self: onednn._FusedConv, x: Tensor) -> Tensor:
        tried.append((x.dtype, self.bias.dtype))  # type: ignore[union-attr]
        return forward(self, x)

    monkeypatch.setattr(onednn._FusedConv, "forward", kept)
    is_available.__wrapped__(torch.bfloat16)
    assert tried in ([(torch.bfloat16, torch.bfloat16)], [])  # not reached where the weights are refused already


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.fixture
def winograd_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use Winograd's convolution even on the small feature maps of small networks."""
    monkeypatch.setattr(onednn, "WINOGRAD_PIXELS", 20)


def ready(variant: str, **changes: Any) -> Yolact:
    """A network with folded batch norm and in channels_last, as `OneDnnNetwork` requires."""
    network = trained_like(variant, **changes).requires_grad_(False)
    fold_batch_norm(network)
    return network.to(memory_format=torch.channels_last)


def exact_outputs(network: Yolact, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return copy.deepcopy(network).double().tensors(x.double())[:4]


def winograd_convs(network: OneDnnNetwork) -> int:
    return sum(isinstance(module, (WinogradConv2d, EnlargingWinogradConv2d)) for module in network.modules())


@needs_onednn
@pytest.mark.usefixtures("winograd_everywhere")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("batch", "height", "width"),
    [(1, 64, 64), (3, 64, 64), (1, 96, 96), (2, 50, 50), (1, 70, 130)],  # made for one image of 64 x 64
)
def test_outputs_match_the_network_for_any_batch_and_size(variant: str, batch: int, height: int, width: int) -> None:
    network = ready(variant)
    x = images(batch, height, width).contiguous(memory_format=torch.channels_last)
    expected = exact_outputs(network, x)
    with torch.no_grad():
        found = OneDnnNetwork(network)(x)
    assert_outputs_close(found, expected, 1e-5)


@needs_onednn
@pytest.mark.usefixtures("winograd_everywhere")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_does_not_overwrite_what_another_run_reads(variant: str) -> None:
    fused = OneDnnNetwork(ready(variant))
    x = images(2).contiguous(memory_format=torch.channels_last)
    given = x.clone()
    with torch.no_grad():
        first = fused(x)
        kept = [tensor.clone() for tensor in first]
        fused(images(2).flip(0).contiguous(memory_format=torch.channels_last))
        again = fused(x)
    for one, other, saved in zip(first, again, kept, strict=True):
        assert torch.equal(one, saved)
        assert torch.equal(other, saved)
    assert torch.equal(x, given)


@needs_onednn
def test_winograd_is_used_only_for_wide_layers_on_large_feature_maps() -> None:
    assert winograd_convs(OneDnnNetwork(ready("wide"))) == 0
    assert winograd_convs(OneDnnNetwork(ready("basic blocks", image_size=384))) == 0
    network = ready("wide", image_size=384)  # P3 has 48 x 48 pixels
    x = images(1, 384, 384).contiguous(memory_format=torch.channels_last)
    expected = exact_outputs(network, x)
    fused = OneDnnNetwork(network)
    assert winograd_convs(fused) > 0
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for module in fused.modules():
        if isinstance(module, (WinogradConv2d, EnlargingWinogradConv2d)):
            module.register_forward_hook(count)
    with torch.no_grad():
        assert_outputs_close(fused(x), expected, 1e-5)
    assert calls > 0


@needs_onednn
@pytest.mark.usefixtures("winograd_everywhere")
def test_a_wide_class_layer_gives_the_networks_outputs() -> None:
    """3 anchors of 64 classes make the head's last layer wide too."""
    network = ready("wide", num_classes=63)
    x = images(2).contiguous(memory_format=torch.channels_last)
    expected = exact_outputs(network, x)
    fused = OneDnnNetwork(network)
    assert winograd_convs(fused) > winograd_convs(OneDnnNetwork(ready("wide"))) > 0
    with torch.no_grad():
        assert_outputs_close(fused(x), expected, 1e-5)


@pytest.mark.skipif(not is_available(torch.bfloat16), reason="no bfloat16 in oneDNN on this kind of machine")
@pytest.mark.usefixtures("winograd_everywhere")
def test_all_wide_layers_use_winograd_in_bfloat16_too() -> None:
    network = ready("wide", num_classes=63)
    x = images(2).contiguous(memory_format=torch.channels_last)
    expected = exact_outputs(network, x)
    in_float32 = winograd_convs(OneDnnNetwork(copy.deepcopy(network)))
    fused = OneDnnNetwork(network.bfloat16().to(memory_format=torch.channels_last))
    assert isinstance(fused.head.upfeature[0], onednn._WideConv)
    assert isinstance(fused.head.outputs, onednn._WideConv)
    assert winograd_convs(fused) >= in_float32 > 0  # the backbone's as well
    with torch.no_grad():
        assert_outputs_close(fused(x.bfloat16()), expected, 0.06)


@needs_onednn
@pytest.mark.usefixtures("winograd_everywhere")
def test_weights_are_reordered_once() -> None:
    """Otherwise each call would reorder them before it computes."""
    for variant in VARIANTS:
        for module in OneDnnNetwork(ready(variant)).modules():
            if isinstance(module, (onednn._FusedConv, WinogradConv2d, EnlargingWinogradConv2d)):
                assert module.weight.is_mkldnn or module.weight.shape[2:] == (1, 1), variant


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [64, 138])
def test_weights_are_ordered_for_the_actual_input_sizes(variant: str, size: int) -> None:
    with torch.device("meta"):
        network = trained_like(variant, image_size=size)
    seen = {}
    for part in (network.backbone, network.fpn, network.proto_net):
        for conv in part.modules():
            if isinstance(conv, nn.Conv2d):
                conv.register_forward_pre_hook(lambda layer, args: seen.update({layer: list(args[0].shape)}))
    network.tensors(torch.empty(1, 3, size, size, device="meta"))
    offsets = {module.conv_offset_mask for module in network.modules() if isinstance(module, DeformableConv2d)}
    assert onednn._input_sizes(network) == {conv: shape for conv, shape in seen.items() if conv not in offsets}


@needs_onednn
def test_an_input_in_the_other_memory_order_gives_the_same() -> None:
    network = ready("basic blocks")
    expected = exact_outputs(network, images(2))
    with torch.no_grad():
        assert_outputs_close(OneDnnNetwork(network)(images(2).contiguous()), expected, 1e-5)
