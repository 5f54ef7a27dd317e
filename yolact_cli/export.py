"""`yolact export`: a trained model as a file for another runtime."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, overload

from rich.console import Console
from rich.table import Table

from yolact.data.coco import CocoInstances
from yolact.data.processed import EVAL, annotations_of
from yolact.errors import DataError, SettingsError
from yolact.evaluation.evaluator import IOU_TYPES, evaluate_coco, load_ground_truth, predict_dataset
from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact.images import ImageInput
from yolact.inference.export import Exported, export_onnx
from yolact.inference.export_format import INPUT_NAME, MASKS_NAME, ExportPrecision
from yolact.inference.exported_predictor import ExportedPredictor
from yolact.inference.onnx_predictor import OnnxPredictor
from yolact.inference.open_exported import open_exported
from yolact.inference.openvino_export import export_openvino
from yolact.inference.predictor import ImagePredictor, Predictor
from yolact.models.weights import load_model, read_category_ids
from yolact.settings import DEFAULT_DETECTION
from yolact_cli.output import facts_table
from yolact_ops.reports.formatting import decimal
from yolact_ops.tracking.evaluations import evaluated_annotations

BATCHES = (1, 4, 8)
"""Smallest, usual and largest batch in the optimisation profile that is proposed for TensorRT; 8 is what `yolact serve`
takes at once."""
MASKS = (1, 20, DEFAULT_DETECTION.max_detections)
"""Likewise, masks of an image."""


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    batch: str | None
    """A number, or ``any``."""
    precision: str
    opset: int | None
    tensorrt: bool
    data: Path
    images: Path | None
    evaluate: bool


def run(model_dir: Path, output: Path | None, options: Options, console: Console | None = None) -> None:
    """Write a model's file, print what it contains and, if asked to, its AP.

    Args:
        model_dir: folder with ``model.safetensors`` and ``model.json``.
        output: file to write; by default ``model.onnx`` in that folder.

    Raises:
        DataError: the images or the data to evaluate with are missing.
        others: see `export_onnx` and `export_openvino`.
    """
    console = console or Console(highlight=False)
    batch = _fixed_batch(options)
    model, classes = load_model(model_dir)
    if options.evaluate:
        _evaluated(options.data, classes)  # before the work
    path = output or model_dir / "model.onnx"
    images = _images(options)
    shared = {
        "batch": batch,
        "precision": cast(ExportPrecision, options.precision),
        "category_ids": read_category_ids(model_dir),
        "images": images,
    }
    if path.suffix == ".xml":
        for name, value in (("--opset", options.opset), ("--tensorrt", options.tensorrt)):
            if value:
                raise SettingsError(f"{name} is for .onnx files, and {path} is for OpenVINO")
        exported = export_openvino(model, classes, path, **shared)  # type: ignore[arg-type]
    else:
        exported = export_onnx(model, classes, path, opset=options.opset, tensorrt=options.tensorrt, **shared)  # type: ignore[arg-type]
    _print_summary(exported, console)
    if options.tensorrt:
        _print_engines(exported, options.precision, console)
    if options.evaluate:
        # TensorRT sums products of 8 bits exactly; onnxruntime does so on every CPU only without its int8 kernels.
        found = OnnxPredictor(path, literal=True) if options.tensorrt else open_exported(path)
        _print_evaluation(Predictor.load(model_dir), found, path, options.data, console)


def _fixed_batch(options: Options) -> int | None:
    """The file's fixed batch size; None for any. TensorRT needs a profile for any, so for it the default is 1."""
    if options.batch is None:
        return 1 if options.tensorrt else None
    if options.batch == "any":
        return None
    if not options.batch.isdecimal() or int(options.batch) < 1:
        raise SettingsError(f"--batch {options.batch}: must be a number of images, at least 1, or any")
    return int(options.batch)


class _StoredImages(Sequence[ImageInput]):
    """The image files of a data set, each read when it is used."""

    def __init__(self, data: CocoInstances) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data.images)

    @overload
    def __getitem__(self, index: int) -> ImageInput: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageInput]: ...

    def __getitem__(self, index: int | slice) -> ImageInput | list[ImageInput]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self._data.store.read(self._data.images[index])


def _images(options: Options) -> Sequence[ImageInput]:
    """Images to check and calibrate with: those of a folder, or else the validation images, or none."""
    if options.images is not None:
        found = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"--images {options.images}: no images there ({', '.join(IMAGE_SUFFIXES)})")
        return found
    annotations = annotations_of(options.data, "val")
    if annotations.is_file():
        return _StoredImages(CocoInstances.load(annotations))
    if options.precision == "int8":
        raise DataError(
            f"--precision int8 needs images to calibrate with, and {annotations} does not exist: "
            "name a folder of images with --images, or the folder that preprocess wrote with --data"
        )
    return []


