"""What preprocess changed, dropped or doubts in a data set: equal findings are one line with their number."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from components.preprocess.outcome import Outcome
from yolact.formats.preparation import CATEGORY, CROWD, FILLS_BOX, HEIGHT, LEFT, TOP, WIDTH, objects_of
from yolact.formats.problems import Problem

Severity = Literal["dropped", "doubtful", "changed"]

Unit = Literal["images", "objects", "classes", "pairs", "times"]

LISTED_FINDINGS = 15
"""Maximum number of findings in a log and in an error message; the rest is counted."""

EXAMPLES = 3
"""Maximum number of examples of one finding."""

SHOWN_CLASSES = 10
"""Maximum number of class names in a line."""

SHOWN_LENGTH = 200
"""Maximum length of an example in a line, characters."""

MASKED_LENGTH = 120
"""Maximum length of a kind made from a reason, characters."""

BOXES_SHARE = 0.9
"""Share of rectangular masks above which outlines look like boxes. Our choice: a few real objects are rectangles."""

RECTANGLE_SIDE = 8
"""Minimum sides of the boxes counted for it, pixels: the mask of a smaller object may fill its box by chance."""

UNREACHED = 0.15
"""Share of the sides, right and below, that no outline reaches if images were enlarged after annotation. Our choice."""

FEW_OBJECTS = 30
"""Number of objects below which it may be chance that none is there. Our choice."""

EMPTY_SHARE = 0.5
"""Share of images without objects above which a data set looks as if its annotation is not finished. Our choice."""


@dataclass(frozen=True)
class Finding:
    """All findings of one kind."""

    severity: Severity
    kind: str
    unit: Unit
    """What is counted."""
    count: int
    images: int
    """Number of images with it; 0 if it is not about single images."""
    examples: tuple[str, ...]
    """Up to `EXAMPLES` files with reasons, or the names of all classes."""
    total: int | None = None
    """Number of all images or objects, where their share matters."""

    def __str__(self) -> str:
        amount = self._amount()
        if self.unit == "classes":
            more = ", …" if self.count > SHOWN_CLASSES else ""
            return f"{amount} ({', '.join(self.examples[:SHOWN_CLASSES])}{more}): {self.kind}"
        example = f"; such as {_shortened(self.examples[0], SHOWN_LENGTH)}" if self.examples else ""
        if self.unit == "times" and self.count == 1:  # a warning about the whole data set
            return f"{self.kind}{example}"
        return f"{amount}: {self.kind}{example}"

    def _amount(self) -> str:
        """The count in words."""
        number = f"{self.count} of {self.total}" if self.total is not None else str(self.count)
        amount = f"{number} {_plural(self.unit, self.total or self.count)}"
        in_images = self.images and self.unit in ("objects", "times")
        return f"{amount} in {self.images} {_plural('images', self.images)}" if in_images else amount

    def as_json(self) -> dict[str, Any]:
        """The entry of ``stats.json``."""
        return asdict(self) | {"examples": list(self.examples)}


def find(outcome: Outcome, duplicates: Mapping[str, Any]) -> list[Finding]:
    """All findings: first what was dropped, then what is doubtful, then what was changed.

    Args:
        outcome: what was found in the data set.
        duplicates: ``stats.json``'s entry of that name.
    """
    rejected = [(image, problem) for image, problems in outcome.rejected.items() for problem in problems]
    warnings = [
        *(("", warning) for warning in outcome.source_warnings),
        *((image.image_id, warning) for image in outcome.every_image for warning in image.warnings),
    ]
    return [
        *_grouped(rejected, "dropped", "images"),
        *dropped_objects(outcome),
        *_of_images("dropped", "no object; left out by data.empty_images", outcome.empty),
        *_other_classes(outcome),
        *_doubts(outcome),
        *_near_duplicates(duplicates),
        *_grouped([(image, warning) for image, warning in warnings if not warning.changed], "doubtful", "times"),
        *_category_ids(outcome),
        *_redrawn(outcome),
        *_grouped([(image, warning) for image, warning in warnings if warning.changed], "changed", "times"),
    ]


def dropped_objects(outcome: Outcome) -> list[Finding]:
    """The objects that cannot be used."""
    return _grouped(outcome.dropped, "dropped", "objects", outcome.objects)


def kind_of(problem: Problem) -> str:
    """A problem's kind; for a problem that has none, its reason with names and numbers replaced."""
    if problem.kind:
        return problem.kind
    masked = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|<[^>]*>", "…", problem.reason)
    masked = re.sub(r"-?\d+(\.\d+)?", "N", masked)
    masked = re.sub(r"[^\s,;:]*[./\\][^\s,;:]+", "…", masked)  # paths
    return _shortened(masked.partition(";")[0].strip(), MASKED_LENGTH)


