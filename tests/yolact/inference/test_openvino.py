"""OpenVINO's files and predictor, where the library is installed: detections match those of the network itself.

OpenVINO is an extra outside the lock file: `make test-interop` installs it and runs these tests, and elsewhere most of
them are skipped.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.yolact.inference.test_onnx_predictor import assert_same
from tests.yolact.networks import trained_like
from yolact.errors import ExportError, SettingsError
from yolact.inference import openvino_export
from yolact.inference.export import Exported, checked_input, network_proto
from yolact.inference.export_format import OUTPUT_NAMES
from yolact.inference.open_exported import open_exported
from yolact.inference.openvino_export import export_openvino
from yolact.inference.openvino_predictor import OpenVinoPredictor
from yolact.inference.predictor import Predictor
from yolact.inference.runtimes import open_openvino
from yolact.models.yolact import Yolact

CLASSES = ["circle", "square", "triangle"]
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for seed, shape in enumerate([(40, 60), (64, 64), (90, 30)])
]

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("one_thread")]
with_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed: pip install openvino"
)
with_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="NNCF is not installed: pip install nncf"
)


@pytest.fixture(scope="module")
def model() -> Yolact:
    return trained_like("basic blocks")


@pytest.fixture(scope="module")
def translated(model: Yolact) -> onnx.ModelProto:
    """Translating takes seconds, so it is done once, for any batch size."""
    return network_proto(model, None, "fp32", 18)


@pytest.fixture
def once(translated: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_export, "network_proto", lambda *_: translated)


@pytest.fixture
def exported(model: Yolact, once: None, tmp_path: Path) -> Exported:
    return export_openvino(model, CLASSES, tmp_path / "model.xml", category_ids=[3, 5, 9], images=IMAGES)


@with_openvino
def test_detections_match_the_predictor(model: Yolact, exported: Exported) -> None:
    assert exported.checked_images == 3
    assert exported.errors is not None
    assert max(exported.errors.values()) < 1e-4
    assert exported.shapes["images"] == ("batch", 3, 64, 64)
    predictor = OpenVinoPredictor(exported.path, batch_size=2, threads=1)
    expected = Predictor(model, CLASSES).predict(IMAGES)
    assert_same(predictor.predict(IMAGES), expected)
    assert predictor.category_ids == [3, 5, 9]
    assert_same(pickle.loads(pickle.dumps(predictor)).predict(IMAGES), expected)
    assert isinstance(open_exported(exported.path), OpenVinoPredictor)


@with_openvino
def test_the_files_contain_nothing_about_the_machine_that_wrote_them(exported: Exported, repository: Path) -> None:
    folder = exported.path.parent
    assert sorted(path.name for path in folder.iterdir()) == ["model.bin", "model.xml"]
    text = exported.path.read_text(encoding="utf-8")
    for path in (str(repository), str(folder), str(Path(torch.__file__).parent)):
        assert path not in text


@with_openvino
def test_half_precision_halves_the_weights(model: Yolact, exported: Exported) -> None:
    path = exported.path.with_name("half.xml")
    half = export_openvino(model, CLASSES, path, precision="fp16", images=IMAGES)
    inputs = checked_input(IMAGES, model.config, None).numpy()
    full = open_openvino(exported.path, exact=True)([inputs])

    def errors(session: Any) -> dict[str, float]:
        found = session([inputs])
        return {name: np.abs(found[name] - full[name]).max() / np.abs(full[name]).max() for name in OUTPUT_NAMES}

    assert half.errors == pytest.approx(errors(open_openvino(path, exact=True)), abs=1e-4)
    assert 1e-5 < max(half.errors.values()) < 1e-2
    # On CPUs with bfloat16 units OpenVINO computes with them, and rounds more than the file.
    session = open_openvino(path)
    if session.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32":
        assert half.default_errors is None
    else:
        assert half.default_errors == pytest.approx(errors(session), abs=1e-4)
        assert max(half.default_errors.values()) > max(half.errors.values())
    assert path.with_suffix(".bin").stat().st_size < 0.51 * exported.path.with_suffix(".bin").stat().st_size


@with_openvino
@with_nncf
def test_int8_finds_nearly_the_same(model: Yolact, exported: Exported) -> None:
    path = exported.path.with_name("int8.xml")
    found = export_openvino(model, CLASSES, path, precision="int8", images=IMAGES)
    assert found.errors is not None
    assert 1e-4 < max(found.errors.values()) < 0.3
    assert path.with_suffix(".bin").stat().st_size < 0.3 * exported.path.with_suffix(".bin").stat().st_size
    detections, expected = (OpenVinoPredictor(one).predict(IMAGES[0]) for one in (path, exported.path))
    assert len(detections) == len(expected)
    assert (detections.scores - expected.scores).abs().mean() < 0.05


@with_openvino
def test_mask_rescoring_is_a_second_pair_and_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    model = trained_like("basic blocks", mask_rescoring=True, image_size=249)
    found = export_openvino(model, CLASSES, tmp_path / "model.xml", batch=2, images=IMAGES)
    assert found.rescoring_path == tmp_path / "model.maskiou.xml"
    predictor = OpenVinoPredictor(found.path)
    assert predictor.batch_size == 2
    detections = predictor.predict(IMAGES)
    assert_same(detections, Predictor(model, CLASSES).predict(IMAGES))
    assert not torch.equal(detections[0].mask_scores, detections[0].scores)


# --- what goes wrong --------------------------------------------------------------------------------------------


@with_openvino
def test_files_with_other_outputs_do_not_replace_good_ones(model: Yolact, exported: Exported) -> None:
    before = {path.name: path.read_bytes() for path in exported.path.parent.iterdir()}
    other = trained_like("basic blocks")
    torch.nn.init.constant_(other.prediction_layers[0].mask_layer.bias, 0.5)
    with pytest.raises(ExportError, match=r"model\.xml: not written, .*mask_coefficients"):
        export_openvino(other, CLASSES, exported.path, images=IMAGES)
    assert {path.name: path.read_bytes() for path in exported.path.parent.iterdir()} == before


@with_openvino
def test_a_file_that_is_not_openvinos_or_not_ours_is_named(exported: Exported) -> None:
    exported.path.write_text(exported.path.read_text().replace("category_ids", "category_names"))
    with pytest.raises(ExportError, match=r"model\.xml: not written by this version.s `yolact export`"):
        OpenVinoPredictor(exported.path)
    exported.path.write_text("nonsense")
    with pytest.raises(ExportError, match=r"model\.xml: OpenVINO cannot load it"):
        OpenVinoPredictor(exported.path)
    with pytest.raises(ExportError, match=r"none\.xml: no such file; `yolact export` writes it"):
        OpenVinoPredictor(exported.path.with_name("none.xml"))


@with_openvino
def test_an_unavailable_device_is_rejected(exported: Exported) -> None:
    with pytest.raises(SettingsError, match=r"device ABACUS: OpenVINO has none here; it has .*CPU"):
        OpenVinoPredictor(exported.path, device="ABACUS")


def test_a_missing_library_is_named_with_its_installation(
    model: Yolact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match=r"^openvino is needed .* pip install 'yolact-pipeline\[openvino"):
        export_openvino(model, CLASSES, tmp_path / "model.xml")
    assert not list(tmp_path.iterdir())


def test_deformable_convolutions_and_other_names_are_refused(model: Yolact, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="OpenVINO cannot read deformable convolutions"):
        export_openvino(trained_like("deformable"), CLASSES, tmp_path / "model.xml")
    with pytest.raises(SettingsError, match=r"model\.bin: the file name must end in \.xml"):
        export_openvino(model, CLASSES, tmp_path / "model.bin")
    with pytest.raises(SettingsError, match=r"model\.pt: an exported model's name ends in \.onnx or \.xml"):
        open_exported(tmp_path / "model.pt")
