"""Export the network to ONNX, for runtimes other than PyTorch (onnxruntime, OpenVINO, TensorRT).

The file contains everything that plain operators can express: normalisation, network, softmax and box decoding. NMS and
mask assembly, whose shapes depend on the detections, run outside it, in `yolact.inference.exported_predictor`. Mask
re-scoring (YOLACT++) reads the assembled masks, so its small network has a file of its own.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from yolact.boxes import decode
from yolact.errors import ExportError, SettingsError
from yolact.files import replaced_file
from yolact.images import ImageInput
from yolact.inference.export_format import (
    DESCRIPTION,
    FORMAT,
    INPUT_NAME,
    MASK_IOUS_NAME,
    MASKS_NAME,
    OUTPUT_NAMES,
    RESCORING_DESCRIPTION,
    ExportPrecision,
    Metadata,
    input_batches,
    rescoring_path,
)
from yolact.inference.network import fold_batch_norm
from yolact.inference.quantization import calibration_batches, quantized
from yolact.inference.runtimes import open_session, require
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig
from yolact.transforms import normalize

if TYPE_CHECKING:
    import onnx

OPSETS = range(18, 24)
"""Supported ONNX operator sets. PyTorch's exporter starts at 18."""
DEFORMABLE_OPSET = 19
"""The first operator set with ``DeformConv``."""

TOLERANCES: dict[ExportPrecision, float] = {"fp32": 1e-3, "fp16": 5e-2, "int8": float("inf")}
"""Largest error of an output relative to its largest value, against this network in float32. float16 rounds to 2**-11
in each of about a hundred layers. With int8 single outputs may differ by as much as they are large, so only numbers
that are not finite are refused; its cost is measured as AP."""

CHECKED_IMAGES = 4
"""Maximum number of images that a file is checked with."""


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    path: Path
    rescoring_path: Path | None
    """The mask re-scoring network; None for a network without one."""
    opset: int | None
    """Of an ONNX file."""
    shapes: dict[str, tuple[int | str, ...]]
    """Shapes of the input and the outputs; a dynamic dimension has a name."""
    errors: dict[str, float] | None
    """Largest error of each output against this network in float32, relative to its largest value; None if the runtime
    is not installed."""
    checked_images: int
    """Images that it was checked with; 0 for noise."""
    default_errors: dict[str, float] | None = None
    """Errors in the precision that OpenVINO chooses on this machine for a file in fp16, where that is not float32."""


