"""The fetch step: download a registered model in the form train writes, with its own detection settings."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from yolact.files import replaced_directory, write_json_atomic
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact_ops.registry.packaged_model import read_detection
from yolact_ops.registry.versions import DETECT_FILE, RegistryError, fetch_files, resolve
from yolact_ops.settings.params import Params
from yolact_ops.tracking.evaluations import VERSION_TAG
from yolact_ops.tracking.run_record import RUN_FILE
from yolact_ops.tracking.runs import start_run
from yolact_ops.tracking.store import connect

log = logging.getLogger(__name__)

VERSION_FILE = "version.json"


def run(*, model: str, model_dir: Path) -> str:
    """Download a registered version.

    Args:
        model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        model_dir: gets ``model.safetensors``, ``model.json``, ``detect.json`` and ``version.json`` (which version it
            is); replaces previous content.

    Returns:
        The version's address, as ``models:/yolact/3``, whatever its aliases become.

    Raises:
        RegistryError: there is no such version, or it lacks a file.
        TrackingError: the store fails.
    """
    version = resolve(connect(), model)
    address = f"models:/{version.name}/{version.version}"
    with replaced_directory(model_dir) as folder, tempfile.TemporaryDirectory() as temporary:
        artifacts = fetch_files(version.name, int(version.version), Path(temporary), "artifacts")
        for name in (f"model/{WEIGHTS_FILE}", f"model/{DESCRIPTION_FILE}", DETECT_FILE):
            if not (artifacts / name).is_file():
                raise RegistryError(f"{address} has no artifacts/{name}; it was not registered by this pipeline")
            shutil.move(artifacts / name, folder / Path(name).name)
        facts = {
            "name": version.name,
            "version": int(version.version),
            "model_uri": address,
            "tags": dict(version.tags),
        }
        write_json_atomic(folder / VERSION_FILE, facts)
    log.info("%s is %s", model, address)
    return address


def begin_evaluation(params: Params, *, model: str, model_dir: Path) -> Params:
    """Start an MLflow run for an evaluation of the model; the evaluate step resumes it.

    Args:
        params: all settings.
        model: the version's address, as `run` returned it.
        model_dir: what `run` filled; gets ``run.json``.

    Returns:
        The settings with the model's own detection settings.

    Raises:
        TrackingError: the store fails.
    """
    evaluation = params.evaluate.model_copy(update={"detect": read_detection(model_dir)})
    params = params.model_copy(update={"evaluate": evaluation})
    with start_run(params, model_dir / RUN_FILE) as tracker:
        tracker.set_tags({VERSION_TAG: model.removeprefix("models:/")})
    return params
