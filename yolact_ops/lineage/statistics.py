"""Read the digests in ``stats.json``, which preprocess writes with the data for evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yolact.errors import DataError


def read_data_digest(eval_data_dir: Path) -> str:
    """The digest of all processed data.

    Raises:
        DataError: the file is missing, is not JSON or has no digest.
    """
    digest = _read_statistics(eval_data_dir).get("digest")
    if not isinstance(digest, str) or not digest:
        raise _lacks(eval_data_dir, "digest")
    return digest


def read_split_digests(eval_data_dir: Path) -> dict[str, str]:
    """The digests of the splits ``train`` and ``val``, each of its images and annotations.

    Raises:
        DataError: the file is missing, is not JSON or has no such digests.
    """
    digests = _read_statistics(eval_data_dir).get("split_digests")
    if not isinstance(digests, dict) or not all(digests.get(split) for split in ("train", "val")):
        raise _lacks(eval_data_dir, "split_digests")
    return digests


def _read_statistics(eval_data_dir: Path) -> dict[str, Any]:
    path = eval_data_dir / "stats.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Run the preprocess step first.") from None
    except ValueError as error:
        raise DataError(f"{path}: not a JSON object ({error}). Run the preprocess step again.") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path}: not a JSON object. Run the preprocess step again.")
    return tree


def _lacks(eval_data_dir: Path, key: str) -> DataError:
    return DataError(f"{eval_data_dir / 'stats.json'}: key {key!r} is missing or empty. Run the preprocess step again.")
