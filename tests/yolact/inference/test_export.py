"""A network as an ONNX file: onnxruntime computes the same outputs as the network."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.yolact.networks import assert_outputs_close, trained_like
from yolact.boxes import decode
from yolact.errors import ExportError, SettingsError
from yolact.inference import export
from yolact.inference.export import Exported, export_onnx
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig
from yolact.transforms import normalize

CLASSES = ["circle", "square", "a \"third\" 'één'"]

pytestmark = pytest.mark.usefixtures("one_thread")


def images(batch: int, side: int = 64) -> Tensor:
    """(B, 3, side, side) float32, 0 to 255."""
    return 255 * torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


def run(path: Path, inputs: Tensor) -> tuple[Tensor, ...]:
    """The outputs of plain onnxruntime for a file's only input."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    arrays = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    return tuple(torch.from_numpy(array) for array in arrays)


@torch.no_grad()
def expected(model: Yolact, images: Tensor) -> tuple[Tensor, ...]:
    """Boxes, scores, mask coefficients and prototypes from the network's raw outputs."""
    raw = model(normalize(images, model.backbone.normalization))
    boxes = torch.stack([decode(encoded, raw.anchors) for encoded in raw.boxes])
    scores = raw.class_logits.exp() / raw.class_logits.exp().sum(dim=2, keepdim=True)
    return boxes, scores[:, :, 1:], raw.mask_coefficients, raw.prototypes


@pytest.fixture(scope="module")
def model() -> Yolact:
    return trained_like("basic blocks")


@pytest.fixture(scope="module")
def exported(model: Yolact, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_onnx(model, CLASSES, tmp_path_factory.mktemp("export") / "model.onnx")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_file_for_any_batch_computes_the_networks_outputs(model: Yolact, exported: Exported, batch: int) -> None:
    assert_outputs_close(run(exported.path, images(batch)), expected(model, images(batch)), tolerance=1e-4)


@pytest.mark.parametrize("variant", ["bottlenecks", "darknet", "deformable"])
def test_every_backbone_computes_the_networks_outputs(variant: str, tmp_path: Path) -> None:
    model = trained_like(variant)
    found = export_onnx(model, CLASSES, tmp_path / "model.onnx", batch=1)
    assert found.shapes["images"] == (1, 3, 64, 64)
    assert_outputs_close(run(found.path, images(1)), expected(model, images(1)), tolerance=1e-4)


@pytest.mark.slow
def test_a_new_process_exports_deformable_convolutions(repository: Path, tmp_path: Path) -> None:
    """In this process other tests have already registered torchvision's operations."""
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.yolact.networks import trained_like\n"
        "from yolact.inference.export import export_onnx\n"
        "export_onnx(trained_like('deformable'), ['a', 'b', 'c'], Path(sys.argv[1]), batch=1)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_outputs_close(
        run(tmp_path / "model.onnx", images(1)), expected(trained_like("deformable"), images(1)), tolerance=1e-4
    )


def test_half_precision_is_internal_and_rounds_little(model: Yolact, exported: Exported, tmp_path: Path) -> None:
    half = export_onnx(model, CLASSES, tmp_path / "half.onnx", precision="fp16", batch=2)
    assert half.path.stat().st_size < 0.51 * exported.path.stat().st_size
    found = run(half.path, images(2))
    assert {output.dtype for output in found} == {torch.float32}
    assert_outputs_close(found, expected(model, images(2)), tolerance=1e-2)
    assert half.errors is not None
    assert max(half.errors.values()) > 1e-5, "nothing was rounded to float16"


def test_a_half_precision_file_for_tensorrt_may_take_any_batch(model: Yolact, tmp_path: Path) -> None:
    half = export_onnx(model, CLASSES, tmp_path / "half.onnx", precision="fp16", tensorrt=True)
    assert half.shapes["images"] == ("batch", 3, 64, 64)
    for batch in (1, 2, 5):
        assert_outputs_close(run(half.path, images(batch)), expected(model, images(batch)), tolerance=1e-2)


def test_mask_rescoring_is_a_second_file(tmp_path: Path) -> None:
    model = trained_like("basic blocks", mask_rescoring=True, image_size=249)
    assert model.maskiou_net is not None
    found = export_onnx(model, CLASSES, tmp_path / "model.onnx", batch=1)
    assert found.rescoring_path == tmp_path / "model.maskiou.onnx"
    for count in (1, 5):
        masks = torch.rand(count, 64, 64, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            ious = model.maskiou_net(masks)
        assert ious.shape == (count, 3)
        torch.testing.assert_close(run(found.rescoring_path, masks)[0], ious, atol=1e-5, rtol=1e-4)


def test_the_file_describes_itself(model: Yolact, exported: Exported) -> None:
    proto = onnx.load(exported.path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(imported.domain, imported.version) for imported in proto.opset_import] == [("", 18)]
    assert exported.opset == 18
    assert exported.rescoring_path is None
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata["classes"]) == CLASSES
    assert ModelConfig.model_validate_json(metadata["model"]) == model.config
    assert metadata["precision"] == "fp32"
    # 8, 4, 2, 1 and 1 cells a side, three anchors each.
    anchors = 3 * (64 + 16 + 4 + 1 + 1)
    assert exported.shapes == {
        "images": ("batch", 3, 64, 64),
        "boxes": ("batch", anchors, 4),
        "scores": ("batch", anchors, 3),
        "mask_coefficients": ("batch", anchors, 4),
        "prototypes": ("batch", 16, 16, 4),
    }
    for name in exported.shapes:
        assert name in proto.doc_string


