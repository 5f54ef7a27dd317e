"""Resizing against scipy's interpolation, normalisation against hand calculation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from torch import Tensor

from yolact import transforms
from yolact.transforms import IMAGENET, UNIT_RANGE, normalize, to_square


def channels_first(image: np.ndarray) -> Tensor:
    return torch.tensor(image.transpose(2, 0, 1))


def resize_with_scipy(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear with half-pixel centres: output pixel j reads the image at (j + 0.5) * W / size - 0.5; (3, S, S)."""
    height, width = image.shape[:2]
    rows = (np.arange(size) + 0.5) * height / size - 0.5
    columns = (np.arange(size) + 0.5) * width / size - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    planes = image.astype(np.float64).transpose(2, 0, 1)
    return np.stack([map_coordinates(plane, grid, order=1, mode="nearest") for plane in planes])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 64), st.integers(0, 9))
def test_any_image_becomes_a_square_as_scipy_interpolates_it(height: int, width: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    square = to_square(channels_first(image), size)
    assert square.dtype == torch.float32
    np.testing.assert_allclose(square.numpy(), resize_with_scipy(image, size), atol=2e-3)


def test_resizing_does_not_round() -> None:
    image = channels_first(np.array([[[0, 10, 20], [1, 20, 20]]], dtype=np.uint8))  # 1 x 2 pixels
    expected = [[0, 0.25, 0.75, 1], [10, 12.5, 17.5, 20], [20, 20, 20, 20]]
    assert to_square(image, 4)[:, 0].tolist() == expected
    assert to_square(image, 4)[:, 3].tolist() == expected


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = channels_first(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    assert torch.equal(to_square(image, 9), image.float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_normalisation_takes_rgb_from_0_to_255(dtype: torch.dtype) -> None:
    images = torch.tensor([0, 128, 255], dtype=dtype).view(1, 3, 1, 1)
    normal = normalize(images, IMAGENET)
    assert normal.dtype == torch.float32
    by_hand = [(0 - 123.68) / 58.40, (128 - 116.78) / 57.12, (255 - 103.94) / 57.38]
    assert normal.flatten().tolist() == pytest.approx(by_hand, rel=1e-6)


def test_normalisation_is_the_usual_one_on_another_scale() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 5, 4), dtype=np.uint8))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    usual = (images / 255 - mean) / std  # of ImageNet, as torchvision documents it
    assert (normalize(images, IMAGENET) - usual).abs().max() < 0.01


def test_the_constants_are_copied_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each copy makes the host wait."""
    images = torch.rand(2, 3, 4, 5) * 255
    first = normalize(images, IMAGENET)
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(normalize(images, IMAGENET), first)


@pytest.mark.parametrize("before", ["inference", "export"])
def test_earlier_normalisations_do_not_matter(before: str) -> None:
    """Tensors of an exporter have no values, those of inference no gradients."""

    class Network(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return normalize(images, IMAGENET)

    transforms._new_per_channel.cache_clear()
    images = torch.full((1, 3, 2, 2), 100.0)
    if before == "export":
        torch.export.export(Network(), (images,))
    else:
        with torch.inference_mode():
            normalize(images, IMAGENET)
    images.requires_grad_()
    normal = normalize(images, IMAGENET)
    normal.sum().backward()
    assert normal[0, :, 0, 0].tolist() == pytest.approx([-0.405479, -0.293767, -0.068665], abs=1e-5)
    assert images.grad is not None
    assert images.grad[0, :, 0, 0].tolist() == pytest.approx([1 / 58.40, 1 / 57.12, 1 / 57.38])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_darknet_takes_values_from_0_to_1(dtype: torch.dtype) -> None:
    images = torch.tensor([0, 51, 255], dtype=dtype).view(1, 3, 1, 1)
    normal = normalize(images, UNIT_RANGE)
    assert normal.dtype == torch.float32
    assert normal.flatten().tolist() == pytest.approx([0, 0.2, 1])
