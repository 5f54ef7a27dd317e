"""Quantised ONNX files: what is int8 in them, what is not, and what they find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from tests.yolact.networks import trained_like
from yolact.errors import DataError, ExportError, SettingsError
from yolact.inference import export
from yolact.inference.export import export_onnx, network_proto
from yolact.inference.export_format import OUTPUT_NAMES, network_input
from yolact.inference.onnx_predictor import OnnxPredictor
from yolact.inference.quantization import CALIBRATION_IMAGES, calibration_batches
from yolact.models.yolact import Yolact

CLASSES = ["circle", "square", "triangle"]
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    for seed in range(6)
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Yolact:
    return trained_like("basic blocks")


@pytest.fixture(scope="module")
def translated(model: Yolact) -> onnx.ModelProto:
    """Translating takes seconds, so it is done once."""
    return network_proto(model, 1, "fp32", 18)


@pytest.fixture(scope="module")
def files(model: Yolact, translated: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("int8")
    for_tensorrt = {"precision": "int8", "images": IMAGES, "tensorrt": True}
    export_onnx(model, CLASSES, folder / "tensorrt-any.onnx", **for_tensorrt)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "network_proto", lambda *_: translated)
        export_onnx(model, CLASSES, folder / "tensorrt.onnx", batch=1, **for_tensorrt)  # type: ignore[arg-type]
        export_onnx(model, CLASSES, folder / "int8.onnx", batch=1, precision="int8", images=IMAGES)
        export_onnx(model, CLASSES, folder / "fp32.onnx", batch=1)
    return {path.stem: path for path in folder.iterdir()}


def outputs(path: Path, model: Yolact, *, literal: bool, numbers: Sequence[int] = (0,)) -> dict[str, np.ndarray]:
    """What onnxruntime computes for a batch of some of the images."""
    options = onnxruntime.SessionOptions()
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    batch = [network_input(torch.from_numpy(IMAGES[number]).permute(2, 0, 1), model.config) for number in numbers]
    inputs = torch.stack(batch).numpy()
    session = onnxruntime.InferenceSession(str(path), options)
    return dict(zip(OUTPUT_NAMES, session.run(list(OUTPUT_NAMES), {"images": inputs}), strict=True))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of the values."""
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


def dtypes_of_weights(proto: onnx.ModelProto) -> dict[str, np.dtype]:
    """By convolution: the dtype in which its weights are stored."""
    stored = {value.name: numpy_helper.to_array(value).dtype for value in proto.graph.initializer}
    producers = {output: node for node in proto.graph.node for output in node.output}
    found = {}
    for node in proto.graph.node:
        if node.op_type == "Conv":
            name = node.input[1]
            while name not in stored:
                name = producers[name].input[0]
            found[node.name] = stored[name]
    return found


def test_convolutions_are_int8_except_the_last_ones(files: dict[str, Path], model: Yolact) -> None:
    proto = onnx.load(files["int8"])
    dtypes = list(dtypes_of_weights(proto).values())
    # Three of the heads on each of five levels, and the last one of the prototypes.
    assert dtypes.count(np.dtype(np.float32)) == 16
    assert dtypes.count(np.dtype(np.int8)) == len(dtypes) - 16 > 20
    assert {(imported.domain, imported.version) for imported in proto.opset_import} == {("", 18)}
    assert files["int8"].stat().st_size < 0.3 * files["fp32"].stat().st_size
    weights = [numpy_helper.to_array(value) for value in proto.graph.initializer]
    assert max(np.abs(one).max() for one in weights if one.dtype == np.int8 and one.ndim == 4) <= 64, "7 bits"
    assert {entry.key: entry.value for entry in proto.metadata_props}["precision"] == "int8"


def test_quantised_files_compute_nearly_the_networks_outputs(files: dict[str, Path], model: Yolact) -> None:
    expected = outputs(files["fp32"], model, literal=False)
    for name, literal in (("int8", False), ("tensorrt", True)):
        found = outputs(files[name], model, literal=literal)
        errors = {output: relative_error(found[output], expected[output]) for output in OUTPUT_NAMES}
        assert max(errors.values()) < 0.1, (name, errors)
        assert min(errors.values()) > 1e-5, f"{name}: nothing was quantised"


def test_the_predictor_runs_a_quantised_file(files: dict[str, Path]) -> None:
    found, expected = (OnnxPredictor(files[name]).predict(IMAGES[0]) for name in ("int8", "fp32"))
    assert len(found) == len(expected)
    assert (found.scores - expected.scores).abs().mean() < 0.02


@pytest.mark.parametrize(("name", "batch"), [("tensorrt", 1), ("tensorrt-any", "batch")])
def test_tensorrt_gets_symmetric_ranges_float_biases_and_only_the_batch_may_be_free(
    files: dict[str, Path], name: str, batch: int | str
) -> None:
    proto = onnx.load(files[name])
    for value in [*proto.graph.input, *proto.graph.output]:
        first, *others = value.type.tensor_type.shape.dim
        assert (first.dim_param or first.dim_value) == batch
        assert all(side.dim_value > 0 for side in others)
    values = {value.name: numpy_helper.to_array(value) for value in proto.graph.initializer}
    pairs = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    assert {value.dtype for value in values.values()} <= {np.dtype(name) for name in ("float32", "int8", "int64")}
    assert not any(node.domain for node in proto.graph.node)
    assert "NonMaxSuppression" not in {node.op_type for node in proto.graph.node}


@pytest.mark.parametrize("numbers", [(0,), (1, 2), (5, 4, 3, 2, 1)])
def test_for_any_batch_tensorrts_int8_file_computes_what_the_fixed_one_does_image_by_image(
    files: dict[str, Path], model: Yolact, numbers: tuple[int, ...]
) -> None:
    found = outputs(files["tensorrt-any"], model, literal=True, numbers=numbers)
    single = [outputs(files["tensorrt"], model, literal=True, numbers=[number]) for number in numbers]
    for name in OUTPUT_NAMES:
        assert relative_error(found[name], np.concatenate([one[name] for one in single])) < 1e-5


def test_calibration_takes_images_evenly(model: Yolact) -> None:
    images = [np.full((4, 4, 3), number % 256, np.uint8) for number in range(2 * CALIBRATION_IMAGES)]
    batches = list(calibration_batches(images, model.config, None))
    assert len(batches) == CALIBRATION_IMAGES
    assert [float(batch.mean()) for batch in batches] == [float(number % 256) for number in range(0, 200, 2)]
    [batch] = calibration_batches(images[:3], model.config, 4)  # filled up, because the file's batch is fixed
    assert [float(row.mean()) for row in batch] == [0, 1, 2, 0]


def test_without_images_it_cannot_calibrate(model: Yolact, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="precision int8 needs images to calibrate with"):
        export_onnx(model, CLASSES, tmp_path / "model.onnx", precision="int8")


def test_an_image_that_cannot_be_read_is_named(
    model: Yolact, translated: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "network_proto", lambda *_: translated)
    (tmp_path / "broken.jpg").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"broken\.jpg: cannot be read as an image"):
        export_onnx(model, CLASSES, tmp_path / "model.onnx", precision="int8", images=[tmp_path / "broken.jpg"])
    assert not (tmp_path / "model.onnx").exists()


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """A scale that overflows makes all outputs NaN; such a file would find nothing."""
    with pytest.raises(ExportError, match=r"not written, .* nan"):
        export.checked_errors(
            tmp_path / "model.onnx",
            {"boxes": np.full((1, 2), np.nan)},
            torch.nn.Identity(),
            torch.ones(1, 2),
            export.TOLERANCES["int8"],
        )
