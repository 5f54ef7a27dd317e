"""Which parts of the modern recipe earn AP?

    python -m yolact_bench.studies.recipe [--source DIR] [--preset lite0-320] [--epochs 5] [--only own,-dice,+mosaic]
        [--seeds 0,1,2] [--category person] [-S KEY=VALUE ...] [--work FOLDER]

Trains the network of a preset with the preset ``modern``, then without each of its parts (``-dice``), with each of the
`CANDIDATES` that it does not have (``+mosaic``), with the preset's own recipe (``own``), with that from random weights
(``scratch``), and with the published recipe (``published``); all with the same epochs and data (the generated sample,
or ``--source``, anything that ``data.source`` takes). It validates once, at the end. A table has, for each,
AP50 and AP of masks, their differences from ``modern``, AP50 of boxes, and the seconds of an epoch; the folder keeps
the same as ``recipe.json``. A training that is in the folder already is not repeated, and is in the table, with those
of the seeds that it has.

Several seeds are averaged, and differences are over the seeds that both trainings have. They have two 95 % intervals:

- over the images: a paired bootstrap over the validation images, which takes the trainings as they are;
- over images and seeds, with two seeds or more: Student's, as `interval_over_seeds` describes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

from yolact.data.coco import CocoInstances
from yolact.data.processed import annotations_of
from yolact.engine.automatic import resolve
from yolact.engine.checkpoint import CheckpointStore
from yolact.engine.trainer import SilentListener, Trainer
from yolact.errors import SettingsError
from yolact.evaluation.bootstrap import METRICS, image_weights, match_detections, mean_over_classes, weighted_ap
from yolact.evaluation.evaluator import IouType, Validation, index_ground_truth
from yolact.files import write_json_atomic
from yolact.models.starting_weights import load_starting_weights
from yolact.models.yolact import Yolact
from yolact_bench.studies.command import run_study
from yolact_bench.studies.data import prepare_data
from yolact_ops.settings.params import Params, load_params
from yolact_ops.settings.presets import CONF, JOIN, base_path, change, choose

MODERN, OWN, SCRATCH, PUBLISHED = "modern", "own", "scratch", "published"
"""Trainings with the modern recipe, with the preset's own one (a small preset's has AdamW, its schedule and its layer
decay), with the own one from random weights, and with the published one, ``train`` of ``conf/base.yaml``."""

IOU_WEIGHT = "train.loss.weights.box=2.0"

PARTS: dict[str, tuple[str, ...]] = {
    "copy_paste": ("train.augment.copy_paste=0.3",),
    "scale_jitter": (
        "train.augment.scale_jitter=[0.4, 1.6]",
        "train.augment.expand=false",
        "train.augment.random_crop=false",
    ),
    "atss": ("train.loss.assignment=atss",),
    "iou_scores": ("train.loss.class_targets=iou",),
    "dice": ("train.loss.mask_dice=1",),
    "layer_decay": ("train.layer_decay=0.15",),
    "ema": ("train.ema_decay=0.998",),
    "clipping": ("train.max_grad_norm=10",),
    "cosine": ("train.schedule=cosine",),
    "adamw": ("train.optimizer=adamw",),
    "anchors": ("train.fit_anchors=true",),
}
"""The settings of each part of the preset ``modern``."""

GOES_WITH = {"train.optimizer": "train.lr"}
"""A setting whose value depends on another: without AdamW the learning rate is that of SGD, too."""

CANDIDATES: dict[str, tuple[str, ...]] = {
    "mosaic": ("train.augment.mosaic=0.5",),
    "giou": ("train.loss.box=giou", IOU_WEIGHT),
    "ciou": ("train.loss.box=ciou", IOU_WEIGHT),
    "double_masks": ("train.loss.mask_upsampling=2",),
    "no_norm_decay": ("train.decay_norms=false",),
}
"""Parts that the preset ``modern`` does not have."""

RANDOM = ("model.backbone_weights=none", "train.freeze=none", "train.layer_decay=1")
"""Settings of a training from random weights."""


def main(
    source: Annotated[str | None, typer.Option(help="Data, as data.source; default: the preset's.")] = None,
    preset: Annotated[str, typer.Option(help="Preset of the network.")] = "lite0-320",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = 5,
    seeds: Annotated[str, typer.Option(help="Seeds of the trainings, separated by commas.")] = "0",
    only: Annotated[str, typer.Option(help="Names of trainings, separated by commas; default: all.")] = "",
    category: Annotated[str | None, typer.Option(help="Class whose AP counts; default: the mean over all.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("-S", metavar="KEY=VALUE", help="Other settings.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for data and results.")] = Path("recipe"),
) -> None:
    """Train with and without each part, and compare."""
    names = chosen(only)
    shared = [
        *(overrides or ()),
        *([f"data.source={json.dumps(source)}"] if source else []),
        *(f"train.{key}={epochs}" for key in ("epochs", "validate_every")),
    ]
    prepare_data(choose(preset, overrides=shared), work)
    truth = json.loads(annotations_of(work / "processed", "val").read_text(encoding="utf-8"))
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for name in names_of_all():
        params = settings(name, preset, shared)
        for seed in map(int, seeds.split(",")):
            seeded = params.model_copy(update={"train": params.train.model_copy(update={"seed": seed})})
            run = _stored(f"{name}-{seed}", seeded, work)
            if run is None and name in names:
                run = _trained(f"{name}-{seed}", seeded, work)
            if run is not None:
                results.setdefault(name, {})[seed] = run
                rows = summarise(results, truth, category)
                write_json_atomic(work / "recipe.json", {"settings": shared, "preset": preset, "rows": rows})
    show(rows, category)


def names_of_all() -> list[str]:
    """The names of all trainings, in order."""
    return [MODERN, *(f"-{name}" for name in PARTS), *(f"+{name}" for name in CANDIDATES), OWN, SCRATCH, PUBLISHED]


def chosen(only: str) -> list[str]:
    """The names of the trainings, in order; the modern recipe, with which the others are compared, comes first.

    Raises:
        SettingsError: a name is unknown.
    """
    names = [name.strip() for name in only.split(",") if name.strip()] or names_of_all()
    for name in names:
        if name not in names_of_all():
            raise SettingsError(f"--only: no training {name!r}; there are: {', '.join(names_of_all())}")
    return [MODERN, *(name for name in names if name != MODERN)]


def settings(name: str, preset: str, shared: Sequence[str]) -> Params:
    """The settings of one training; a part that ``-PART`` leaves out has the published values."""
    if name in (OWN, SCRATCH):
        return choose(preset, overrides=[*shared, *(RANDOM if name == SCRATCH else ())])
    base = load_params(base_path(CONF))
    if name == PUBLISHED:
        return change(choose(preset).model_copy(update={"train": base.train}), shared)
    extra = CANDIDATES.get(name[1:], ())
    if name.startswith("-"):
        published = base.model_dump(mode="json", by_alias=True)
        keys = [override.partition("=")[0] for override in PARTS[name[1:]]]
        keys += [GOES_WITH[key] for key in keys if key in GOES_WITH]
        extra = tuple(f"{key}={json.dumps(reduce(getitem, key.split('.'), published))}" for key in keys)
    return choose(f"{preset}{JOIN}{MODERN}", overrides=[*shared, *extra])


def _stored(name: str, params: Params, work: Path) -> dict[str, Any] | None:
    """What `_trained` wrote, if it has run with these settings before."""
    file = work / f"{name}.json"
    if file.is_file():
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if stored["settings"] == params.model_dump(mode="json", by_alias=True):
            return stored
    return None


def _trained(name: str, params: Params, work: Path) -> dict[str, Any]:
    """Losses, time and detections of one training, which are written to ``NAME.json`` as well."""
    settings = params.model_dump(mode="json", by_alias=True)
    processed = work / "processed"
    train, val = (CocoInstances.load(annotations_of(processed, split)) for split in ("train", "val"))
    validate = Validation(val, annotations_of(processed, "val"), params.evaluate.batch_size)
    params = resolve(params, train)
    torch.manual_seed(params.train.seed)
    model = Yolact(params.model, len(train.class_names))
    load_starting_weights(model, train.class_names)
    torch.manual_seed(params.train.seed)
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
    write_json_atomic(work / f"{name}.json", stored)
    return stored


def summarise(
    results: dict[str, dict[int, dict[str, Any]]], ground_truth: dict[str, Any], category: str | None
) -> list[dict[str, Any]]:
    """A row for each training, averaged over its seeds.

    Args:
        results: what `_trained` returns, by the name of the training and the seed.
        ground_truth: parsed JSON of a COCO instances file.
        category: name of the class whose AP counts; None: the mean over the classes.

    Returns:
        Rows with ``name``, ``seeds`` (AP50 of masks of each), ``mask_AP50``, ``mask_AP`` and ``box_AP50``, 0 to 1;
        ``gains`` of ``mask_AP50`` and ``mask_AP`` over the first row, means over the seeds of both, each with the
        bounds of the bootstrap's interval over the images (none in the first row, or without a seed of both);
        ``over_seeds``, the bounds of `interval_over_seeds` (none with one seed); the mean ``losses`` of the first and
        last step, and ``seconds_per_epoch``.

    Raises:
        SettingsError: there is no such class.
    """
    truth = index_ground_truth(ground_truth, "ground truth")
    names = [item["name"] for item in truth.loadCats(truth.getCatIds())]
    if category is not None and category not in names:
        raise SettingsError(f"--category: no class {category!r}; there are: {', '.join(names)}")
    weights = image_weights(len(truth.imgs), samples=1000, seed=0)

    def average_precision(run: dict[str, Any], iou_type: IouType) -> dict[str, np.ndarray]:
        """By metric: the value, then those of the draws."""
        by_class = weighted_ap(match_detections(truth, run["detections"], iou_type), weights)
        return {
            f"{iou_type}_{metric}": mean_over_classes(ap) if category is None else ap[:, names.index(category)]
            for metric, ap in zip(METRICS, by_class, strict=True)
        }

    rows: list[dict[str, Any]] = []
    first: dict[int, dict[str, np.ndarray]] = {}
    for name, runs in results.items():
        ap = {seed: average_precision(run, "mask") | average_precision(run, "box") for seed, run in runs.items()}
        both = [seed for seed in ap if seed in first]
        gains: dict[str, list[float]] = {}
        over_seeds: dict[str, list[float]] = {}
        for key in ("mask_AP50", "mask_AP") if both else ():
            differences = np.stack([ap[seed][key] - first[seed][key] for seed in both])
            mean = differences.mean(axis=0)
            gains[key] = [mean[0].item(), *np.nanpercentile(mean, [2.5, 97.5]).tolist()]
            if len(both) > 1:
                over_seeds[key] = list(interval_over_seeds(differences))
        first = first or ap
        rows.append(
            {
                "name": name,
                "seeds": [one["mask_AP50"][0].item() for one in ap.values()],
                **{
                    key: float(np.mean([one[key][0] for one in ap.values()]))
                    for key in ("mask_AP50", "mask_AP", "box_AP50")
                },
                "gains": gains,
                "over_seeds": over_seeds,
                "losses": np.mean([run["losses"] for run in runs.values()], axis=0).tolist(),
                "seconds_per_epoch": float(np.mean([run["seconds_per_epoch"] for run in runs.values()])),
            }
        )
    return rows


def interval_over_seeds(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean difference, for other seeds and other validation images.

    The interval is Student's, of the differences paired by seed, to whose variance that of the images is added, which
    all seeds share. For few readers (here seeds) and many cases (images) that is the analysis of Obuchowski and
    Rockette (1995, Communications in Statistics - Simulation and Computation 24:285-308) with the degrees of freedom of
    Hillis (2007, Statistics in Medicine 26:596-619)::

        variance = s^2 / J + c        degrees of freedom = variance^2 / ((s^2 / J)^2 / (J - 1))

    for J seeds, the variance s^2 of their differences, and the covariance c between two seeds' differences over the
    bootstrap's draws of images. Without c it is the paired t-interval. s^2 is at least what the images alone make it,
    the variance of a seed's difference over the draws less c: so few seeds that agree by chance do not give less than
    the images' own variance.

    Seeds are not drawn with replacement, because for n of them the bootstrap's standard error is sqrt((n - 1) / n) of
    what it should be, and its quantiles are those of the normal distribution (Hesterberg 2015, The American
    Statistician 69:371-386): for three seeds 2.0 instead of 4.3.

    Args:
        differences: (J, 1 + draws), J at least 2: for each seed the difference, then those of the same draws of images.
    """
    seeds = len(differences)
    values, draws = differences[:, 0], differences[:, 1:]
    covariances = np.cov(draws[:, ~np.isnan(draws).any(axis=0)])
    shared = max(0.0, float(covariances[~np.eye(seeds, dtype=bool)].mean()))
    own = max(float(values.var(ddof=1)), float(covariances.diagonal().mean()) - shared) / seeds
    variance = own + shared
    freedom = (seeds - 1) * (variance / own) ** 2 if own else math.inf
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return float(values.mean()) - half, float(values.mean()) + half


