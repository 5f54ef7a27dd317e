"""The model card: what a version is, its metrics, its data, and its uses and limits; in Markdown.

Follows Mitchell et al. 2019, *Model Cards for Model Reporting* (FAT*), as far as a pipeline knows the answers.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolact.settings import IMAGENET_VERSIONS
from yolact_ops.lineage.lineage import data_source
from yolact_ops.reports.formatting import percent
from yolact_ops.settings.params import Params

CARD_FILE = "model_card.md"
"""The card's name among the model's files."""

DESCRIPTION_LENGTH = 5000
"""Most characters of a version's description (MLflow's table model_versions)."""

OVERALL = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
"""Metrics over all classes: the columns of a table."""


@dataclass(frozen=True)
class CardFacts:
    """What the card is written from."""

    name: str
    """The registered model's name."""
    params: Params
    metrics: Mapping[str, Any]
    """Content of ``metrics/eval.json``."""
    stats: Mapping[str, Any]
    """Content of ``stats.json``."""
    tags: Mapping[str, str]
    """The version's lineage."""


def model_card(facts: CardFacts) -> str:
    """The whole card."""
    return _card(facts, len(facts.metrics["mask"]["per_class"]))


def description(facts: CardFacts) -> str:
    """The card cut to `DESCRIPTION_LENGTH`: its table has as many classes as fit."""
    whole = model_card(facts)
    if len(whole) <= DESCRIPTION_LENGTH:
        return whole
    counts = range(len(facts.metrics["mask"]["per_class"]))
    rows = bisect.bisect_right(counts, DESCRIPTION_LENGTH, key=lambda count: len(_card(facts, count))) - 1
    return _card(facts, max(rows, 0))[:DESCRIPTION_LENGTH]


