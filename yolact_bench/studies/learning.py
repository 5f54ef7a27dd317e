"""Does training learn as much as another implementation, step for step?

    python -m yolact_bench.studies.learning --against FILE.py [--seeds 0,1,2] [--epochs 5] [--work FOLDER]

Both train the same small network (a ResNet of four bottlenecks, 128 px) on the generated sample of the preset
sample-cpu, from the same initial weights, for as many steps of as many images, with the same optimizer, learning rates
and kinds of augmentation. The same code evaluates the last weights of both. It prints a row per seed and
writes a JSON file with all metrics to the folder.

``FILE.py`` has a function::

    def train_network(
        weights: Path, model: dict, classes: list[str], annotations: Path, images: Path, train: dict,
        learning_rate: Callable[[int, int], float], seed: int,
    ) -> dict[str, Tensor]: ...

``weights`` is a ``.pth`` file with the initial state_dict under the published names; ``model`` and ``train`` are the
fields of `ModelConfig` and `TrainConfig`; ``annotations`` is a COCO instances file of images in ``images``;
``learning_rate`` takes the step and the number of steps. It returns the trained state_dict. docs/benchmarks.md contains
such a file for the published code.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from yolact.data.coco import CocoInstances
from yolact.data.processed import annotations_of, folder_of
from yolact.engine.checkpoint import CheckpointStore
from yolact.engine.schedule import learning_rate
from yolact.engine.trainer import Metrics, SilentListener, Trainer
from yolact.evaluation.evaluator import Validation
from yolact.models.yolact import Yolact
from yolact_bench.speed.external import load_function
from yolact_bench.studies.command import run_study
from yolact_bench.studies.data import prepare_data
from yolact_ops.settings.params import Params
from yolact_ops.settings.presets import choose

SMALL = (
    "model.backbone=resnet50",
    "model.backbone_blocks=[1,1,1,1]",
    "train.validation_pictures=0",
    "runtime.device=cpu",
)


def settings(epochs: int, seed: int) -> Params:
    """The small network's settings; validated once, at the end, which keeps the last weights."""
    overrides = [*SMALL, f"train.epochs={epochs}", f"train.validate_every={epochs}", f"train.seed={seed}"]
    return choose("sample-cpu", overrides=overrides)


def main(
    against: Annotated[Path, typer.Option(metavar="FILE.py", help="The other implementation.")],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs, each of 150 steps of 8 images.")] = 5,
    work: Annotated[Path, typer.Option(help="Folder for data and results.")] = Path("learning"),
) -> None:
    """Train both implementations with each seed and compare them."""
    other = load_function(against, "train_network")
    prepare_data(settings(1, 0), work)
    processed = work / "processed"
    train, val = (CocoInstances.load(annotations_of(processed, split)) for split in ("train", "val"))
    validate = Validation(val, annotations_of(processed, "val"), 8)
    rows: list[dict[str, Any]] = []
    for seed in map(int, seeds.split(",")):
        params = settings(epochs, seed)
        torch.manual_seed(seed)
        initial = Yolact(params.model, len(train.class_names))
        weights = work / f"initial_{seed}.pth"
        torch.save(initial.state_dict(), weights)
        began = time.perf_counter()
        ours = _train_ours(initial, train, params, work / f"ours_{seed}", validate)
        between = time.perf_counter()
        state = other(
            weights=weights,
            model=params.model.model_dump(mode="json"),
            classes=train.class_names,
            annotations=annotations_of(processed, "train"),
            images=folder_of(processed, "train") / "images",
            train=params.train.model_dump(mode="json"),
            learning_rate=lambda step, steps, config=params.train: learning_rate(step, steps, config),
            seed=seed,
        )
        ended = time.perf_counter()
        trained = Yolact(params.model, len(train.class_names))
        trained.load_state_dict(state)
        rows.append(
            {
                "seed": seed,
                "ours": ours,
                "other": validate(trained.eval()),
                "seconds": {"ours": between - began, "other": ended - between},
            }
        )
        (work / "learning.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
        _show(rows, against.stem)


def _train_ours(model: Yolact, data: CocoInstances, params: Params, folder: Path, validate: Validation) -> Metrics:
    store = CheckpointStore(folder / "checkpoints", 1, fingerprint=folder.name)
    trainer = Trainer(model, data, params, folder, store, validate, SilentListener(), extra={})
    result = trainer.fit()
    return {name: value for name, value in result.history["epochs"][-1].items() if name not in ("epoch", "step")}


def _show(rows: list[dict[str, Any]], name: str) -> None:
    names = ("mask_AP", "mask_AP50", "box_AP", "box_AP50")
    table = Table("seed", "implementation", *names, "seconds", title="Percent on the validation images, last weights")
    for row in rows:
        for key, title in (("ours", "yolact"), ("other", name)):
            metrics = (f"{100 * row[key][metric]:.2f}" for metric in names)
            table.add_row(str(row["seed"]), title, *metrics, f"{row['seconds'][key]:.0f}")
    Console().print(table)


if __name__ == "__main__":
    run_study(main)
