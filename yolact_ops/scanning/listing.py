"""What a scan keeps of a data set's listing: everything but where the files are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from yolact.formats.dataset import AnnotatedImage, Dataset
from yolact.formats.problems import Problem


@dataclass(frozen=True)
class ScannedSource:
    """An image that a scan has read."""

    image_id: str

    def read(self) -> AnnotatedImage:
        """Not possible: the source's files are in the task of its scan."""
        raise RuntimeError(f"{self.image_id}: is read by its scan alone")


def problems_to_json(problems: Iterable[Problem]) -> list[Any]:
    """Problems as JSON values, see `problems_from_json`."""
    return [list(astuple(problem)) for problem in problems]


def problems_from_json(rows: Iterable[Any]) -> tuple[Problem, ...]:
    """The problems in what `problems_to_json` returned."""
    return tuple(Problem(*row) for row in rows)


def listing_to_json(dataset: Dataset) -> dict[str, Any]:
    """A data set as JSON values, with images by their ids alone."""
    return {
        "format": dataset.format,
        "root": dataset.root,
        "classes": list(dataset.classes.items()),
        "splits": {split: [source.image_id for source in found] for split, found in dataset.splits.items()},
        "problems": {name: problems_to_json(found) for name, found in dataset.problems.items()},
        "image_ids": dict(dataset.image_ids),
        "orphans": problems_to_json(dataset.orphans),
        "warnings": problems_to_json(dataset.warnings),
        "source_category_ids": list(dataset.source_category_ids.items()),
    }


def listing_from_json(tree: dict[str, Any]) -> Dataset:
    """The data set in what `listing_to_json` returned; its images cannot be read."""
    return Dataset(
        format=tree["format"],
        root=tree["root"],
        classes=dict(tree["classes"]),
        splits={split: [ScannedSource(name) for name in names] for split, names in tree["splits"].items()},
        problems={name: problems_from_json(rows) for name, rows in tree["problems"].items()},
        image_ids=tree["image_ids"],
        orphans=problems_from_json(tree["orphans"]),
        warnings=problems_from_json(tree["warnings"]),
        source_category_ids=dict(tree["source_category_ids"]),
    )
