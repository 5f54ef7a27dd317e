"""`yolact_bench.studies.networks`: networks from text."""

from __future__ import annotations

import pytest

from yolact.errors import SettingsError
from yolact_bench.studies.networks import network_config
from yolact_ops.settings.presets import choose


def test_a_preset_is_its_network_without_pretrained_weights() -> None:
    expected = choose("lite0-320").model.model_dump() | {"backbone_weights": "none"}
    assert network_config("lite0-320").model_dump() == expected


def test_settings_differ_from_the_preset() -> None:
    config = network_config("lite0-320,backbone=resnet50,deformable_blocks=[[],[0,1],[],[1]],head_convs=1")
    assert (config.backbone, config.fpn_channels, config.image_size) == ("resnet50", 64, 320)
    assert (config.deformable_blocks, config.head_convs) == ([[], [0, 1], [], [1]], 1)


def test_without_a_preset_they_differ_from_the_base() -> None:
    config = network_config("backbone=resnet18,head_convs=2")
    assert (config.backbone, config.image_size, config.head_convs, config.protonet_convs) == ("resnet18", 550, 2, 3)


def test_anchors_follow_the_input() -> None:
    assert network_config("image_size=275").anchor_scales == [[16], [32], [64], [128], [256]]
    assert network_config("sample-cpu,image_size=256").anchor_scales[:2] == [[36, 46, 58], [74, 94, 116]]
    own = "[[8],[16],[32],[64],[128]]"
    assert network_config(f"image_size=275,anchor_scales={own}").anchor_scales == [[8], [16], [32], [64], [128]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fpn_chanels=8", "did you mean 'fpn_channels'?"),
        ("lite0-320,fpn_channels=few", "model.fpn_channels: input should be a valid integer"),
        ("lite-320", "no preset 'lite-320'; did you mean 'lite0-320'?"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        network_config(text)
    assert message in str(refused.value)