class ExportedNetwork(nn.Module):
    """`Yolact` with normalisation before it, softmax and box decoding after it.

    Args:
        model: in evaluation mode.
        dtype: dtype of the network; everything before and after it is float32.
    """

    anchors: Tensor

    def __init__(self, model: Yolact, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        side = model.config.image_size
        self.register_buffer("anchors", model.anchors(model.level_sizes(side, side), torch.device("cpu")))
        self.model = model.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map (B, 3, S, S) float32 RGB, 0 to 255, to the outputs that `DESCRIPTION` lists."""
        images = normalize(images, self.model.backbone.normalization).to(self.dtype)
        encoded, class_logits, mask_coefficients, prototypes = self.model.tensors(images)[:4]
        boxes = decode(encoded.float(), self.anchors)
        scores = class_logits.float().softmax(dim=-1)[..., 1:]
        return boxes, scores, mask_coefficients.float(), prototypes.float()


def export_onnx(
    model: Yolact,
    classes: Sequence[str],
    path: Path | str,
    *,
    batch: int | None = None,
    precision: ExportPrecision = "fp32",
    opset: int | None = None,
    category_ids: Sequence[int] = (),
    images: Sequence[ImageInput] = (),
    tensorrt: bool = False,
) -> Exported:
    """Write a network to an ONNX file and check it; with mask re-scoring, write `rescoring_path` too.

    If onnxruntime is installed, the file is run and its outputs are compared with this network's.

    Args:
        model: the network, on any device; not changed.
        classes: names by label.
        path: must end in ``.onnx``. Written atomically.
        batch: fixed batch size; None for any.
        precision: dtype of weights and features; inputs and outputs are float32. ``int8`` quantises the convolutions
            (`yolact.inference.quantization`).
        opset: ONNX operator set, one of `OPSETS`; None for the lowest that supports the network.
        category_ids: COCO's category ids by label; empty for 1, 2, ...
        images: the first `CHECKED_IMAGES` of them are what the file is checked with, instead of noise; ``int8`` needs
            them, to calibrate.
        tensorrt: write ``int8`` as TensorRT takes it, and check the file operator by operator. For any batch size,
            TensorRT needs an optimisation profile to build an engine.

    Raises:
        SettingsError: an argument is invalid, or does not fit the network.
        DataError: an image is missing or cannot be decoded.
        ExportError: a library is missing, the exporter cannot translate the network, or the file's outputs differ from
            the network's by more than `TOLERANCES`.
    """
    path = Path(path)
    opset = _checked_opset(model, opset)
    check_arguments(model, classes, path, ".onnx", batch, precision, images)
    proto = network_proto(model, batch, "fp16" if precision == "fp16" else "fp32", opset)
    if precision == "int8":
        proto = quantized(proto, calibration_batches(images, model.config, batch), symmetric=tensorrt)
    proto.doc_string = DESCRIPTION
    _set_metadata(proto, Metadata(list(classes), list(category_ids), model.config, precision).to_strings())
    reference = reference_network(model)
    second = None
    if reference.model.maskiou_net is not None:
        second = rescoring_path(path)
        masks = example_masks(model)
        rescoring = rescoring_proto(reference.model.maskiou_net, masks, opset)
        _set_metadata(rescoring, {"format": FORMAT})
        _write_checked(rescoring, second, reference.model.maskiou_net, masks, TOLERANCES["fp32"])
    example = checked_input(images, model.config, batch)
    errors = _write_checked(proto, path, reference, example, TOLERANCES[precision], literal=tensorrt)
    return Exported(path, second, opset, _shapes(proto), errors, len(images[:CHECKED_IMAGES]))


def reference_network(model: Yolact) -> ExportedNetwork:
    """The network in float32 on the CPU, with which exported files are compared; a copy."""
    return ExportedNetwork(_cpu_copy(model))


def checked_input(images: Sequence[ImageInput], config: ModelConfig, batch: int | None) -> Tensor:
    """The (B, 3, S, S) input that a file is checked with: the first images, or noise without any."""
    some = images[:CHECKED_IMAGES]
    if some:
        return next(input_batches(some, config, batch or len(some)))
    generator = torch.Generator().manual_seed(0)
    return 255 * torch.rand(batch or 2, 3, config.image_size, config.image_size, generator=generator)


def network_proto(model: Yolact, batch: int | None, precision: Literal["fp32", "fp16"], opset: int) -> onnx.ModelProto:
    """Translate a network without mask re-scoring.

    Raises:
        ExportError: a library is missing, or the exporter cannot translate the network.
    """
    require("onnx", "onnxscript")
    network = _cpu_copy(model)
    network.maskiou_net = None
    fold_batch_norm(network)
    exported = ExportedNetwork(network, torch.float16 if precision == "fp16" else torch.float32).eval()
    example = checked_input((), model.config, batch)
    return _to_onnx(exported, example, INPUT_NAME, OUTPUT_NAMES, opset, None if batch else "batch")


def rescoring_proto(network: nn.Module, masks: Tensor, opset: int) -> onnx.ModelProto:
    """Translate the mask re-scoring network, for any number of masks like ``masks``."""
    proto = _to_onnx(network, masks, MASKS_NAME, [MASK_IOUS_NAME], opset, "objects")
    proto.doc_string = RESCORING_DESCRIPTION
    return proto


def example_masks(model: Yolact) -> Tensor:
    """(2, Hp, Wp) noise, an input of the mask re-scoring network."""
    height, width = (2 * cells for cells in model.level_sizes(model.config.image_size, model.config.image_size)[0])
    return torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))


def check_arguments(
    model: Yolact,
    classes: Sequence[str],
    path: Path,
    suffix: str,
    batch: int | None,
    precision: str,
    images: Sequence[ImageInput],
) -> None:
    """Raise a SettingsError if an argument of an export is wrong."""
    if path.suffix != suffix or path.is_dir():
        raise SettingsError(f"{path}: the file name must end in {suffix}, and it must not be a folder")
    if batch is not None and batch < 1:
        raise SettingsError(f"batch {batch}: must be at least 1")
    if precision not in TOLERANCES:
        raise SettingsError(f"precision {precision!r} cannot be exported; {', '.join(get_args(ExportPrecision))} can")
    if precision == "int8" and not images:
        raise SettingsError("precision int8 needs images to calibrate with: name some like those of its use")
    if len(classes) != model.num_classes:
        raise SettingsError(f"classes: {len(classes)} names, and the network has {model.num_classes} classes")


def _checked_opset(model: Yolact, opset: int | None) -> int:
    lowest = DEFORMABLE_OPSET if any(model.config.deformable_blocks) else OPSETS[0]
    if opset is None:
        return lowest
    if not lowest <= opset <= OPSETS[-1]:
        why = "; deformable convolutions need 19" if lowest == DEFORMABLE_OPSET else ""
        raise SettingsError(f"opset {opset}: must be {lowest} to {OPSETS[-1]} for this network{why}")
    return opset


def _cpu_copy(model: Yolact) -> Yolact:
    return copy.deepcopy(model).cpu().float().eval().requires_grad_(False)


def _to_onnx(
    network: nn.Module, example: Tensor, input_name: str, output_names: Sequence[str], opset: int, varying: str | None
) -> onnx.ModelProto:
    """Translate a network with one input; ``varying`` names the first dimension if it is dynamic."""
    shapes = None if varying is None else ({0: torch.export.Dim(varying)},)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=list(output_names),
                dynamic_shapes=shapes,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        versions = ", ".join(f"{name} {require(name).__version__}" for name in ("torch", "onnx", "onnxscript"))
        raise ExportError(f"PyTorch's exporter cannot translate the network ({versions}): {error}") from error
    assert program is not None
    proto = program.model_proto
    found = {imported.domain: imported.version for imported in proto.opset_import}
    if found != {"": opset}:
        raise ExportError(f"opset {opset}: PyTorch's exporter gave {found} instead; choose another --opset")
    _strip(proto)
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings, not its errors."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(proto: onnx.ModelProto) -> None:
    """Remove the exporter's references to source files on this machine."""
    del proto.metadata_props[:]
    graph = proto.graph
    for part in [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del part.metadata_props[:]
        part.doc_string = ""


def _set_metadata(proto: onnx.ModelProto, values: dict[str, str]) -> None:
    for key, value in values.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value


def _write_checked(
    proto: onnx.ModelProto,
    path: Path,
    reference: nn.Module,
    example: Tensor,
    tolerance: float,
    *,
    literal: bool = False,
) -> dict[str, float] | None:
    """Write a valid file whose outputs for ``example`` are those of ``reference``; else leave ``path`` unchanged."""
    onnx_library = require("onnx")
    with replaced_file(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        try:
            onnx_library.checker.check_model(str(temporary), full_check=True)
        except (onnx_library.checker.ValidationError, onnx_library.shape_inference.InferenceError) as error:
            raise ExportError(f"{path}: the exporter made an invalid file: {error}") from error
        if importlib.util.find_spec("onnxruntime") is None:
            return None
        session = open_session(temporary, ["CPUExecutionProvider"], literal=literal)
        names = [output.name for output in session.get_outputs()]
        found = session.run(names, {session.get_inputs()[0].name: example.numpy()})
        return checked_errors(path, dict(zip(names, found, strict=True)), reference, example, tolerance)


def checked_errors(
    path: Path, found: Mapping[str, np.ndarray], reference: nn.Module, example: Tensor, tolerance: float
) -> dict[str, float]:
    """Largest error of each output relative to its largest value.

    Args:
        path: the file to be written, for messages.
        found: what a runtime computed for ``example``, in the order of the reference's outputs.

    Raises:
        ExportError: an error is above the tolerance, or not a number.
    """
    with torch.no_grad():
        expected = reference(example)
    if isinstance(expected, Tensor):
        expected = (expected,)
    errors = {
        name: float(np.abs(one - other.numpy()).max() / max(float(other.abs().max()), 1e-12))
        for (name, one), other in zip(found.items(), expected, strict=True)
    }
    if not all(error <= tolerance for error in errors.values()):
        text = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
        raise ExportError(
            f"{path}: not written, because its outputs differ from the network's by these fractions of "
            f"the largest value (allowed: {tolerance:g}): {text}"
        )
    return errors


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim)
        for value in [*proto.graph.input, *proto.graph.output]
    }
