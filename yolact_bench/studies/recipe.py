"""Which parts of the modern recipe earn AP?

    python -m yolact_bench.studies.recipe [--source DIR] [--preset sample-cpu] [--epochs 5] [--only giou,dice]
        [-S KEY=VALUE ...] [--work FOLDER]

Trains the network of a preset with its own recipe, then with each of `INGREDIENTS` alone, then with the preset
``modern`` as a whole; all with the same seed, epochs and data (the generated sample, or ``--source``, anything that
``data.source`` takes). It validates once, at the end. A table has, for each, mask AP, its gain over the first with the
95 % interval of a paired bootstrap over the validation images, and the seconds of an epoch; the folder keeps the same
as ``recipe.json``. A training that is in the folder already is not repeated.

One seed screens: what training varies by from seed to seed is not in the interval.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from components.ingest import step as ingest
from components.preprocess import step as preprocess
from yolact.data.coco import CocoInstances
from yolact.engine.automatic import resolve
from yolact.engine.checkpoint import CheckpointStore
from yolact.engine.trainer import SilentListener, Trainer
from yolact.errors import SettingsError
from yolact.evaluation.bootstrap import compare_detections
from yolact.evaluation.evaluator import Validation
from yolact.files import write_json_atomic
from yolact.models.starting_weights import load_starting_weights
from yolact.models.yolact import Yolact
from yolact_ops.settings.params import Params
from yolact_ops.settings.presets import JOIN, choose

OWN, WHOLE = "own", "modern"
"""Names of the first training, with the preset's own recipe, and of the last, with the whole modern one."""

IOU_WEIGHT = "train.loss.weights.box=2.0"

INGREDIENTS: dict[str, tuple[str, ...]] = {
    "copy_paste": ("train.augment.copy_paste=0.3",),
    "scale_jitter": (
        "train.augment.scale_jitter=[0.4, 1.6]",
        "train.augment.expand=false",
        "train.augment.random_crop=false",
    ),
    "mosaic": ("train.augment.mosaic=0.5",),
    "atss": ("train.loss.assignment=atss",),
    "iou_scores": ("train.loss.class_targets=iou",),
    "giou": ("train.loss.box=giou", IOU_WEIGHT),
    "ciou": ("train.loss.box=ciou", IOU_WEIGHT),
    "dice": ("train.loss.mask_dice=1",),
    "double_masks": ("train.loss.mask_upsampling=2",),
    "layer_decay": ("train.layer_decay=0.15",),
    "no_norm_decay": ("train.decay_norms=false",),
    "ema": ("train.ema_decay=0.998",),
}
"""Settings of each part of the recipe, and of candidates for it."""

CANDIDATES = ("mosaic", "ciou", "double_masks", "no_norm_decay")
"""Ingredients that are not in the preset ``modern``: what they gain has not been measured."""


def main(
    source: Annotated[str | None, typer.Option(help="Data, as data.source; default: the preset's.")] = None,
    preset: Annotated[str, typer.Option(help="Preset of the network.")] = "sample-cpu",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all trainings.")] = 0,
    only: Annotated[str, typer.Option(help="Names of ingredients, separated by commas; default: all.")] = "",
    overrides: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Other settings.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for data and results.")] = Path("recipe"),
) -> None:
    """Train with each ingredient and compare."""
    names = chosen(only)
    shared = [
        *(overrides or ()),
        *([f"data.source={json.dumps(source)}"] if source else []),
        *(f"train.{key}={value}" for key, value in (("epochs", epochs), ("validate_every", epochs), ("seed", seed))),
    ]
    prepare_data(choose(preset, overrides=shared), work)
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        whole = name == WHOLE
        extra = INGREDIENTS.get(name, ())
        params = choose(f"{preset}{JOIN}{WHOLE}" if whole else preset, overrides=[*shared, *extra])
        results[name] = _trained(name, params, work)
        rows = summarise(results, json.loads((work / "processed" / "val.json").read_text(encoding="utf-8")))
        write_json_atomic(work / "recipe.json", {"settings": shared, "preset": preset, "rows": rows})
    show(rows)


