"""The formats of results by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from yolact.errors import SettingsError
from yolact.results.coco import CocoInstances, CocoResults, Polygons
from yolact.results.datasets import Voc, Yolo
from yolact.results.image import ResultWriter
from yolact.results.pictures import CutOuts, Pictures

WRITERS: dict[str, type[ResultWriter]] = {
    "pictures": Pictures,
    "coco": CocoResults,
    "instances": CocoInstances,
    "polygons": Polygons,
    "cutouts": CutOuts,
    "voc": Voc,
    "yolo": Yolo,
}


def find_writers(names: Sequence[str]) -> dict[str, type[ResultWriter]]:
    """The writers with these names, each once.

    Raises:
        SettingsError: there is no such format, or no name.
    """
    for name in names:
        if name not in WRITERS:
            [similar] = difflib.get_close_matches(name, WRITERS, 1) or [""]
            hint = f"; did you mean {similar!r}?" if similar else ""
            raise SettingsError(f"--save: no format {name!r}{hint} There are {', '.join(WRITERS)}.")
    if not names:
        raise SettingsError(f"--save: name at least one of {', '.join(WRITERS)}")
    return {name: WRITERS[name] for name in names}
