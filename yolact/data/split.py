"""Choosing validation photos where the source names none: seeded, balanced by class, copies kept together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence


def groups_of(names: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The first name of each name's group; names that pairs link, also through others, are one group."""
    leader = {name: name for name in sorted(names)}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for one, other in pairs:
        first, second = sorted((find(one), find(other)))
        leader[second] = first
    return {name: find(name) for name in leader}


def choose_validation(
    classes_of: Mapping[str, Collection[int]], group_of: Mapping[str, str], fraction: float, seed: int
) -> set[str]:
    """Photos to validate on: about ``fraction`` of those of each class, and of those without objects.

    Iterative stratification (Sechidis et al., ECML 2011): the rarest class is dealt with first, since later choices
    cannot mend it. Each in turn takes photos until it has its share; photos that an earlier class took count. A class
    with two groups of photos or more has at least one in each split where those are free. Photos of a group stay
    together. The order of choice hangs on the seed and on names alone, so other photos' order changes nothing.

    Args:
        classes_of: classes that each photo shows, by name.
        group_of: name of each photo's group, as `groups_of` gives it.
        fraction: share of the photos, between 0 and 1.
        seed: another one gives another choice.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes_of):
        members[group_of[name]].append(name)
    order = sorted(members, key=lambda group: _rank(seed, group))
    shows: dict[int, list[str]] = defaultdict(list)  # groups by class; -1: photos without objects
    for group in order:
        for label in {label for name in members[group] for label in classes_of[name] or (-1,)}:
            shows[label].append(group)
    chosen: dict[str, bool] = {}
    for label in sorted(shows, key=lambda label: (len(shows[label]), label)):
        _deal(shows[label], members, fraction, chosen)
    return {name for group, taken in chosen.items() if taken for name in members[group]}


def _deal(
    groups: Sequence[str], members: Mapping[str, Sequence[str]], fraction: float, chosen: dict[str, bool]
) -> None:
    """Decide about the groups of one class that no class before it has decided about."""
    total = sum(len(members[group]) for group in groups)
    wanted = round(fraction * total)
    if len(groups) > 1:
        wanted = min(max(wanted, 1), total - 1)
    have = sum(len(members[group]) for group in groups if chosen.get(group, False))
    for group in groups:
        if group not in chosen:
            chosen[group] = have + len(members[group]) <= wanted
            have += len(members[group]) if chosen[group] else 0


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