def _grouped(
    found: Iterable[tuple[str, Problem]], severity: Severity, unit: Unit, total: int | None = None
) -> list[Finding]:
    """One finding per kind, the most frequent first."""
    groups: dict[str, list[tuple[str, Problem]]] = {}
    for image, problem in found:
        groups.setdefault(kind_of(problem), []).append((image, problem))
    findings = []
    for kind, members in groups.items():
        images = len({image for image, _ in members} - {""})
        each = unit == "images" or (unit == "times" and images == len(members))  # one in each image
        count = images if each else len(members)
        examples = tuple(str(problem) for _, problem in members[:EXAMPLES])
        findings.append(Finding(severity, kind, "images" if each else unit, count, images, examples, total))
    return sorted(findings, key=lambda finding: (-finding.count, finding.kind))


def _other_classes(outcome: Outcome) -> list[Finding]:
    names = list(outcome.classes.values())
    showing = [image.other_classes for image in outcome.every_image if image.other_classes]
    found = Counter(names[index - 1] for indices in showing for index in indices)
    if not found:
        return []
    listed = tuple(f"{name} ({count})" for name, count in sorted(found.items()))
    kind = "objects of these classes are left out by data.classes"
    return [Finding("dropped", kind, "classes", len(found), len(showing), listed)]


def _doubts(outcome: Outcome) -> list[Finding]:
    """What makes the data set as a whole doubtful."""
    tables = {split: objects_of(images) for split, images in outcome.images.items()}
    return [
        *_boxes(np.concatenate(list(tables.values()))),
        *_enlarged(outcome),
        *_empty_images(outcome),
        *_crowds_alone(tables),
        *_missing_classes(outcome.categories, tables),
    ]


def _boxes(table: np.ndarray) -> list[Finding]:
    single = table[table[:, CROWD] == 0]
    large = single[(single[:, WIDTH] >= RECTANGLE_SIDE) & (single[:, HEIGHT] >= RECTANGLE_SIDE)]
    rectangles = int(large[:, FILLS_BOX].sum())
    if not rectangles or rectangles <= BOXES_SHARE * len(large):
        return []
    kind = "the outline is an upright rectangle: if these are boxes, the masks are learned as boxes"
    return [Finding("doubtful", kind, "objects", rectangles, 0, (), len(large))]


def _enlarged(outcome: Outcome) -> list[Finding]:
    """Whether outlines seem to be those of smaller images: they begin at the left and upper edge and end too early."""
    images = outcome.every_image
    table = objects_of(images)
    if len(table) < FEW_OBJECTS:
        return []
    sides = np.repeat([(image.width, image.height) for image in images], [len(i.instances) for i in images], axis=0)
    first = (table[:, [LEFT, TOP]] / sides).min(axis=0)
    unreached = 1 - ((table[:, [LEFT, TOP]] + table[:, [WIDTH, HEIGHT]]) / sides).max(axis=0)
    if (unreached < UNREACHED).any() or (unreached < 2 * first).any():  # objects in the middle leave all edges free
        return []
    kind = (
        f"no outline reaches the right {100 * unreached[0]:.0f}% or the lower {100 * unreached[1]:.0f}% of an image: "
        "were images enlarged after they were annotated?"
    )
    return [Finding("doubtful", kind, "objects", len(table), 0, ())]


def _empty_images(outcome: Outcome) -> list[Finding]:
    images = outcome.every_image
    empty = [image.image_id for image in images if not len(image.instances)]
    if len(empty) <= EMPTY_SHARE * len(images):
        return []
    kind = (
        "no object, which is learned as 'nothing here'; if their annotation is not finished, leave them out with "
        "data.empty_images=drop"
    )
    return _of_images("doubtful", kind, empty, len(images))


