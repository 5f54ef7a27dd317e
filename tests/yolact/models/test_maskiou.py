"""Mask re-scoring: layers, their order, and the maximum after them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from yolact.models.maskiou import MaskIouNet
from yolact.models.yolact import Yolact

pytestmark = pytest.mark.usefixtures("one_thread")


def test_keys_and_shapes_are_the_published_ones() -> None:
    widths = [1, 8, 16, 32, 64, 128]
    expected = {"maskiou_net.10.weight": (80, 128, 1, 1), "maskiou_net.10.bias": (80,)}
    for layer, (before, after) in enumerate(itertools.pairwise(widths)):
        expected[f"maskiou_net.{2 * layer}.weight"] = (after, before, 3, 3)
        expected[f"maskiou_net.{2 * layer}.bias"] = (after,)
    assert {key: tuple(value.shape) for key, value in MaskIouNet(80).state_dict().items()} == expected


def reader() -> MaskIouNet:
    """Forwards every 32nd pixel, from the first: each 3x3 convolution copies the corner of its window.

    The classes see that pixel, a half less that pixel, and that pixel less two.
    """
    network = MaskIouNet(3)
    convolutions = [module for module in network.maskiou_net if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for convolution in convolutions:
            convolution.weight.zero_()
            assert convolution.bias is not None
            convolution.bias.zero_()
        for convolution in convolutions[:-1]:
            convolution.weight[0, 0, 0, 0] = 1
        convolutions[-1].weight[:, 0, 0, 0] = torch.tensor([1.0, -1.0, 1.0])
        convolutions[-1].bias.copy_(torch.tensor([0.0, 0.5, -2.0]))
    return network


def test_the_output_is_the_maximum_over_the_grid_and_never_negative() -> None:
    """138 pixels leave a grid of 3 x 3: pixels 0, 32 and 64. Two of them are not zero; other pixels are not used."""
    masks = torch.zeros(2, 138, 138)
    masks[0, 0, 0] = 0.2
    masks[0, 64, 32] = 0.9
    masks[0, 33, 33] = masks[0, 96, 96] = 1
    masks[1] = 0.6
    with torch.no_grad():
        found = reader()(masks)
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.5, 0], [0.6, 0, 0]]))


@pytest.mark.parametrize("layer", [0, 2, 4, 6, 8])
def test_each_convolution_is_followed_by_relu(layer: int) -> None:
    """Two changes of sign would go unnoticed without the ReLU between them; with it nothing passes."""
    network = reader()
    mask = torch.ones(1, 63, 63)
    with torch.no_grad():
        assert network(mask)[0, 0] == 1
        network.maskiou_net[layer].weight.neg_()
        network.maskiou_net[layer + 2].weight.neg_()
        assert network(mask)[0, 0] == 0


def test_the_smallest_input_is_63_pixels() -> None:
    assert MaskIouNet(4)(torch.rand(2, 63, 63)).shape == (2, 4)
    with pytest.raises(RuntimeError, match="size"):
        MaskIouNet(4)(torch.rand(2, 62, 62))


def test_the_smallest_image_that_the_settings_allow_is_large_enough() -> None:
    """Prototypes have twice the side of P3."""
    assert Yolact.level_sizes(249, 249)[0] == (32, 32)
    assert Yolact.level_sizes(248, 248)[0] == (31, 31)


def test_no_masks_give_no_predictions() -> None:
    assert MaskIouNet(4)(torch.zeros(0, 64, 64)).shape == (0, 4)
