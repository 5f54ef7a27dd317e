"""Choose the images of a split that the source lacks: seeded, stratified by class, near-duplicates kept together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

ENOUGH = 0.5
"""Minimum fraction of the requested images with objects; below it, more are added. Our choice."""

LARGEST_SHARE = 1 / 3
"""Maximum fraction of the images with objects that the split may grow to in order to keep a large group whole, as in
threefold cross-validation. Our choice."""


@dataclass(frozen=True)
class Choice:
    """The chosen images, and the groups that were divided to get enough of them."""

    images: set[str]
    divided: tuple[tuple[str, ...], ...] = ()
    """Groups that were too large to keep together, as their images' names."""


def choose(
    classes_of: Mapping[str, Collection[int]], group_of: Mapping[str, str], fraction: float, seed: int
) -> Choice:
    """Choose images of a split: about ``fraction`` of those of each class, and of those without objects.

    Images of a group stay together. If groups are so large that this gives less than half of the requested images
    with objects, whole groups are added, the smallest first, until there are enough, up to a third of all images
    with objects. If that is not enough, the largest group is split, and the choice is repeated. So both splits have
    objects if at least two images do.

    The choice depends only on the seed and the names, not on the order of the images.

    Args:
        classes_of: classes that each image shows, by name.
        group_of: each image's group, by the name of one of its images.
        fraction: fraction of the images, between 0 and 1.
        seed: seed of the choice.
    """
    groups = dict(group_of)
    total = sum(bool(classes) for classes in classes_of.values())
    divided: list[tuple[str, ...]] = []
    while True:
        members = _members(classes_of, groups)
        order = sorted(members, key=lambda group: _rank(seed, group))
        showing = {group: sum(bool(classes_of[name]) for name in members[group]) for group in order}
        chosen = _stratified(classes_of, members, order, fraction)
        chosen |= _whole_groups_to_add(chosen, showing, fraction)
        largest = max(order, key=lambda group: showing[group], default=None)
        if _is_enough(sum(showing[group] for group in chosen), total, fraction) or largest is None:
            break
        if len(members[largest]) == 1:
            break
        divided.append(tuple(members[largest]))
        groups |= {name: name for name in members[largest]}
    return Choice({name for group in chosen for name in members[group]}, tuple(divided))


def _members(classes_of: Mapping[str, Collection[int]], group_of: Mapping[str, str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes_of):
        members[group_of[name]].append(name)
    return members


def _stratified(
    classes_of: Mapping[str, Collection[int]],
    members: Mapping[str, Sequence[str]],
    order: Sequence[str],
    fraction: float,
) -> set[str]:
    """Choose groups by iterative stratification (Sechidis et al., ECML 2011).

    The rarest class comes first, since later choices cannot correct its share. Each class in turn takes groups until
    it has its share, counting those that earlier classes took. A class with at least two images in groups of one
    image gets at least one in each split if those are undecided; a class in a single group goes to training. Images
    without objects come last, so that they do not affect any class.
    """
    shows: dict[int, list[str]] = defaultdict(list)  # groups by class; -1: images without objects
    for group in order:
        for label in {label for name in members[group] for label in classes_of[name] or (-1,)}:
            shows[label].append(group)
    chosen: dict[str, bool] = {}
    for label in sorted(shows, key=lambda label: (label < 0, len(shows[label]), label)):
        _deal(shows[label], members, fraction, chosen)
    return {group for group, taken in chosen.items() if taken}


def _deal(
    groups: Sequence[str], members: Mapping[str, Sequence[str]], fraction: float, chosen: dict[str, bool]
) -> None:
    """Assign the groups of one class that no earlier class has assigned."""
    total = sum(len(members[group]) for group in groups)
    wanted = min(max(round(fraction * total), 1), total - 1)
    have = sum(len(members[group]) for group in groups if chosen.get(group, False))
    for group in groups:
        if group not in chosen:
            chosen[group] = have + len(members[group]) <= wanted
            have += len(members[group]) if chosen[group] else 0


def _is_enough(have: int, total: int, fraction: float) -> bool:
    """Whether ``have`` images with objects are at least half of those requested, and leave some for training."""
    return max(1, ENOUGH * fraction * total) <= have < total


def _whole_groups_to_add(chosen: Collection[str], showing: Mapping[str, int], fraction: float) -> set[str]:
    """Add groups with objects, the smallest first, until there are enough images or the limit is reached."""
    total, have = sum(showing.values()), sum(showing[group] for group in chosen)
    allowed = min(max(1, LARGEST_SHARE * total), total - 1)
    free = sorted((group for group in showing if showing[group] and group not in chosen), key=lambda g: showing[g])
    added = set()
    for group in free:
        if _is_enough(have, total, fraction) or have + showing[group] > allowed:
            break
        added.add(group)
        have += showing[group]
    return added


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
