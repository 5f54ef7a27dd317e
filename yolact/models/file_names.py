"""Files of a saved model; no PyTorch is needed to know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"
"""Settings of the network, names of the classes and their category ids."""


def category_ids_of(description: Mapping[str, Any]) -> list[int]:
    """COCO's category id of label 0, 1, ..., from the content of ``model.json``; 1, 2, ... where it states none."""
    return list(description.get("category_ids") or range(1, len(description["classes"]) + 1))
