"""Export the network to ONNX, for runtimes other than PyTorch (onnxruntime, OpenVINO, TensorRT).

The file contains everything that plain operators can express: normalisation, network, softmax and box decoding. NMS and
mask assembly, whose shapes depend on the detections, run outside it, in `yolact.inference.onnx_predictor`. Mask
re-scoring (YOLACT++) reads the assembled masks, so its small network has a file of its own.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from yolact.boxes import decode
from yolact.errors import ExportError, SettingsError
from yolact.files import replaced_file
from yolact.inference.network import fold_batch_norm
from yolact.models.yolact import Yolact
from yolact.transforms import normalize

if TYPE_CHECKING:
    import onnx

ExportPrecision = Literal["fp32", "fp16"]

INPUT_NAME = "images"
OUTPUT_NAMES = ("boxes", "scores", "mask_coefficients", "prototypes")
MASKS_NAME, MASK_IOUS_NAME = "masks", "mask_ious"
"""Input and output of the mask re-scoring network."""

OPSETS = range(18, 24)
"""Supported ONNX operator sets. PyTorch's exporter starts at 18."""
DEFORMABLE_OPSET = 19
"""The first operator set with ``DeformConv``."""

TOLERANCES: dict[ExportPrecision, float] = {"fp32": 1e-3, "fp16": 5e-2}
"""Largest error of an output relative to its largest value, against this network in float32. float16 rounds to 2**-11
in each of about a hundred layers."""

FORMAT = "1"
"""Version of the metadata; increased when readers of the old version would misread it."""

DESCRIPTION = """YOLACT, exported for inference. B images, S side of the input, A anchors, C classes, K prototypes.

Input: images (B, 3, S, S) float32 RGB, 0 to 255, each image resized to S x S (bilinear, half-pixel centres, no
antialiasing, aspect ratio not kept). Normalisation is inside.
Outputs, all float32: boxes (B, A, 4) left, top, right, bottom, as fractions of the image's sides, not clipped;
scores (B, A, C) probabilities of the classes, background left out; mask_coefficients (B, A, K), -1 to 1;
prototypes (B, Hp, Wp, K). After NMS over boxes and scores, an object's mask is where prototypes @ mask_coefficients,
enlarged to the image, is positive, inside its box.
Metadata: classes and category_ids (JSON lists, by label), model (JSON, the network's settings), precision, format."""

RESCORING_DESCRIPTION = """Mask re-scoring of YOLACT++. N objects, C classes.

Input: masks (N, Hp, Wp) float32: sigmoid of prototypes @ mask_coefficients, 0 outside the object's box grown by one
prototype pixel on each side. Output: mask_ious (N, C) float32: how well the mask fits if it is of that class; a mask's
score is that times its class score."""


@dataclass(frozen=True)
class Exported:
    """The result of `export_onnx`."""

    path: Path
    rescoring_path: Path | None
    """The mask re-scoring network; None for a network without one."""
    opset: int
    shapes: dict[str, tuple[int | str, ...]]
    """Shapes of the input and the outputs; a dynamic dimension has a name."""
    errors: dict[str, float] | None
    """Error of each output against this network in float32, relative to its largest value; None without onnxruntime."""


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
) -> Exported:
    """Write a network to an ONNX file and check it; with mask re-scoring, write `rescoring_path` too.

    If onnxruntime is installed, the file is run and its outputs are compared with this network's.

    Args:
        model: the network, on any device; not changed.
        classes: names by label.
        path: must end in ``.onnx``. Written atomically.
        batch: fixed batch size; None for any.
        precision: dtype of weights and features; inputs and outputs are float32.
        opset: ONNX operator set, one of `OPSETS`; None for the lowest that supports the network.
        category_ids: COCO's category ids by label; empty for 1, 2, ...

    Raises:
        SettingsError: an argument is invalid, or does not fit the network.
        ExportError: a library is missing, the exporter cannot translate the network, or the file's outputs differ from
            the network's by more than `TOLERANCES`.
    """
    path = Path(path)
    opset = _checked_opset(model, opset)
    _check_arguments(model, classes, path, batch, precision)
    require("onnx", "onnxscript")
    reference = ExportedNetwork(_cpu_copy(model))
    network = _cpu_copy(model)
    network.maskiou_net = None
    fold_batch_norm(network)
    exported = ExportedNetwork(network, torch.float16 if precision == "fp16" else torch.float32).eval()
    side = model.config.image_size
    images = 255 * torch.rand(batch or 2, 3, side, side, generator=torch.Generator().manual_seed(0))
    proto = _to_onnx(exported, images, INPUT_NAME, OUTPUT_NAMES, opset, None if batch else "batch")
    proto.doc_string = DESCRIPTION
    _set_metadata(
        proto,
        {
            "format": FORMAT,
            "classes": json.dumps(list(classes)),
            "category_ids": json.dumps(list(category_ids)),
            "model": json.dumps(model.config.model_dump()),
            "precision": precision,
        },
    )
    second = None
    if reference.model.maskiou_net is not None:
        second = rescoring_path(path)
        _write_rescoring(reference.model.maskiou_net, model, second, opset)
    errors = _write_checked(proto, path, reference, images, TOLERANCES[precision])
    return Exported(path, second, opset, _shapes(proto), errors)


