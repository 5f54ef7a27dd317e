"""What preprocess refuses: images in both splits, too many unusable images or objects, splits without objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from components.preprocess.findings import LISTED_FINDINGS, Finding, dropped_objects
from components.preprocess.orientation import Undecided
from components.preprocess.outcome import Outcome
from yolact.errors import DataError
from yolact.formats.dataset import Dataset
from yolact_ops.settings.params import DataConfig

LISTED_PROBLEMS = 20
"""Maximum number of images in an error message; the rest is counted."""


def check_disjoint(dataset: Dataset) -> None:
    """Refuse images in more than one split.

    Raises:
        DataError: there are some.
    """
    names = {split: {source.image_id for source in found} for split, found in dataset.splits.items()}
    for one, other in combinations(names, 2):
        if common := sorted(names[one] & names[other]):
            raise DataError(
                f"{dataset.root}: images in both {one} and {other}: {len(common)}, such as {common[0]!r}. A model must "
                "not be evaluated on images that it was trained or chosen on: remove them from one of the two lists."
            )


def refusal_of(root: str, outcome: Outcome, undecided: Undecided | None, data: DataConfig, listing: str) -> str:
    """Why a data set is refused; empty if it is not.

    Args:
        root: the data set's folder, for the messages.
        outcome: what was found in it.
        undecided: images of which nothing says how their masks are turned, if there are any.
        data: the settings.
        listing: where everything is listed, for the messages.
    """
    if undecided is not None:
        return undecided.refusal(root, listing)
    return "\n".join(_too_many(root, outcome, data, listing))


def _too_many(root: str, outcome: Outcome, data: DataConfig, listing: str) -> list[str]:
    """What is more than the settings allow: unusable images, dropped objects."""
    refusals = []
    count, allowed = len(outcome.rejected), data.max_problems
    if count > allowed:
        lines = [f"\n  {problem}" for found in list(outcome.rejected.values())[:LISTED_PROBLEMS] for problem in found]
        if count > LISTED_PROBLEMS:
            lines.append(f"\n  and {count - LISTED_PROBLEMS} more, see {listing}")
        refusals.append(
            f"{root}: {count} image{'' if count == 1 else 's'} cannot be used; data.max_problems allows "
            f"{allowed}.{''.join(lines)}\n"
            f"Fix the files at their source (data.source: {data.source}) and run `dvc repro`, which fetches them. "
            f"Or leave these images out with data.max_problems={count} in params.yaml (stats.json then lists them all)."
        )
    dropped, objects = len(outcome.dropped), outcome.objects
    if dropped > data.max_dropped * objects:
        share = math.ceil(100 * dropped / objects) / 100
        listing = "\n".join(f"  {line}" for line in _listed(dropped_objects(outcome), listing))
        refusals.append(
            f"{root}: {dropped} of {objects} objects cannot be used; data.max_dropped allows a share of "
            f"{data.max_dropped:g}.\n{listing}\n"
            f"Fix them at their source (data.source: {data.source}) and run `dvc repro`, which fetches them."
        )
        if dropped < objects:
            refusals[-1] += (
                f" Or drop them with data.max_dropped={share:g} in params.yaml: their images are then used without "
                "them, so the model learns that nothing is there."
            )
    return refusals


def _listed(findings: Sequence[Finding], listing: str) -> list[str]:
    """One line per finding, up to `LISTED_FINDINGS`."""
    lines = [str(finding) for finding in findings[:LISTED_FINDINGS]]
    more = len(findings) - LISTED_FINDINGS
    return [*lines, f"and {more} more kinds, see {listing}"] if more > 0 else lines


def check_usable(root: str, outcome: Outcome) -> None:
    """Refuse a split without objects.

    Raises:
        DataError: a split has none; names it and what to do.
    """
    showing = {split: sum(len(image.instances) > 0 for image in found) for split, found in outcome.images.items()}
    empty = [split for split in showing if not showing[split]]
    if not empty:
        return
    if outcome.split_by[empty[0]] == "lists":
        advice = f"Correct the lists of data.split.{empty[0]}, annotate objects in their images, or check data.classes."
    elif not outcome.chosen:
        advice = "Annotate objects in its images, choose other images for the split, or check data.classes."
    else:
        advice = (
            f"Only {sum(showing.values())} of all images have objects, and each split needs one that does: annotate "
            "objects in more images, or check data.classes."
        )
    count = len(outcome.images[empty[0]])
    raise DataError(f"{root}: split {empty[0]!r} has {count} usable images, without any instance. {advice}")
