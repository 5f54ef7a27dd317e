"""Trained models as ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from yolact.inference.export import Exported, ExportPrecision, export_onnx
from yolact.models.weights import load_model


def run(
    model_dir: Path,
    output: Path | None,
    *,
    batch: int | None = None,
    precision: str = "fp32",
    opset: int | None = None,
    console: Console | None = None,
) -> None:
    """Write a model's ONNX file and print what is in it. See `export_onnx` for the arguments and what is raised.

    Args:
        model_dir: folder with ``model.safetensors`` and ``model.json``.
        output: the file; by default ``model.onnx`` in that folder.
    """
    model, classes = load_model(model_dir)
    path = output or model_dir / "model.onnx"
    exported = export_onnx(model, classes, path, batch=batch, precision=cast(ExportPrecision, precision), opset=opset)
    _print_summary(exported, console or Console(highlight=False))


def _print_summary(exported: Exported, console: Console) -> None:
    table = Table(Column(style="bold", no_wrap=True), Column(overflow="fold"), show_header=False, box=None)
    table.add_row("written to", Text(f"{exported.path}, {exported.path.stat().st_size / 1e6:.1f} MB"))
    if exported.rescoring_path:
        table.add_row("mask re-scoring", Text(str(exported.rescoring_path)))
    table.add_row("opset", str(exported.opset))
    for name, shape in exported.shapes.items():
        table.add_row(name, Text(f"({', '.join(map(str, shape))})"))
    if exported.errors is None:
        table.add_row("compared", "no: onnxruntime is not installed")
    else:
        name, error = max(exported.errors.items(), key=lambda item: item[1])
        table.add_row("compared", f"with the network, by onnxruntime: greatest error {error:.1e}, of {name}")
    console.print(table)
    console.print(
        "\nTo find objects with it, in Python:\n"
        "  from yolact.inference.onnx_predictor import OnnxPredictor\n"
        f'  detections = OnnxPredictor({str(exported.path)!r}).predict("image.jpg")',
        soft_wrap=True,
        markup=False,
    )