def _evaluated(data: Path, classes: Sequence[str]) -> tuple[CocoInstances, Path]:
    """The images to evaluate with, and their annotations."""
    annotations = evaluated_annotations(data / EVAL)
    instances = CocoInstances.load(annotations)
    if instances.class_names != list(classes):
        raise DataError(f"--evaluate: {annotations} has other classes than the model; --data names other data")
    return instances, annotations


def _print_summary(exported: Exported, console: Console) -> None:
    path = exported.path
    size = sum(file.stat().st_size for file in (path, path.with_suffix(".bin")) if file.is_file())
    facts = {"written to": f"{path}, {size / 1e6:.1f} MB"}
    if exported.rescoring_path:
        facts["mask re-scoring"] = str(exported.rescoring_path)
    if exported.opset:
        facts["opset"] = str(exported.opset)
    facts |= {name: f"({', '.join(map(str, shape))})" for name, shape in exported.shapes.items()}
    if exported.errors is None:
        facts["checked"] = "no: onnxruntime is not installed"
    else:
        runtime = "OpenVINO" if path.suffix == ".xml" else "onnxruntime"
        count = exported.checked_images
        images = f"{count} image{'s' * (count > 1)}" if count else "noise (no images: see --images)"
        facts["checked"] = f"against the network, by {runtime} with {images}: {_largest(exported.errors)}"
    if exported.default_errors:
        facts["on this machine"] = (
            f"OpenVINO computes it in a lower precision: {_largest(exported.default_errors)}; "
            "--evaluate measures what that costs as AP"
        )
    console.print(facts_table(facts))
    module, predictor = ("openvino", "OpenVino") if path.suffix == ".xml" else ("onnx", "Onnx")
    console.print(
        "\nTo detect objects with it in Python:\n"
        f"  from yolact.inference.{module}_predictor import {predictor}Predictor\n"
        f'  detections = {predictor}Predictor({str(path)!r}).predict("image.jpg")',
        soft_wrap=True,
        markup=False,
    )


def _largest(errors: Mapping[str, float]) -> str:
    name, error = max(errors.items(), key=lambda item: item[1])
    return f"largest error {error:.1e}, in {name}"


def _print_engines(exported: Exported, precision: str, console: Console) -> None:
    """The commands that build TensorRT engines of an export, with a profile for each input of free size."""
    batch, *image = exported.shapes[INPUT_NAME]
    profile = _profile(INPUT_NAME, image, BATCHES) if isinstance(batch, str) else []
    typed = [] if precision == "fp32" else ["--stronglyTyped"]  # types of the file; TensorRT 11 always takes these
    lines = ["\nTo build an engine with TensorRT:", _trtexec(exported.path, [*profile, *typed])]
    if exported.rescoring_path:
        profile = _profile(MASKS_NAME, exported.shapes["prototypes"][1:3], MASKS)
        lines.append(_trtexec(exported.rescoring_path, profile))
    if profile:
        lines.append(
            "A free number of images or masks needs an optimisation profile: min, opt and max are the smallest, the "
            "usual and the largest number. Adapt them."
        )
    console.print("\n".join(lines), soft_wrap=True, markup=False)


def _profile(name: str, shape: Sequence[int | str], counts: tuple[int, int, int]) -> list[str]:
    """Flags of trtexec for an input (N, ...) with the smallest, the usual and the largest N."""
    return [
        f"--{kind}Shapes={name}:{'x'.join(map(str, (count, *shape)))}"
        for kind, count in zip(("min", "opt", "max"), counts, strict=True)
    ]


def _trtexec(path: Path, flags: Sequence[str]) -> str:
    return "  " + shlex.join(["trtexec", f"--onnx={path}", f"--saveEngine={path.with_suffix('.engine')}", *flags])


def _print_evaluation(
    network: Predictor, exported: ExportedPredictor, path: Path, data: Path, console: Console
) -> None:
    """A table with the AP of the network and of the file, and the difference."""
    instances, annotations = _evaluated(data, network.classes)
    columns = [_average_precision(one, instances, annotations) for one in (network, exported)]
    table = Table(title=f"{len(instances.images)} images of the {annotations.stem} split")
    for name in ("", "model", path.name, "difference"):
        table.add_column(name, justify="right" if name else "left")
    for name, before in columns[0].items():
        after = columns[1][name]
        change = None if before is None or after is None else after - before
        table.add_row(name, decimal(before, 4), decimal(after, 4), "" if change is None else f"{change:+.4f}")
    console.print(table)


def _average_precision(
    predictor: ImagePredictor, instances: CocoInstances, annotations: Path
) -> dict[str, float | None]:
    rows = predict_dataset(predictor, instances).rows
    ground_truth = load_ground_truth(annotations)
    found: dict[str, float | None] = {}
    for iou_type in IOU_TYPES:
        summary = evaluate_coco(ground_truth, rows, iou_type)
        found |= {f"{iou_type} AP": summary.AP, f"{iou_type} AP50": summary.AP50}
    return found
