"""Winograd's convolutions against direct ones in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from yolact.inference import winograd
from yolact.inference.onednn import is_available
from yolact.inference.winograd import EnlargingWinogradConv2d, WinogradConv2d

pytestmark = pytest.mark.usefixtures("one_thread")


def wide_conv(in_channels: int, out_channels: int, seed: int = 0) -> nn.Conv2d:
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    with torch.no_grad():
        conv.weight.normal_(0, (9 * in_channels) ** -0.5, generator=generator)
        assert conv.bias is not None
        conv.bias.normal_(generator=generator)
    return conv


def exact(conv: nn.Conv2d, x: Tensor, activation: str) -> Tensor:
    assert conv.bias is not None
    with torch.no_grad():
        out = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    return out.relu() if activation == "relu" else out


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 3), (3, 9), (4, 4), (5, 4), (8, 12), (9, 7), (17, 6), (1, 40), (40, 1), (23, 23)]
)
def test_winograd_equals_the_direct_convolution(height: int, width: int, channels_last: bool, activation: Any) -> None:
    conv = wide_conv(7, 5)
    x = torch.randn(3, 7, height, width, generator=torch.Generator().manual_seed(1))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    with torch.no_grad():
        found = WinogradConv2d(conv, activation)(x)
    assert found.shape == (3, 5, height, width)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact(conv, x, activation), atol=2e-5, rtol=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("channels", [4, 64, 70])
@pytest.mark.parametrize(("tiles_at_once", "transformed_at_once"), [(1, 1), (3, 9), (8, 3), (10**6, 8), (10**6, 10**6)])
def test_winograd_in_bands_equals_winograd_at_once(
    tiles_at_once: int, transformed_at_once: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six rows of three tiles each: one row at a time if the limit is lower, two rows, or all of them."""
    conv = wide_conv(6, channels)
    x = torch.randn(2, 6, 22, 11, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", tiles_at_once)
    monkeypatch.setattr(winograd, "TILES_TRANSFORMED_AT_ONCE", transformed_at_once)
    with torch.no_grad():
        found = WinogradConv2d(conv, "none")(x)
    torch.testing.assert_close(found.double(), exact(conv, x, "none"), atol=2e-5, rtol=0)


def test_winograd_rounds_little_at_the_width_of_the_network() -> None:
    """As its docstring says: by about 1e-6 of the largest value."""
    conv = wide_conv(256, 256)
    x = torch.randn(1, 256, 16, 16, generator=torch.Generator().manual_seed(3)).relu()
    with torch.no_grad():
        found = WinogradConv2d(conv, "none")(x)
    expected = exact(conv, x, "none")
    assert (found.double() - expected).abs().max() < 5e-6 * expected.abs().max()


# --- enlarged twofold -------------------------------------------------------------------------------------------------


def enlarged_exactly(conv: nn.Conv2d, head: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.no_grad():
        large = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)(x.double())
        middle = exact(conv, large, "relu")
        assert head.bias is not None
        return F.conv2d(middle, head.weight.double(), head.bias.double())


@settings(deadline=None, max_examples=60)
@given(height=st.integers(3, 21), width=st.integers(3, 21), tiles_at_once=st.sampled_from([1, 5, 30, 10**6]))
def test_enlarging_equals_upsampling_and_the_direct_convolution(height: int, width: int, tiles_at_once: int) -> None:
    """Odd and even sizes end differently; with bands, edges are in the first and the last one."""
    conv, head = wide_conv(5, 6), nn.Conv2d(6, 3, 1)
    x = torch.randn(2, 5, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    before = x.clone()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(winograd, "TILES_AT_ONCE", tiles_at_once)
        found = EnlargingWinogradConv2d(conv, head)(x)
    assert found.shape == (2, 3, 2 * height, 2 * width)
    torch.testing.assert_close(found.double(), enlarged_exactly(conv, head, x), atol=2e-5, rtol=0)
    assert torch.equal(x, before)


needs_bfloat16 = pytest.mark.skipif(
    not is_available(torch.bfloat16), reason="no bfloat16 in oneDNN on this kind of machine"
)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_the_usual_points_have_twice_the_rounding_error(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As documented at `POINTS`."""
    conv = wide_conv(64, 64).to(dtype)
    x = torch.randn(1, 64, 32, 32, generator=torch.Generator().manual_seed(5)).relu().to(dtype)
    expected = exact(conv, x, "none")

    def error() -> float:
        with torch.no_grad():
            return float((WinogradConv2d(conv, "none")(x).double() - expected).square().mean().sqrt())

    ours = error()
    monkeypatch.setattr(winograd, "POINTS", (0, 1, -1, 2, -2))
    for name, size, invert in (("INWARD", 6, True), ("OUTWARD", 4, False)):
        matrix = winograd._evaluation(size)
        monkeypatch.setattr(winograd, name, matrix.inverse().T if invert else matrix.T)
    assert 1.5 * ours < error() < 3 * ours
