"""The content of a version, read and checked before the registry is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.register.model_card import CardFacts
from yolact.errors import DataError
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.models.weights import load_model
from yolact_ops.commands.outputs import read_json
from yolact_ops.lineage.hashing import hash_files, hash_params
from yolact_ops.lineage.lineage import data_source, gather_lineage
from yolact_ops.reports.formatting import flatten_text
from yolact_ops.settings.params import Params, load_params
from yolact_ops.tracking.evaluations import evaluated_annotations
from yolact_ops.transfer.instances import load_instances

BASE = Path("conf/base.yaml")
"""Settings that a version's are compared with."""


@dataclass(frozen=True)
class Metrics:
    """The evaluation metrics of a version, 0 to 1; None if the evaluated split has no objects."""

    box_ap: float | None
    box_ap50: float | None
    mask_ap: float | None
    mask_ap50: float | None

    @classmethod
    def of(cls, tree: Any, path: Path) -> Metrics:
        """From the content of ``metrics/eval.json``, which was read from ``path``.

        Raises:
            DataError: a metric is missing or not a number from 0 to 1.
        """
        keys = [(kind, name) for kind in ("box", "mask") for name in ("AP", "AP50")]
        return cls(**{f"{kind}_{name}".lower(): _read_metric(path, tree, kind, name) for kind, name in keys})

    def measured(self) -> dict[str, float]:
        """Value by name (``mask_AP50``), without those that are None."""
        return {name.replace("_ap", "_AP"): value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Candidate:
    """Everything that goes into a version, read and checked before the registry is written."""

    model_dir: Path
    example: bytes
    """An image file of the val split."""
    metrics: Metrics
    card: CardFacts

    @property
    def params(self) -> Params:
        return self.card.params

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def tags(self) -> dict[str, str]:
        """Lineage and `IDENTITY`."""
        return dict(self.card.tags)

    @property
    def reaches_floor(self) -> bool:
        value = self.metrics.mask_ap50
        return value is not None and value >= self.params.register_.min_mask_ap50


def gather_candidate(params: Params, model_dir: Path, eval_data_dir: Path, metrics_path: Path) -> Candidate:
    """Read and check what train, preprocess and evaluate wrote.

    Args:
        params: all settings.
        model_dir: what train wrote.
        eval_data_dir: what preprocess wrote for evaluation.
        metrics_path: what evaluate wrote.

    Raises:
        DataError: an input is missing or damaged.
        WeightsError: the model is missing or damaged.
    """
    load_model(model_dir)
    evaluation = read_json(metrics_path, "evaluate")
    metrics = Metrics.of(evaluation, metrics_path)
    evaluated = evaluated_annotations(eval_data_dir).stem
    if evaluation.get("split") != evaluated:
        raise DataError(
            f"{metrics_path}: measured on the split {evaluation.get('split')!r}, but {eval_data_dir} has "
            f"{evaluated!r} to evaluate on. Run the evaluate step again."
        )
    val = load_instances(eval_data_dir / "val.json", params.runtime)
    if not val.images:
        raise DataError(f"{eval_data_dir / 'val.json'}: has no images; one is needed as the model's input example")
    tags = gather_lineage(params, eval_data_dir=eval_data_dir).as_tags()
    tags["data_source"] = data_source(params)
    tags["detect_hash"] = hash_params(params.evaluate.detect)
    tags["model_digest"] = hash_files(model_dir / WEIGHTS_FILE, model_dir / DESCRIPTION_FILE)
    if BASE.is_file():
        tags["params_changes"] = json.dumps(changed_settings(params, load_params(BASE)))
    stats = read_json(eval_data_dir / "stats.json", "preprocess")
    card = CardFacts(params.register_.model_name, params, evaluation, stats, tags)
    return Candidate(model_dir, val.store.read(val.images[0]), metrics, card)


def changed_settings(params: Params, base: Params) -> dict[str, str]:
    """Settings that differ from the base, as ``train.lr`` with their values as in YAML; without ``runtime``."""
    ours, theirs = (flatten_text(side.model_dump(mode="json", by_alias=True)) for side in (params, base))
    changed = {key: value for key, value in ours.items() if theirs.get(key) != value and not key.startswith("runtime.")}
    if "data.source" in changed:
        changed["data.source"] = data_source(params)
    return changed


def _read_metric(path: Path, tree: Any, kind: str, name: str) -> float | None:
    try:
        value = tree[kind][name]
    except (KeyError, TypeError):
        raise DataError(f"{path}: key {kind}.{name} is missing. Run the evaluate step again.") from None
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise DataError(f"{path}: {kind}.{name} must be null or a number from 0 to 1; found {value!r}")
    return float(value)
