"""Check whether the source changed, and record its state in a small file that the ingest stage depends on.

DVC detects a change of ``data.source``, but not of the content at that source. ``dvc.yaml`` runs this at each
``dvc repro``; the file changes only when the source does, so no stage runs unnecessarily.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import yaml

from yolact.errors import DataError
from yolact.files import write_json_atomic
from yolact.models.weight_sources import check_weight_sources
from yolact.settings import ModelConfig
from yolact_ops.commands.step import DVC_LOCK, run_command
from yolact_ops.lineage.redaction import shown_source
from yolact_ops.settings.params import Params
from yolact_ops.sources.data_source import find_source, state_of

log = logging.getLogger(__name__)


def run(params: Params, *, state_file: Path) -> None:
    """Write the state of the source to ``state_file``, which is left untouched if the state is unchanged.

    Before that, what a training would start from is checked, as this is the first stage of all.

    An unavailable source (another machine's folder, a server that is down) is assumed unchanged if the file
    has its state: its data is in DVC's cache.

    Raises:
        DataError: the source is unavailable and has no recorded state.
        SettingsError, WeightsError: see `check_weight_sources`.
    """
    if not _was_trained(params.model):
        check_weight_sources(params.model)
    name = shown_source(params.data.source)
    known = _read(state_file)
    try:
        state = state_of(find_source(params.data))
    except (DataError, OSError) as error:
        if known.get("source") != name:
            raise
        log.warning("%s\nThe source is unavailable; it is assumed unchanged.", error)
        return
    tree = {"source": name, "fingerprint": state.fingerprint, "files": state.files, "bytes": state.size}
    if tree != known:
        write_json_atomic(state_file, tree)
        log.info("%s: %s", name, "is new" if known.get("source") != name else "changed")


def _was_trained(config: ModelConfig) -> bool:
    """Whether DVC has recorded a training that started likewise: its model is in the cache, also on other machines."""
    start = config.model_dump(mode="json", include={"backbone", "backbone_weights", "initial_weights"})
    try:
        lock = yaml.safe_load(DVC_LOCK.read_text(encoding="utf-8"))
        recorded = lock["stages"]["train"]["params"]["params.yaml"]["model"]
        return bool(recorded.items() >= start.items())
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):  # no lock, or another content
        return False


def _read(state_file: Path) -> dict:
    try:
        tree = json.loads(state_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


if __name__ == "__main__":
    run_command("source", lambda params: run(params, state_file=Path("data/source.json")))