def test_the_file_contains_nothing_about_the_machine_that_wrote_it(exported: Exported, repository: Path) -> None:
    written = exported.path.read_bytes()
    for path in (str(repository), str(exported.path.parent), str(Path(torch.__file__).parent)):
        assert path.encode() not in written
    assert b".py" not in written


def test_the_network_is_not_modified(tmp_path: Path) -> None:
    model = trained_like("basic blocks").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, CLASSES, tmp_path / "model.onnx", precision="fp16", opset=20)
    assert model.training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert proto.opset_import[0].version == 20


# --- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "arguments", "message"),
    [
        ("basic blocks", {"opset": 17}, "opset 17: must be 18 to 23"),
        ("basic blocks", {"opset": 24}, "opset 24: must be 18 to 23"),
        ("deformable", {"opset": 18}, "opset 18: must be 19 to 23 .* deformable convolutions"),
        ("basic blocks", {"batch": 0}, "batch 0"),
        ("basic blocks", {"precision": "bf16"}, "precision 'bf16' cannot be exported; fp32, fp16, int8 can"),
        ("basic blocks", {"classes": ["one"]}, "1 names, and the network has 3"),
        ("basic blocks", {"path": Path("model.pt")}, r"model\.pt: the file name must end in \.onnx"),
    ],
)
def test_wrong_arguments_are_rejected(
    variant: str, arguments: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=message):
        export_onnx(trained_like(variant), **({"classes": CLASSES, "path": Path("model.onnx")} | arguments))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["onnx", "onnxscript"])
def test_a_missing_library_is_named_with_its_installation(
    model: Yolact, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ExportError, match=rf"^{library} is needed .* pip install 'yolact-pipeline\[export\]'"):
        export_onnx(model, CLASSES, tmp_path / "model.onnx")


class Translated:
    """A fake exporter that returns a file exported before, since exporting takes seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, *_: object) -> onnx.ModelProto:
        proto = onnx.load(self.path)
        del proto.metadata_props[:]
        return proto


def test_without_onnxruntime_the_file_is_written_and_not_compared(
    model: Yolact, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_to_onnx", Translated(exported.path))
    assert export_onnx(model, CLASSES, tmp_path / "model.onnx").errors is not None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert export_onnx(model, CLASSES, tmp_path / "model.onnx").errors is None
    assert (tmp_path / "model.onnx").read_bytes() == exported.path.read_bytes()


def test_a_file_with_other_outputs_does_not_replace_a_good_one(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"as it was")
    monkeypatch.setattr(export, "_to_onnx", Translated(exported.path))
    other = trained_like("basic blocks")
    nn.init.constant_(other.prediction_layers[0].mask_layer.bias, 0.5)
    with pytest.raises(ExportError, match=r"model\.onnx: not written, .*mask_coefficients"):
        export_onnx(other, CLASSES, path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.onnx", b"as it was")]


def test_outputs_that_are_not_finite_are_rejected(tmp_path: Path) -> None:
    model = trained_like("basic blocks")
    with torch.no_grad():
        model.fpn.lat_layers[0].bias.fill_(1e6)  # beyond float16
    with pytest.raises(ExportError, match=r"not written, .* nan"):
        export_onnx(model, CLASSES, tmp_path / "model.onnx", precision="fp16", batch=1)
    assert not (tmp_path / "model.onnx").exists()


def test_a_network_that_cannot_be_translated_is_an_error_with_the_versions(
    model: Yolact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("no translation for torchvision.deform_conv2d")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match=rf"onnx {onnx.__version__}, onnxscript .*deform_conv2d"):
        export_onnx(model, CLASSES, tmp_path / "model.onnx")


def test_errors_are_relative_to_the_largest_value(exported: Exported) -> None:
    class Twice(nn.Module):
        def forward(self, arrays: Tensor) -> tuple[Tensor, ...]:
            outputs = list(run(exported.path, arrays))
            outputs[3] = outputs[3] * 2
            return tuple(outputs)

    names = ("boxes", "scores", "mask_coefficients", "prototypes")
    found = {name: output.numpy() for name, output in zip(names, run(exported.path, images(1)), strict=True)}
    errors = export.checked_errors(exported.path, found, Twice(), images(1), tolerance=1)
    np.testing.assert_allclose([errors["boxes"], errors["prototypes"]], [0, 0.5], atol=1e-6)
