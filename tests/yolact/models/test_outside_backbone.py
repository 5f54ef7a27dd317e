"""A backbone that another package registers works with everything that uses backbones."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.small_networks import tiny_config
from tests.yolact import outside_backbone
from tests.yolact.engine.runs import small_params, trainer_on
from tests.yolact.networks import assert_outputs_close, images, trained_like
from yolact import backbone_registry
from yolact.backbone_registry import BackboneSpec, backbones, register_backbone
from yolact.errors import SettingsError, WeightsError
from yolact.inference import onednn
from yolact.inference.export import export_onnx
from yolact.inference.network import InferenceNetwork
from yolact.inference.predictor import Predictor
from yolact.models.backbones.base import build_backbone
from yolact.models.checkpoints import infer_model_config
from yolact.models.complexity import measure_complexity
from yolact.models.starting_weights import load_starting_weights
from yolact.models.weights import load_model, save_model
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig

MIXER: dict[str, Any] = {"backbone": "mixer3", "backbone_blocks": None}
FILE = "model.onnx"

pytestmark = pytest.mark.usefixtures("one_thread", "registered")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_registry, "_SPECS", dict(backbone_registry._SPECS))
    register_backbone(outside_backbone.SPEC)


def mixer(**settings: object) -> Yolact:
    torch.manual_seed(1)
    return Yolact(tiny_config(**MIXER | settings), 3)


def mixer_state(**settings: object) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in mixer(**settings).state_dict().items()}


# --- settings -----------------------------------------------------------------------------------------------------


def test_settings_check_its_name_stages_and_limits() -> None:
    assert tiny_config(**MIXER).blocks == (1, 2, 1)
    assert tiny_config(**MIXER | {"backbone_blocks": [2, 1, 1]}).blocks == (2, 1, 1)
    with pytest.raises(ValidationError, match=r"must be one of resnet18, .*, .*, mixer3, or timm/NAME"):
        tiny_config(backbone="mixer4")
    with pytest.raises(ValidationError, match="backbone_blocks must have 3 numbers for mixer3"):
        tiny_config(**MIXER | {"backbone_blocks": [1, 1, 1, 1]})
    with pytest.raises(ValidationError, match="deformable_blocks need one of the backbones resnet50, resnet101, not"):
        tiny_config(**MIXER, deformable_blocks=[[], [0], []])
    with pytest.raises(SettingsError, match=r"train\.freeze: is stage4, but mixer3 has 3 stages"):
        small_params(model=MIXER | {"backbone_weights": "imagenet"}, freeze="stage4")


def test_a_name_can_be_registered_once() -> None:
    register_backbone(outside_backbone.SPEC)  # its module was imported again
    with pytest.raises(ValueError, match="there is already a backbone 'resnet18'"):
        register_backbone(BackboneSpec("resnet18", "Another", (1,), "elsewhere:Net"))


@pytest.mark.parametrize(
    ("implementation", "problem"),
    [
        ("no_such_module:Net", "cannot be imported: No module named 'no_such_module'; fix it where the backbone"),
        ("tests.yolact.outside_backbone:Missing", "cannot be imported: .*no attribute 'Missing'"),
        ("tests.yolact.outside_backbone:MixBlock", "is not a Backbone class"),
    ],
)
def test_an_invalid_implementation_is_named(implementation: str, problem: str) -> None:
    register_backbone(BackboneSpec("broken", "Broken", (1,), implementation))
    with pytest.raises(SettingsError, match=f"model.backbone: broken: {implementation} {problem}"):
        build_backbone(tiny_config(backbone="broken", backbone_blocks=None))


def test_an_installed_package_is_found_without_importing_pytorch(repository: Path, tmp_path: Path) -> None:
    installed = tmp_path / "mixers-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mixers\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[yolact.backbones]\nmixers = mixers\n")
    (tmp_path / "mixers.py").write_text(
        "from yolact.backbone_registry import BackboneSpec, register_backbone\n"
        f"register_backbone({outside_backbone.SPEC!r})\n"
    )
    program = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(repository)!r}]\n"
        "from yolact.settings import ModelConfig\n"
        f"config = ModelConfig.model_validate_json({tiny_config(**MIXER).model_dump_json()!r})\n"
        "assert 'torch' not in sys.modules\n"
        "from yolact.models.yolact import Yolact\n"
        "print(type(Yolact(config, 1).backbone).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("Mixer\n", 0), done.stderr


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ("none", []),
        ("stem", ["stem"]),
        ("stage2", ["stem", "stages.0", "stages.1"]),
        ("backbone", ["stem", "stages"]),
    ],
)
def test_it_trains_with_frozen_parts(freeze: str, frozen: list[str], tmp_path: Path) -> None:
    trainer = trainer_on("cpu", tmp_path, model=MIXER | {"backbone_weights": "imagenet"}, epochs=1, freeze=freeze)
    before = {name: tensor.clone() for name, tensor in trainer.model.backbone.named_parameters()}
    trainer.fit()
    after = dict(trainer.model.backbone.named_parameters())
    still = {name for name in before if torch.equal(before[name], after[name])}
    norms = {
        f"{name}.{key}"
        for name, module in trainer.model.backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d)  # frozen in a pretrained backbone
        for key in ("weight", "bias")
    }
    assert still == norms | {name for name in before if name.startswith(tuple(f"{part}." for part in frozen))}


# --- weights ------------------------------------------------------------------------------------------------------


def test_its_own_hook_provides_and_renames_pretrained_weights() -> None:
    model = mixer(backbone_weights="imagenet")
    load_starting_weights(model, ["a", "b", "c"])
    torch.manual_seed(5)
    expected = outside_backbone.Mixer((1, 2, 1)).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.backbone.state_dict().items())


def test_a_weights_file_is_renamed_too_and_must_fit(tmp_path: Path) -> None:
    state = outside_backbone.Mixer((1, 2, 1)).imagenet_weights("mixer3", 1)
    save_file(state, tmp_path / "mixer.safetensors")
    model = mixer(backbone_weights=str(tmp_path / "mixer.safetensors"))
    load_starting_weights(model, ["a", "b", "c"])
    assert torch.equal(model.backbone.stem[0].weight, state["trunk.stem.0.weight"])
    larger = mixer(backbone_weights=str(tmp_path / "mixer.safetensors"), backbone_blocks=[1, 2, 2])
    with pytest.raises(WeightsError, match=r"does not fit mixer3: lacks: stages\.2\.2\.bn1\.weight"):
        load_starting_weights(larger, ["a", "b", "c"])


def test_a_backbone_without_pretrained_weights_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(outside_backbone.Mixer, "imagenet_weights")
    with pytest.raises(WeightsError) as caught:
        load_starting_weights(mixer(backbone_weights="imagenet"), ["a", "b", "c"])
    assert str(caught.value) == (
        "model.backbone_weights: imagenet: there are none for mixer3; name a file or set it to none"
    )


def test_a_saved_model_loads_and_starts_another_one(tmp_path: Path) -> None:
    model = trained_like("basic blocks", **MIXER)
    save_model(model, ["a", "b", "c"], tmp_path)
    loaded, classes = load_model(tmp_path)
    assert classes == ["a", "b", "c"]
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    other = mixer(initial_weights=str(tmp_path))
    load_starting_weights(other, classes)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    torch.manual_seed(0)
    resnet = Yolact(tiny_config(initial_weights=str(tmp_path)), 3)
    with pytest.raises(WeightsError, match=r"its backbone \(mixer3\) does not match this network's \(resnet18\)"):
        load_starting_weights(resnet, classes)


@pytest.mark.parametrize("blocks", [None, [3, 1, 2]])
def test_a_checkpoint_of_it_is_recognised(blocks: list[int] | None) -> None:
    config = tiny_config(backbone="mixer3", backbone_blocks=blocks, backbone_weights="imagenet")
    given: dict[str, Any] = {name: getattr(config, name) for name in ("anchor_scales", "anchor_ratios")}
    found = infer_model_config(mixer_state(backbone_blocks=blocks), image_size=64, square_anchors=False, **given)
    assert found == config


# --- inference ----------------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> Yolact:
    return trained_like("basic blocks", **MIXER)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.06)])
@pytest.mark.parametrize("size", [(64, 64), (75, 97)])
def test_it_runs_on_a_cpu(
    model: Yolact, precision: Any, tolerance: float, size: tuple[int, int], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(onednn, "is_available", lambda dtype: False)
    x = images(2, *size)
    with torch.no_grad():
        expected = model.tensors(x)[:4]
    found = InferenceNetwork(model, precision)(x)
    tensors = (found.boxes, found.class_logits, found.mask_coefficients, found.prototypes)
    assert_outputs_close(tensors, expected, tolerance)


def test_only_a_batch_norm_directly_after_its_convolution_is_folded(model: Yolact) -> None:
    network = InferenceNetwork(model, in_place=True)
    left = [name for name, module in model.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["stages.0.1.bn1", "stages.1.1.bn1", "stages.1.2.bn1", "stages.2.1.bn1"]
    assert isinstance(model.backbone.stem[1], nn.GroupNorm)
    assert network.normalization == outside_backbone.Mixer.normalization


def test_a_subclass_of_a_known_backbone_is_not_rebuilt() -> None:
    """Its forward may differ from the fused operations."""
    register_backbone(BackboneSpec("loud", "Loud", (1, 1, 1, 1), "tests.yolact.outside_backbone:LoudResNet"))
    model = trained_like("basic blocks", backbone="loud")
    with torch.no_grad():
        expected = model.tensors(images(1))[:4]
    found = InferenceNetwork(model)(images(1))
    tensors = (found.boxes, found.class_logits, found.mask_coefficients, found.prototypes)
    assert_outputs_close(tensors, expected, 1e-5)


def fused_with(activation: str, network: InferenceNetwork) -> int:
    convs = [module for module in network._tensors.backbone.modules() if isinstance(module, onednn._FusedConv)]
    return sum(conv.activation == activation for conv in convs)


@pytest.mark.skipif(not onednn.is_available(torch.float32), reason="no fused convolutions")
def test_convolutions_in_sequences_are_fused_with_their_activations(model: Yolact) -> None:
    network = InferenceNetwork(model)
    assert fused_with("swish", network) == 3  # one for each stage
    assert fused_with("none", network) == 1  # the stem, which group norm follows


@pytest.mark.skipif(not onednn.is_available(torch.float32), reason="no fused convolutions")
def test_sequences_of_which_a_backbone_runs_only_parts_are_not_fused() -> None:
    register_backbone(BackboneSpec("partial", "Partial", (1, 2, 1), "tests.yolact.outside_backbone:PartialMixer"))
    model = trained_like("basic blocks", **MIXER | {"backbone": "partial"})
    with torch.no_grad():
        expected = model.tensors(images(1))[:4]
    network = InferenceNetwork(model)
    assert (fused_with("swish", network), fused_with("none", network)) == (0, 1)  # the stem runs as a whole
    found = network(images(1))
    tensors = (found.boxes, found.class_logits, found.mask_coefficients, found.prototypes)
    assert_outputs_close(tensors, expected, 1e-5)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.ReLU(), ("relu", [])),
        (nn.ReLU6(), ("hardtanh", [0.0, 6.0])),
        (nn.Hardswish(), ("hardswish", [])),
        (nn.SiLU(), ("swish", [])),
        (nn.GELU(), None),
        (nn.MaxPool2d(2), None),
    ],
)
def test_fused_activations_compute_what_the_layer_does(layer: nn.Module, expected: Any) -> None:
    assert onednn._fusible(layer) == expected
    if expected and onednn.is_available(torch.float32):
        conv = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
        nn.init.normal_(conv.weight, std=2)
        x = images(1).contiguous(memory_format=torch.channels_last)
        wanted = layer(conv(x))
        found = onednn._FusedConv(conv, expected[0], {conv: list(x.shape)}, expected[1])(x)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_its_own_normalisation_is_applied_to_images(model: Yolact) -> None:
    image = torch.full((3, 10, 20), 192, dtype=torch.uint8)
    inputs = Predictor(model, ["a", "b", "c"]).preprocess([image])
    torch.testing.assert_close(inputs[0, :, 5, 5], torch.tensor([1.0, 1.2, 82 / 50]))


def test_an_exported_file_computes_the_networks_outputs(model: Yolact, tmp_path: Path) -> None:
    exported = export_onnx(model, ["a", "b", "c"], tmp_path / FILE, batch=2)
    assert exported.errors is not None
    assert max(exported.errors.values()) < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / FILE), providers=["CPUExecutionProvider"])
    x = 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((128.0, 120.0, 110.0), (64.0, 60.0, 50.0)))
    with torch.no_grad():
        raw = model((x - mean) / std)
    _, scores, coefficients, prototypes = map(torch.from_numpy, session.run(None, {"images": x.numpy()}))
    torch.testing.assert_close(scores, raw.class_logits.softmax(2)[..., 1:], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(coefficients, raw.mask_coefficients, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(prototypes, raw.prototypes, atol=1e-3, rtol=1e-3)


def test_its_size_and_cost_are_counted(model: Yolact) -> None:
    """Operations are counted a second time from the convolutions that really run."""
    operations = []

    def count(conv: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        operations.append(2 * output.numel() * conv.weight[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(images(1))
    found = measure_complexity(model.config, 3)
    assert found.flops == sum(operations)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


# --- the registry -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [spec for spec in backbones() if spec.implementation.startswith("yolact.")])
def test_every_registered_backbone_follows_the_interface(spec: BackboneSpec) -> None:
    config = ModelConfig.model_validate(tiny_config().model_dump() | {"backbone": spec.name, "backbone_blocks": None})
    random_state = torch.get_rng_state()
    with torch.device("meta"):
        backbone = build_backbone(config).eval()
    assert torch.equal(torch.get_rng_state(), random_state)  # a training that measures its network stays as it was
    for height, width in ((64, 96), (65, 95), (94, 66)):
        features = backbone(torch.empty(1, 3, height, width, device="meta"))
        assert [tuple(feature.shape[1:]) for feature in features] == [
            (channels, math.ceil(height / stride), math.ceil(width / stride))
            for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
        ]
    assert len(backbone.stage_modules()) == len(spec.blocks)
    norms = [name for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sorted(norm for _, norm in backbone.conv_norm_pairs()) == sorted(norms)
    parts = [*backbone.stem_modules(), *backbone.stage_modules()]
    covered = {id(parameter) for part in parts for parameter in part.parameters()}
    assert covered == {id(parameter) for parameter in backbone.parameters()}