def _crowds_alone(tables: Mapping[str, np.ndarray]) -> list[Finding]:
    meaning = {split: "there is nothing to learn" if split == "train" else "AP is not measured" for split in tables}
    return [
        Finding("doubtful", f"crowd regions, and {split} has no other object: {text}", "objects", len(table), 0, ())
        for split, text in meaning.items()
        if len(table := tables[split]) and (table[:, CROWD] == 1).all()
    ]


def _missing_classes(categories: Mapping[int, str], tables: Mapping[str, np.ndarray]) -> list[Finding]:
    """Classes without objects; crowd regions do not count, as they are neither learned nor measured."""
    shown = {split: set(table[table[:, CROWD] == 0, CATEGORY].tolist()) for split, table in tables.items()}
    missing: dict[str, list[str]] = defaultdict(list)
    for place, name in enumerate(categories.values()):
        if not any(place in places for places in shown.values()):
            missing["no object in any image; data.classes can leave such classes out"].append(name)
        elif place not in shown["train"]:
            missing["no object in train, so it cannot be learned"].append(name)
        else:
            for split in [split for split in shown if place not in shown[split]]:
                missing[f"no object in {split}, so it is not measured there"].append(name)
    return [Finding("doubtful", kind, "classes", len(names), 0, tuple(names)) for kind, names in missing.items()]


def _near_duplicates(duplicates: Mapping[str, Any]) -> list[Finding]:
    across = duplicates["across_splits"]
    findings = [
        Finding(
            "doubtful",
            "near-duplicates that are too many to keep in one split, so they are in several: AP is too optimistic "
            "there. List the images of each split yourself (data.split) if these images differ",
            "images",
            group["images"],
            group["images"],
            tuple(group["examples"][:EXAMPLES]),
        )
        for group in duplicates["divided"]
    ]
    if across["count"]:
        kind = "near-duplicates across splits: AP is too optimistic there"
        examples = tuple(
            " and ".join(f"{pair[split]} ({split})" for split in pair["splits"]) for pair in across["pairs"][:EXAMPLES]
        )
        findings.append(Finding("doubtful", kind, "pairs", across["count"], 0, examples))
    for split, groups in duplicates["equal_files_within"].items():
        if groups:
            kind = f"the same file as another image of {split}"
            repeated = [names[0] for names in groups]
            count = sum(len(names) - 1 for names in groups)
            findings.append(Finding("doubtful", kind, "images", count, count, tuple(repeated[:EXAMPLES])))
    return findings


def _category_ids(outcome: Outcome) -> list[Finding]:
    """Category ids that are not the source's own."""
    if dict(outcome.categories) != dict(outcome.classes):
        changed = [f"{name}: {number}" for number, name in outcome.categories.items()]
        kind = "category ids are 1, 2, … in the order of data.classes, also in results"
    else:
        own = {number: outcome.source_category_ids.get(number, number) for number in outcome.classes}
        changed = [f"{outcome.classes[number]}: {number}, was {was!r}" for number, was in own.items() if was != number]
        kind = "category ids are renumbered, also in results: the source's own are not whole numbers"
    return [Finding("changed", kind, "classes", len(changed), 0, tuple(changed))] if changed else []


def _redrawn(outcome: Outcome) -> list[Finding]:
    images = outcome.every_image
    kind = "converted to JPEG, or to PNG where nothing may be lost"
    return [
        *_of_images("changed", "downscaled to data.max_side", [image.image_id for image in images if image.reduced]),
        *_of_images("changed", kind, [image.image_id for image in images if image.converted]),
    ]


def _of_images(severity: Severity, kind: str, names: Sequence[str], total: int | None = None) -> list[Finding]:
    """A finding about whole images; none without names."""
    return [Finding(severity, kind, "images", len(names), len(names), tuple(names[:EXAMPLES]), total)] if names else []


def _plural(unit: Unit, count: int) -> str:
    """A unit's singular or plural."""
    return unit if count != 1 else unit.removesuffix("es" if unit == "classes" else "s")


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
