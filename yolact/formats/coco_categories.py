"""Classes of one or more COCO files: joined by name, without the unused roots that tools add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from yolact.errors import DataError
from yolact.formats.coco_files import CategoryRow, InstancesFile
from yolact.formats.problems import Problem


@dataclass
class Classes:
    """The classes of a data set."""

    names: dict[int, str]
    """Name by category id, in order."""
    own_ids: dict[int, int | str]
    """The first file's own id by category id."""
    class_of: list[dict[int | str, int]]
    """For each file, class index (from 1) by its own category id."""
    warnings: list[Problem] = field(default_factory=list)


def join_classes(files: Sequence[InstancesFile]) -> Classes:
    """Join the classes of all files by name.

    The files' own ids are kept if they are integers from 0, unique and the same in all files; otherwise categories are
    numbered from 1 in the order of the ids.

    Args:
        files: those for training first.

    Raises:
        DataError: a file gives one id to two names, or has no category.
    """
    used: Counter[str] = Counter()
    for file in files:
        names: dict[int | str, str] = {}
        for place, row in enumerate(file.categories):
            if names.setdefault(row.number, row.name) != row.name:
                raise DataError(
                    f"{file.path}: categories[{place}] repeats the id {row.number!r} of {names[row.number]!r} for "
                    f"{row.name!r}. Correct it."
                )
            used[row.name] += 0
        for number, name in names.items():
            used[name] += file.used[number]
    warnings: list[Problem] = []
    kept = _without_roots(files, used, warnings)
    _warn_of_background(files, kept, used, warnings)
    own: dict[str, int | str] = {}
    for file in files:
        for name, ids in _ids_by_name(file).items():
            if name in kept and name not in own:
                own[name] = max(ids, key=lambda number: file.used[number])  # the first of equally used ones
            _warn_of_two_ids(file, name, ids, warnings)
    if not own:
        raise DataError(f"{files[0].path}: categories is empty. List the classes there, each with an id and a name.")
    order = sorted(own, key=lambda name: (isinstance(own[name], str), own[name]))
    if all(isinstance(number, int) and number >= 0 for number in own.values()) and len(set(own.values())) == len(own):
        classes = {int(own[name]): name for name in order}
    else:
        classes = dict(enumerate(order, 1))
    own_ids = {number: own[name] for number, name in classes.items()}
    _warn_of_ids(files, classes, own_ids, warnings)
    index = {name: place for place, name in enumerate(classes.values(), 1)}
    class_of = [{row.number: index[row.name] for row in file.categories if row.name in index} for file in files]
    return Classes(classes, own_ids, class_of, warnings)


def _ids_by_name(file: InstancesFile) -> dict[str, list[int | str]]:
    ids: dict[str, list[int | str]] = {}
    for row in file.categories:
        if row.number not in ids.setdefault(row.name, []):
            ids[row.name].append(row.number)
    return ids


def _is_background(name: str) -> bool:
    return name.casefold().strip(" _") == "background"


def _without_roots(files: Sequence[InstancesFile], used: Counter[str], warnings: list[Problem]) -> set[str]:
    """Names of categories, without unused ones that are a background or only the parent of others."""
    rows: dict[str, list[CategoryRow]] = {}
    for file in files:
        for row in file.categories:
            rows.setdefault(row.name, []).append(row)
    parents = {row.parent for found in rows.values() for row in found if row.parent != row.name}
    dropped = [name for name in rows if not used[name] and (_is_background(name) or name in parents)]
    if len(dropped) == len(rows):
        return set(rows)
    if dropped:
        shown = ", ".join(repr(name) for name in dropped)
        reason = f"no annotation is of the category {shown}, a background or the parent of others: it is not a class"
        warnings.append(Problem(files[0].name, reason, "category that is only a root", changed=True))
    return set(rows) - set(dropped)


def _warn_of_background(
    files: Sequence[InstancesFile], kept: set[str], used: Counter[str], warnings: list[Problem]
) -> None:
    for name in sorted(kept):
        if _is_background(name) and used[name]:
            reason = (
                f"{used[name]} annotations are of the class {name!r}: is it one to learn? Leave it out by data.classes"
            )
            warnings.append(Problem(files[0].name, reason, "background as a class"))


def _warn_of_two_ids(file: InstancesFile, name: str, ids: Sequence[int | str], warnings: list[Problem]) -> None:
    if len(ids) == 1:
        return
    counts = ", ".join(f"{number} ({file.used[number]} annotations)" for number in ids)
    merged = sum(file.used[number] > 0 for number in ids) > 1
    reason = f"the category {name!r} has several ids: {counts}; {'they are merged' if merged else 'it is one class'}"
    warnings.append(Problem(file.name, reason, "category with several ids", changed=not merged))


def _warn_of_ids(
    files: Sequence[InstancesFile],
    classes: dict[int, str],
    own_ids: dict[int, int | str],
    warnings: list[Problem],
) -> None:
    """Warn if ids differ between files."""
    of_name = {name: own_ids[number] for number, name in classes.items()}
    for file in files[1:]:
        other = [name for name, ids in _ids_by_name(file).items() if name in of_name and of_name[name] not in ids]
        if other:
            reason = (
                f"{len(other)} categories, such as {other[0]!r}, have other ids than in {files[0].name}; names decide"
            )
            warnings.append(Problem(file.name, reason, "category ids that differ between files", changed=True))
