"""Published checkpoints (``.pth``) as models of this project."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from yolact.backbone_registry import find_backbone
from yolact.errors import WeightsError
from yolact.models.checkpoints import ImportedModel, import_checkpoint, read_class_names
from yolact.models.state_dicts import shortened
from yolact.models.weights import save_model

IMPORTED = Path("models/imported")
"""Folder of imported models that were given no other."""

TRAINING_RUN = "run.json"
"""What the train step leaves beside a model."""


def run(
    file: Path,
    output: Path | None,
    *,
    model: str | None = None,
    image_size: int | None = None,
    classes: Path | None = None,
    console: Console | None = None,
) -> None:
    """Write the model of a published checkpoint to a folder and print what it is.

    Args:
        file: the checkpoint.
        output: the folder; by default one in `IMPORTED` with the name of the file.
        model: name of the published configuration that the checkpoint is of.
        image_size: side of the network's input, pixels.
        classes: file of class names, one in each line.

    Raises:
        WeightsError: see `import_checkpoint`; or a file or a trained model is in the way.
        SettingsError: there is no published configuration ``model``.
        DataError: the class names cannot be read.
    """
    output = output or IMPORTED / file.stem
    if output.exists() and not output.is_dir():
        raise WeightsError(f"{output}: is a file; name a folder with -o")
    if (output / TRAINING_RUN).exists():
        raise WeightsError(
            f"{output}: holds a model that was trained here ({TRAINING_RUN}), and would be overwritten; "
            "name another folder with -o"
        )
    names = None if classes is None else read_class_names(classes)
    imported = import_checkpoint(file, model=model, image_size=image_size, classes=names)
    save_model(imported.network, imported.classes, output)
    _print_summary(imported, output, console or Console(highlight=False))


def _print_summary(imported: ImportedModel, output: Path, console: Console) -> None:
    table = Table(Column(style="bold", no_wrap=True), Column(overflow="fold"), show_header=False, box=None)
    for key, value in _facts(imported).items():
        table.add_row(key, Text(value))
    table.add_row("written to", Text(str(output)))
    console.print(table)
    console.print(_next_steps(imported, output), soft_wrap=True, markup=False)


def _next_steps(imported: ImportedModel, output: Path) -> str:
    start = f"-S {shlex.quote(f'model.initial_weights={output}')}"
    lines = [
        "",
        "To find objects, in Python:",
        "  from yolact.inference.predictor import Predictor",
        f'  detections = Predictor.load({str(output)!r}).predict("image.jpg")',
        "To train it further on your own classes:",
    ]
    if imported.published:
        lines.append(f"  yolact preset use voc2012-r50 --model {imported.published} {start}")
    else:
        lines.append(f"  yolact preset use voc2012-r50 {start}")
        lines.append(f"  Then copy the other settings of section model from {output}/model.json into params.yaml.")
    return "\n".join(lines)


def _facts(imported: ImportedModel) -> dict[str, str]:
    config = imported.network.config
    backbone = find_backbone(config.backbone).title
    if config.backbone_blocks is not None:
        backbone = f"as {backbone}, with {', '.join(map(str, config.blocks))} blocks"
    deformable = sum(map(len, config.deformable_blocks))
    ratios = ", ".join(f"{ratio:g}" for ratio in config.anchor_ratios)
    scales = "; ".join(", ".join(f"{scale:.4g}" for scale in level) for level in config.anchor_scales)
    facts = {
        "network": imported.published or "none of the published ones",
        "backbone": f"{backbone}; {deformable} deformable" if deformable else backbone,
        "mask re-scoring": "yes" if config.mask_rescoring else "no",
        "input": f"{config.image_size} x {config.image_size} pixels",
        "anchors": f"{config.anchors_per_cell} per cell; {'squares' if config.square_anchors else f'ratios {ratios}'}",
        "anchor scales": f"{scales} pixels",
        "classes": f"{imported.network.num_classes}: {shortened(imported.classes)}",
        "parameters": f"{sum(parameter.numel() for parameter in imported.network.parameters()):,}",
    }
    if imported.dropped:
        facts["left out"] = f"{len(imported.dropped)} tensors that version 1.0 saved and never used"
    return facts
