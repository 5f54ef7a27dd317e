"""Files that steps write for other steps to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yolact.errors import DataError


def read_json(path: Path, step: str) -> Any:
    """Read a JSON file that a step wrote.

    Args:
        path: the JSON file.
        step: the step that writes it, for messages.

    Raises:
        DataError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Run the {step} step first: dvc repro {step}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Run the {step} step again: dvc repro {step}") from error
