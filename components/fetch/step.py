"""The step `fetch`: a registered model as train leaves one, with the detection settings that it carries."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError

from yolact.files import replaced_directory, write_json_atomic
from yolact.models.weights import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.settings import DetectConfig
from yolact_ops.registry.versions import RegistryError, fetch_files, resolve
from yolact_ops.settings.params import Params
from yolact_ops.tracking.run_record import RUN_FILE
from yolact_ops.tracking.runs import start_run
from yolact_ops.tracking.store import connect

log = logging.getLogger(__name__)

DETECT_FILE, VERSION_FILE = "detect.json", "version.json"

EVALUATED_TAG = "evaluated_version"
"""On a run that only evaluates: which version of which registered model."""


def run(*, model: str, model_dir: Path) -> str:
    """Bring a registered version here.

    Args:
        model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        model_dir: gets ``model.safetensors``, ``model.json``, ``detect.json`` and ``version.json`` (which version it
            is); what was there is replaced.

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
                raise RegistryError(f"{address} has no artifacts/{name}; it was not made by this pipeline")
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


def read_detection(model_dir: Path) -> DetectConfig:
    """The detection settings that a fetched model carries.

    Raises:
        RegistryError: they are missing or faulty.
    """
    path = model_dir / DETECT_FILE
    try:
        return DetectConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise RegistryError(f"{path}: no settings of detection ({error}); run the fetch step again") from error


def begin_evaluation(params: Params, *, model: str, model_dir: Path) -> Params:
    """Open an MLflow run of its own for an evaluation of the model, which the step `evaluate` goes on with.

    Args:
        params: all settings.
        model: the version's address, as `run` returned it.
        model_dir: what `run` filled; gets ``run.json``.

    Returns:
        The settings with the model's own settings of detection.

    Raises:
        TrackingError: the store fails.
    """
    evaluation = params.evaluate.model_copy(update={"detect": read_detection(model_dir)})
    params = params.model_copy(update={"evaluate": evaluation})
    with start_run(params, model_dir / RUN_FILE) as tracker:
        tracker.set_tags({EVALUATED_TAG: model.removeprefix("models:/")})
    return params
