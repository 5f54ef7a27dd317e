"""Select, rename and merge a source's classes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from yolact.errors import SettingsError


def select_classes(
    classes: Mapping[int, str], wanted: Sequence[str] | Mapping[str, str] | None
) -> tuple[dict[int, str], dict[int, int]]:
    """Apply the setting ``data.classes`` to a source's classes.

    Args:
        classes: the source's names by category id, in order; instances count them from 1.
        wanted: None keeps all; a list of names to keep, in the new order; or a mapping from old to new names, where
            several old names with one new name are merged.

    Returns:
        The new names by category id, and the new category id by class index for the kept classes.

    Raises:
        SettingsError: a name is not among the classes.
    """
    if wanted is None:
        return dict(classes), dict(enumerate(classes, 1))
    renamed = dict(wanted) if isinstance(wanted, Mapping) else {name: name for name in wanted}
    names = list(classes.values())
    for name in renamed:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"The source has: {', '.join(names)}."
            raise SettingsError(f"data.classes: the source has no class {name!r}. {hint}")
    new_names = list(dict.fromkeys(renamed.values()))
    new_id = {name: number for number, name in enumerate(new_names, 1)}
    kept = {index: new_id[renamed[name]] for index, name in enumerate(names, 1) if name in renamed}
    return dict(enumerate(new_names, 1)), kept