def show(rows: list[dict[str, Any]], category: str | None) -> None:
    """Print the rows of `summarise`."""
    difference = ("difference (95 %, images)", "and seeds")
    columns = ("recipe", "mask AP50", *difference, "each seed", "mask AP", *difference, "box AP50", "loss", "s/epoch")
    table = Table(*columns, title=f"Percent on the validation images, {category or 'mean over the classes'}")
    for row in rows:
        mask50, mask, box = (f"{100 * row[key]:.1f}" for key in ("mask_AP50", "mask_AP", "box_AP50"))
        gains50, gains = (
            (_percent(row["gains"], key), _percent(row["over_seeds"], key)) for key in ("mask_AP50", "mask_AP")
        )
        each = " ".join(f"{100 * value:.1f}" for value in row["seeds"])
        losses = f"{row['losses'][0]:.1f} -> {row['losses'][1]:.1f}"
        seconds = f"{row['seconds_per_epoch']:.0f}"
        table.add_row(row["name"], mask50, *gains50, each, mask, *gains, box, losses, seconds)
    Console().print(table)


def _percent(values: dict[str, list[float]], key: str) -> str:
    """A difference with the bounds of its interval, or the bounds alone; empty without them."""
    if key not in values:
        return ""
    *value, low, high = (f"{100 * value:+.1f}" for value in values[key])
    return " ".join([*value, f"({low} to {high})"])


if __name__ == "__main__":
    run_study(main)