def chosen(only: str) -> list[str]:
    """The names of the trainings, in order.

    Raises:
        SettingsError: a name is unknown.
    """
    names = [name.strip() for name in only.split(",") if name.strip()] or [*INGREDIENTS, WHOLE]
    for name in names:
        if name not in (OWN, WHOLE, *INGREDIENTS):
            raise SettingsError(f"--only: no ingredient {name!r}; there are: {', '.join([*INGREDIENTS, WHOLE])}")
    return [OWN, *(name for name in names if name != OWN)]


def prepare_data(params: Params, folder: Path) -> None:
    """Bring the data and convert it to COCO instances, unless the folder already has it."""
    if not (folder / "processed").is_dir():
        ingest.run(params, raw_dir=folder / "raw", downloads_dir=folder / "downloads")
        preprocess.run(params, raw_dir=folder / "raw", processed_dir=folder / "processed", report_dir=folder / "report")


def _trained(name: str, params: Params, work: Path) -> dict[str, Any]:
    """Losses, time and detections of one training, from its file if it has run with these settings before."""
    file, settings = work / f"{name}.json", params.model_dump(mode="json", by_alias=True)
    if file.is_file():
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if stored["settings"] == settings:
            return stored
    processed = work / "processed"
    train, val = (CocoInstances.load(processed / f"{split}.json") for split in ("train", "val"))
    validate = Validation(val, processed / "val.json", params.evaluate.batch_size)
    torch.manual_seed(params.train.seed)
    model = Yolact(params.model, len(train.class_names))
    load_starting_weights(model, train.class_names)
    torch.manual_seed(params.train.seed)
    params = params.model_copy(update={"train": resolve(params.train, params.model, len(train.images))})
    # Another fingerprint for each training: none resumes, and a stopped one starts over.
    store = CheckpointStore(work / name / "checkpoints", 1, fingerprint=name)
    trainer = Trainer(model, train, params, work / name, store, validate, SilentListener(), extra={})
    result = trainer.fit()
    steps = result.history["steps"]
    stored = {
        "settings": settings,
        "losses": [steps[0]["total"], steps[-1]["total"]],
        "seconds_per_epoch": result.seconds_per_step * trainer.steps_per_epoch,
        "metrics": {key: value for key, value in result.history["epochs"][-1].items() if "_AP" in key},
        "detections": validate.rows,
    }
    write_json_atomic(file, stored)
    return stored


def summarise(results: dict[str, dict[str, Any]], ground_truth: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each training: metrics, 0 to 1, and the gain of mask AP over the first with its interval."""
    first = results[OWN]["detections"]
    rows = []
    for name, result in results.items():
        row = {key: result[key] for key in ("losses", "seconds_per_epoch", "metrics")} | {"name": name, "gain": None}
        if name != OWN:
            gain = compare_detections(ground_truth, first, result["detections"], iou_type="mask").metrics["AP"].gain
            row["gain"] = vars(gain) if gain else None
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows of `summarise`."""
    columns = ("recipe", "loss, first and last", "mask AP", "gain (95 %)", "mask AP50", "box AP", "s/epoch")
    table = Table(*columns, title="Percent on the validation images, one seed")
    for row in rows:
        gain, metrics = row["gain"], row["metrics"]
        interval = f"{100 * gain['value']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})" if gain else ""
        losses = f"{row['losses'][0]:.1f} -> {row['losses'][1]:.1f}"
        mask, mask50, box = (f"{100 * metrics[key]:.1f}" for key in ("mask_AP", "mask_AP50", "box_AP"))
        table.add_row(row["name"], losses, mask, interval, mask50, box, f"{row['seconds_per_epoch']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
