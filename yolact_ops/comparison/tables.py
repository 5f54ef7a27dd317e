"""The comparison as rows, for the terminal, the page and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from yolact.evaluation.bootstrap import Interval
from yolact.evaluation.evaluator import IOU_TYPES
from yolact_ops.comparison.comparison import Compared
from yolact_ops.reports.formatting import percentage_points


@dataclass(frozen=True)
class MetricRow:
    """One metric of both sides."""

    name: str
    a: float | None
    b: float | None
    gain: Interval | None
    """None if there is no interval."""

    @property
    def difference(self) -> float | None:
        """``b - a``."""
        return None if self.a is None or self.b is None else self.b - self.a

    def interval(self) -> str:
        """The interval as text, in percentage points; empty if there is none."""
        if self.gain is None:
            return ""
        if self.a == self.b == 0:
            return "neither finds any"  # in every bootstrap sample, so the interval means nothing
        return f"{percentage_points(self.gain.low)} to {percentage_points(self.gain.high)}"


@dataclass(frozen=True)
class ClassRow(MetricRow):
    """Mask AP of one class."""

    objects: int
    """Number of objects in A's ground truth, which is B's if the sides are paired."""


def metric_rows(compared: Compared) -> list[MetricRow]:
    """AP and AR of masks, then of boxes; AP, AP50 and AP75 have intervals if the sides are paired."""
    rows = []
    for kind in reversed(IOU_TYPES):
        of_a, of_b = (summaries[kind].metrics() for summaries in compared.summaries)
        gains = compared.paired.comparisons[kind].metrics if compared.paired and _all_common(compared) else {}
        for name in of_a:
            gain = gains[name].gain if name in gains else None
            rows.append(MetricRow(f"{kind} {name.replace('_', ' ')}", of_a[name], of_b[name], gain))
    return rows


def common_rows(compared: Compared) -> list[MetricRow]:
    """AP, AP50 and AP75 over the common classes, if the sides have different classes."""
    if compared.paired is None or _all_common(compared):
        return []
    return [
        MetricRow(f"{kind} {name}, {len(compared.classes)} common classes", gain.a, gain.b, gain.gain)
        for kind in reversed(IOU_TYPES)
        for name, gain in compared.paired.comparisons[kind].metrics.items()
    ]


def class_rows(compared: Compared) -> list[ClassRow]:
    """Mask AP of the common classes that have objects, the largest difference first."""
    of_a, of_b = (summaries["mask"].per_class for summaries in compared.summaries)
    gains = compared.paired.comparisons["mask"].per_class if compared.paired else {}
    rows = [
        ClassRow(
            name=name,
            a=of_a[name].AP,
            b=of_b[name].AP,
            gain=gains[name].gain if name in gains else None,
            objects=of_a[name].num_instances,
        )
        for name in compared.classes
        if of_a[name].AP is not None or of_b[name].AP is not None
    ]
    return sorted(rows, key=lambda row: -1.0 if row.difference is None else abs(row.difference), reverse=True)


def empty_classes(compared: Compared) -> list[str]:
    """The common classes without objects in either side's evaluated images."""
    shown = {row.name for row in class_rows(compared)}
    return [name for name in compared.classes if name not in shown]


def as_json(compared: Compared, top: int) -> dict[str, Any]:
    """The whole comparison as fractions, with the ``top`` images on which the sides disagree most, without pixels."""
    paired = compared.paired
    comparison = paired.comparisons["mask"] if paired else None
    return {
        "a": _side_json(compared, 0),
        "b": _side_json(compared, 1),
        "warnings": compared.warnings,
        "paired": paired is not None,
        "bootstrap": comparison
        and {"images": comparison.images, "samples": comparison.samples, "confidence": comparison.confidence},
        "params": {change.key: {"a": change.a, "b": change.b} for change in compared.params},
        "metrics": {row.name: _row_json(row) for row in [*metric_rows(compared), *common_rows(compared)]},
        "per_class": {row.name: _row_json(row) | {"objects": row.objects} for row in class_rows(compared)},
        "classes_only_in_a": compared.only_a,
        "classes_only_in_b": compared.only_b,
        "images": [
            {
                "file_name": image.file_name,
                "objects": image.objects,
                "found": {"a": image.a.num_found, "b": image.b.num_found},
                "false": {"a": image.a.false, "b": image.b.false},
                "disagreement": image.disagreement,
                "advantage_of_b": image.advantage,
            }
            for image in (paired.images[:top] if paired else [])
        ],
    }


def _all_common(compared: Compared) -> bool:
    return not compared.only_a and not compared.only_b


def _side_json(compared: Compared, which: int) -> dict[str, Any]:
    side = (compared.a, compared.b)[which]
    return {
        "name": side.name,
        **side.facts,
        "images": len(side.ground_truth["images"]),
        "milliseconds": side.milliseconds,
        "device": side.device,
    }


def _row_json(row: MetricRow) -> dict[str, Any]:
    gain = row.gain and {"low": row.gain.low, "high": row.gain.high}
    return {"a": row.a, "b": row.b, "difference": row.difference, "interval": gain}