def rescoring_path(path: Path) -> Path:
    """The file of the mask re-scoring network: ``model.maskiou.onnx`` for ``model.onnx``."""
    return path.with_suffix(".maskiou.onnx")


def require(*names: str) -> Any:
    """Import libraries that only export needs; returns the last one.

    Raises:
        ExportError: a library is missing or cannot be loaded.
    """
    module = None
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ExportError(
                f"{name} is needed for this and cannot be imported ({error}). To install it: "
                "pip install onnx 'onnxscript>=0.7.2' onnxruntime"
            ) from error
    return module


def _checked_opset(model: Yolact, opset: int | None) -> int:
    lowest = DEFORMABLE_OPSET if any(model.config.deformable_blocks) else OPSETS[0]
    if opset is None:
        return lowest
    if not lowest <= opset <= OPSETS[-1]:
        why = "; deformable convolutions need 19" if lowest == DEFORMABLE_OPSET else ""
        raise SettingsError(f"opset {opset}: must be {lowest} to {OPSETS[-1]} for this network{why}")
    return opset


def _check_arguments(model: Yolact, classes: Sequence[str], path: Path, batch: int | None, precision: str) -> None:
    if path.suffix != ".onnx" or path.is_dir():
        raise SettingsError(f"{path}: the file name must end in .onnx, and it must not be a folder")
    if batch is not None and batch < 1:
        raise SettingsError(f"batch {batch}: must be at least 1")
    if precision not in TOLERANCES:
        raise SettingsError(
            f"precision {precision!r} cannot be exported; {' and '.join(get_args(ExportPrecision))} can"
        )
    if len(classes) != model.num_classes:
        raise SettingsError(f"classes: {len(classes)} names, and the network has {model.num_classes} classes")


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


def _write_rescoring(network: nn.Module, model: Yolact, path: Path, opset: int) -> None:
    height, width = (2 * cells for cells in model.level_sizes(model.config.image_size, model.config.image_size)[0])
    masks = torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))
    proto = _to_onnx(network, masks, MASKS_NAME, [MASK_IOUS_NAME], opset, "objects")
    proto.doc_string = RESCORING_DESCRIPTION
    _set_metadata(proto, {"format": FORMAT})
    _write_checked(proto, path, network, masks, TOLERANCES["fp32"])


def _write_checked(
    proto: onnx.ModelProto, path: Path, reference: nn.Module, example: Tensor, tolerance: float
) -> dict[str, float] | None:
    """Write a valid file whose outputs for ``example`` are those of ``reference``; else leave ``path`` unchanged."""
    onnx_library = require("onnx")
    with replaced_file(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        try:
            onnx_library.checker.check_model(str(temporary), full_check=True)
        except (onnx_library.checker.ValidationError, onnx_library.shape_inference.InferenceError) as error:
            raise ExportError(f"{path}: the exporter made an invalid file: {error}") from error
        errors = _errors(temporary, reference, example)
        if errors is not None and not all(error <= tolerance for error in errors.values()):
            found = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
            raise ExportError(
                f"{path}: not written, because its outputs differ from the network's by these fractions of "
                f"the largest value (allowed: {tolerance:g}): {found}"
            )
    return errors


def _errors(path: Path, reference: nn.Module, example: Tensor) -> dict[str, float] | None:
    """Largest error of each output relative to its largest value; None if onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    session = open_session(path, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {session.get_inputs()[0].name: example.numpy()})
    with torch.no_grad():
        expected = reference(example)
    if isinstance(expected, Tensor):
        expected = (expected,)
    return {
        name: float(np.abs(one - other.numpy()).max() / max(float(other.abs().max()), 1e-12))
        for name, one, other in zip(names, found, expected, strict=True)
    }


def open_session(path: Path, providers: Sequence[str] | None = None, threads: int | None = None) -> Any:
    """Open an onnxruntime session for a file.

    Args:
        providers: onnxruntime's execution providers, best first; None for all available ones.
        threads: CPU threads; None for as many as PyTorch uses.

    Raises:
        ExportError: onnxruntime is missing, or cannot load the file.
    """
    onnxruntime = require("onnxruntime")
    if not path.is_file():
        raise ExportError(f"{path}: no such file; `yolact export` writes it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors only: it warns about each constant that it folds
    available = onnxruntime.get_available_providers()
    unknown = [name for name in providers or [] if name not in available]
    if unknown:
        raise SettingsError(f"providers: onnxruntime has no {', '.join(unknown)} here; it has {', '.join(available)}")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers or available))
    except Exception as error:  # its exceptions have no common base class
        raise ExportError(f"{path}: onnxruntime cannot load it: {error}") from error


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim)
        for value in [*proto.graph.input, *proto.graph.output]
    }
