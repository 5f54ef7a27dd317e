"""Export the network to OpenVINO's files, and to int8 by NNCF, which OpenVINO recommends for it.

The network is translated to ONNX first (`yolact.inference.export`), so inputs, outputs and metadata are the same.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from yolact.errors import ExportError, SettingsError
from yolact.files import publish
from yolact.images import ImageInput
from yolact.inference.export import (
    CHECKED_IMAGES,
    OPSETS,
    TOLERANCES,
    Exported,
    check_arguments,
    checked_errors,
    checked_input,
    example_masks,
    network_proto,
    reference_network,
    rescoring_proto,
)
from yolact.inference.export_format import (
    DESCRIPTION,
    FORMAT,
    RESCORING_DESCRIPTION,
    ExportPrecision,
    Metadata,
    rescoring_path,
)
from yolact.inference.quantization import CALIBRATION_IMAGES, calibration_batches
from yolact.inference.runtimes import OPENVINO_SECTION, open_openvino, require
from yolact.models.yolact import Yolact

if TYPE_CHECKING:
    import onnx


def export_openvino(
    model: Yolact,
    classes: Sequence[str],
    path: Path | str,
    *,
    batch: int | None = None,
    precision: ExportPrecision = "fp32",
    category_ids: Sequence[int] = (),
    images: Sequence[ImageInput] = (),
) -> Exported:
    """Write a network to OpenVINO's two files and check them; with mask re-scoring, write `rescoring_path` too.

    Args:
        path: must end in ``.xml``; the weights are in the ``.bin`` file next to it.
        precision: ``fp16`` halves the weights' file, and OpenVINO chooses the precision of the computation: the file is
            checked in float32, and `Exported.default_errors` has what that choice costs here; ``int8`` quantises with
            NNCF.
        others: see `yolact.inference.export.export_onnx`.

    Raises:
        SettingsError: an argument is invalid, or does not fit the network.
        DataError: an image is missing or cannot be decoded.
        ExportError: a library is missing, a translator does not know the network's operations, or the file's outputs
            differ from the network's by more than `TOLERANCES`.
    """
    path = Path(path)
    check_arguments(model, classes, path, ".xml", batch, precision, images)
    if any(model.config.deformable_blocks):
        raise SettingsError("model.deformable_blocks: OpenVINO cannot read deformable convolutions; export to .onnx")
    require("openvino")
    translated = _translated(network_proto(model, batch, "fp32", OPSETS[0]))
    if precision == "int8":
        translated = _quantized(translated, calibration_batches(images, model.config, batch))
    metadata = Metadata(list(classes), list(category_ids), model.config, precision).to_strings()
    _describe(translated, {**metadata, "description": DESCRIPTION})
    reference = reference_network(model)
    second = None
    if reference.model.maskiou_net is not None:
        second = rescoring_path(path)
        masks = example_masks(model)
        rescoring = _translated(rescoring_proto(reference.model.maskiou_net, masks, OPSETS[0]))
        _describe(rescoring, {"format": FORMAT, "description": RESCORING_DESCRIPTION})
        _write_checked(rescoring, second, "fp32", reference.model.maskiou_net, masks)
    example = checked_input(images, model.config, batch)
    errors, default_errors = _write_checked(translated, path, precision, reference, example)
    return Exported(path, second, None, _shapes(translated), errors, len(images[:CHECKED_IMAGES]), default_errors)


def _translated(proto: onnx.ModelProto) -> Any:
    """The network as OpenVINO's model."""
    with tempfile.TemporaryDirectory(prefix="yolact-openvino-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        try:
            return require("openvino").Core().read_model(path)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot translate the network: {error}") from error


def _describe(model: Any, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        model.set_rt_info(value, [OPENVINO_SECTION, name])


def _quantized(model: Any, batches: Iterator[Tensor]) -> Any:
    """Quantise the convolutions and what lies between them; softmax and box decoding stay as they are."""
    nncf = _import_nncf()
    data = nncf.Dataset([batch.numpy() for batch in batches])
    ignored = nncf.IgnoredScope(names=_after_convolutions(model), validate=False)
    # 7 bits of the weights: on CPUs without VNNI instructions, sums of products of 8 bits saturate.
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            model, data, subset_size=CALIBRATION_IMAGES, ignored_scope=ignored, advanced_parameters=advanced
        )


def _import_nncf() -> Any:
    """NNCF without its reports of each use to its authors: it sends none if their library cannot be imported."""
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # makes its import fail
    try:
        return require("nncf")
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def _after_convolutions(model: Any) -> list[str]:
    """Names of the operations between the last convolutions and the results."""
    found: dict[str, None] = {}
    open_ends = [result.input_value(0).get_node() for result in model.get_results()]
    while open_ends:
        node = open_ends.pop()
        name = node.get_friendly_name()
        if name in found or "Convolution" in node.get_type_name():
            continue
        found[name] = None
        open_ends += [value.get_node() for value in node.input_values()]
    return list(found)


def _write_checked(
    model: Any, path: Path, precision: ExportPrecision, reference: nn.Module, example: Tensor
) -> tuple[dict[str, float], dict[str, float] | None]:
    """Write the two files if their outputs for ``example`` are those of ``reference``; else leave them unchanged.

    Returns:
        `Exported.errors` and `Exported.default_errors`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as folder:
        written = Path(folder) / path.name
        require("openvino").save_model(model, written, compress_to_fp16=precision == "fp16")
        # What OpenVINO rounds by itself is no error of the file: bfloat16 has 8 bits where float16 has 11.
        session = open_openvino(written, exact=precision != "int8")
        errors = checked_errors(path, _outputs(session, example), reference, example, TOLERANCES[precision])
        default_errors = None
        if precision == "fp16":
            session = open_openvino(written)
            if session.get_property("INFERENCE_PRECISION_HINT").get_type_name() != "f32":
                default_errors = checked_errors(path, _outputs(session, example), reference, example, float("inf"))
        path.unlink(missing_ok=True)  # if the process is killed now, no description is next to other weights
        publish(written.with_suffix(".bin"), path.with_suffix(".bin"))
        publish(written, path)
    return errors, default_errors


def _outputs(session: Any, example: Tensor) -> dict[str, np.ndarray]:
    outputs = session([example.numpy()])
    return {output.get_any_name(): outputs[output] for output in session.outputs}


def _shapes(model: Any) -> dict[str, tuple[int | str, ...]]:
    return {
        value.get_any_name(): tuple(side.get_length() if side.is_static else "batch" for side in value.partial_shape)
        for value in [*model.inputs, *model.outputs]
    }
