"""`yolact export`: a trained model as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rich.console import Console

from yolact.inference.export import Exported, ExportPrecision, export_onnx
from yolact.models.weights import load_model, read_category_ids
from yolact_cli.output import facts_table


def run(
    model_dir: Path,
    output: Path | None,
    *,
    batch: int | None = None,
    precision: str = "fp32",
    opset: int | None = None,
    console: Console | None = None,
) -> None:
    """Write a model's ONNX file and print what it contains; see `export_onnx` for other arguments and errors.

    Args:
        model_dir: folder with ``model.safetensors`` and ``model.json``.
        output: file to write; by default ``model.onnx`` in that folder.
    """
    model, classes = load_model(model_dir)
    path = output or model_dir / "model.onnx"
    exported = export_onnx(
        model,
        classes,
        path,
        batch=batch,
        precision=cast(ExportPrecision, precision),
        opset=opset,
        category_ids=read_category_ids(model_dir),
    )
    _print_summary(exported, console or Console(highlight=False))


def _print_summary(exported: Exported, console: Console) -> None:
    facts = {"written to": f"{exported.path}, {exported.path.stat().st_size / 1e6:.1f} MB"}
    if exported.rescoring_path:
        facts["mask re-scoring"] = str(exported.rescoring_path)
    facts["opset"] = str(exported.opset)
    facts |= {name: f"({', '.join(map(str, shape))})" for name, shape in exported.shapes.items()}
    if exported.errors is None:
        facts["checked"] = "no: onnxruntime is not installed"
    else:
        name, error = max(exported.errors.items(), key=lambda item: item[1])
        facts["checked"] = f"against the network, by onnxruntime: largest error {error:.1e}, in {name}"
    console.print(facts_table(facts))
    console.print(
        "\nTo detect objects with it in Python:\n"
        "  from yolact.inference.onnx_predictor import OnnxPredictor\n"
        f'  detections = OnnxPredictor({str(exported.path)!r}).predict("image.jpg")',
        soft_wrap=True,
        markup=False,
    )