def _card(facts: CardFacts, class_rows: int) -> str:
    parts = [
        _head(facts),
        "## Metrics\n\n" + _metrics(facts),
        _classes(facts, class_rows),
        "## Data\n\n" + _data(facts),
        "## Training\n\n" + _training(facts),
        "## Use and limits\n\n" + _use(),
        "## How to load it\n\n" + _loading(facts),
        "## Licence\n\n" + _licence(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _head(facts: CardFacts) -> str:
    model = facts.params.model
    return (
        f"# {facts.name}\n\n"
        f"YOLACT (Bolya et al., ICCV 2019), {model.backbone}, {model.image_size} px: detects objects in images, with a "
        "box, a class, a score and a mask each."
    )


def _metrics(facts: CardFacts) -> str:
    header = "| | " + " | ".join(name.replace("_", " ") for name in OVERALL) + " |"
    ruler = "| --- |" + " ---: |" * len(OVERALL)
    rows = [
        f"| {kind} | " + " | ".join(percent(facts.metrics[kind].get(name)) for name in OVERALL) + " |"
        for kind in ("mask", "box")
    ]
    images, split = facts.metrics["images"], facts.metrics["split"]
    selected = "the same images" if split == "val" else "other images, the val split"
    note = f"COCO metrics in percent, on the {images} images of the {split} split; the best weights were selected on "
    return "\n".join([f"{note}{selected}.", "", header, ruler, *rows])


def _classes(facts: CardFacts, count: int) -> str:
    mask, box = (facts.metrics[kind]["per_class"] for kind in ("mask", "box"))
    names = list(mask)
    lines = [
        f"| class | objects in {facts.metrics['split']} | mask AP | mask AP50 | box AP | box AP50 |",
        "| --- |" + " ---: |" * 5,
        *(_class_row(name, mask[name], box[name]) for name in names[:count]),
    ]
    table = "\n".join(lines) if count else f"{len(names)} classes."
    hidden = len(names) - count
    return table + (f"\n\nand {hidden} more classes, see `{CARD_FILE}` among the model's files." if hidden else "")


def _class_row(name: str, mask: Mapping[str, Any], box: Mapping[str, Any]) -> str:
    metrics = [percent(found.get(key)) for found in (mask, box) for key in ("AP", "AP50")]
    return f"| {name} | {mask['instances']} | " + " | ".join(metrics) + " |"


def _data(facts: CardFacts) -> str:
    splits, across = facts.stats["splits"], facts.stats["duplicates"]["across_splits"]["count"]
    lines = [
        f"- Source: `{data_source(facts.params)}`; digest of the prepared data: `{facts.tags['data_digest']}`.",
        *(f"- {split}: {found['images']} images, {found['instances']} objects." for split, found in splits.items()),
    ]
    lines.append("- Classes, sizes and what was dropped: `data_card.md` beside this card.")
    if across:
        lines.append(f"- {across} pairs of images in different splits are near-duplicates: AP is too high there.")
    return "\n".join(lines)


def _training(facts: CardFacts) -> str:
    train, commit = facts.params.train, facts.tags.get("git_commit")
    dirty = " with uncommitted changes" if facts.tags.get("git_dirty") == "true" else ""
    code = f"commit `{commit[:12]}`{dirty}" if commit else "commit unknown"
    run = facts.tags.get("train_run_id") or facts.tags.get("run_id", "unknown")
    epochs = "as many epochs as its number of images asks for" if train.epochs == "auto" else f"{train.epochs} epochs"
    return (
        f"{epochs}, batches of {train.batch_size}, {train.optimizer}, learning rate {train.lr:g} "
        f"({train.schedule}), {train.precision}, seed {train.seed}; started from {_start(facts)}. Code: {code}; MLflow "
        f"run `{run}` has all settings and curves. `yolact lineage models:/{facts.name}/VERSION` prints how to rebuild "
        "it."
    )


def _start(facts: CardFacts) -> str:
    model = facts.params.model
    if model.initial_weights != "none":
        return f"the weights in `{model.initial_weights}`"
    if model.backbone_weights in IMAGENET_VERSIONS:
        return f"a backbone trained on ImageNet (`{model.backbone_weights}`)"
    return "random weights" if model.backbone_weights == "none" else f"the backbone in `{model.backbone_weights}`"


def _use() -> str:
    return (
        "For images like those it was trained on. Not measured: other classes, other kinds of images (night, "
        "fisheye, drawings, medical), fairness between groups of people. Not for decisions about people, and not where "
        "a missed or invented object does harm. Scores are not probabilities. As with all networks of this kind, "
        "small, thin and touching objects are detected least well."
    )


def _loading(facts: CardFacts) -> str:
    return (
        "```python\n"
        "import mlflow\n"
        f'model = mlflow.pyfunc.load_model("models:/{facts.name}@champion")  # model_config={{"device": "cpu"}}\n'
        '[found] = model.predict([{"image": image}], params={"score_threshold": 0.3})\n'
        "```\n\n"
        "`image`: a JPEG or PNG as base64 text or bytes, or an (H, W, 3) uint8 RGB array. `found`: `boxes` (xyxy, "
        "pixels), `scores`, `labels`, `masks` (COCO RLE), best score first. Over HTTP: `mlflow models serve`. "
        "`requirements.txt` lists what it needs; it needs no checkout of the project."
    )


def data_licence(source: str) -> str:
    """The terms of a source of data, as far as its name says them; ``source`` is ``data.source``."""
    return {
        "sample": "Data: generated by this project's code, free of others' rights.",
        "voc2012": "Data: PASCAL VOC 2012, whose images are from Flickr and under its terms of use.",
        "sbd": "Data: Semantic Boundaries on PASCAL VOC images, which are from Flickr and under its terms of use.",
    }.get(source, "Data: its licence is not known to the pipeline; ask its owner before you distribute the model.")


def _licence(facts: CardFacts) -> str:
    model = facts.params.model
    notes = ["Code: MIT.", data_licence(facts.params.data.source)]
    if model.initial_weights != "none":
        notes.append("The terms of the weights that training started from apply too.")
    elif model.backbone_weights in IMAGENET_VERSIONS:
        notes.append("The backbone learned from ImageNet, whose images are for non-commercial research and education.")
    return " ".join(notes)
