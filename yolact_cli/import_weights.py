"""`yolact import-weights`: a published checkpoint (``.pth``) as a model of this project."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from yolact.backbone_registry import find_backbone
from yolact.errors import WeightsError
from yolact.models.checkpoints import ImportedModel, import_checkpoint, read_class_names
from yolact.models.state_dicts import shortened
from yolact.models.weights import save_model
from yolact_cli.output import facts_table

IMPORTED = Path("models/imported")
"""Default folder of imported models."""

TRAINING_RUN = "run.json"
"""File that the train step writes next to a model."""


def run(
    file: Path,
    output: Path | None,
    *,
    model: str | None = None,
    image_size: int | None = None,
    classes: Path | None = None,
    console: Console | None = None,
) -> None:
    """Convert a published checkpoint to a model in a folder and print what it is.

    Args:
        file: the checkpoint.
        output: folder to write; by default one in `IMPORTED` with the name of the file.
        model: name of the checkpoint's published configuration; None infers the network.
        image_size: side of the network's input, pixels.
        classes: file of class names, one per line.

    Raises:
        WeightsError: see `import_checkpoint`; or the output is a file or holds a trained model.
        SettingsError: there is no published configuration ``model``.
        DataError: the class names cannot be read.
    """
    output = output or IMPORTED / file.stem
    if output.exists() and not output.is_dir():
        raise WeightsError(f"{output}: is a file, not a folder; name a folder with -o")
    if (output / TRAINING_RUN).exists():
        raise WeightsError(
            f"{output}: holds a model that was trained here ({TRAINING_RUN}) and would be overwritten; "
            "name another folder with -o"
        )
    names = None if classes is None else read_class_names(classes)
    imported = import_checkpoint(file, model=model, image_size=image_size, classes=names)
    save_model(imported.network, imported.classes, output)
    _print_summary(imported, output, console or Console(highlight=False))


def _print_summary(imported: ImportedModel, output: Path, console: Console) -> None:
    console.print(facts_table(_facts(imported) | {"written to": str(output)}))
    console.print(_next_steps(imported, output), soft_wrap=True, markup=False)


def _next_steps(imported: ImportedModel, output: Path) -> str:
    start = f"-S {shlex.quote(f'model.initial_weights={output}')}"
    lines = [
        "",
        "To detect objects in Python:",
        "  from yolact.inference.predictor import Predictor",
        f'  detections = Predictor.load({str(output)!r}).predict("image.jpg")',
        "To fine-tune it on your own classes:",
    ]
    if imported.published:
        lines.append(f"  yolact preset use voc2012-r50 --model {imported.published} {start}")
    else:
        lines.append(f"  yolact preset use voc2012-r50 {start}")
        lines.append(f"  Then copy the other model settings from {output}/model.json to section model of params.yaml.")
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
