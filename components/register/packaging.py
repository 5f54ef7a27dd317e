"""Pack a model as MLflow's registry stores it: weights, code, settings, signature, example and both cards."""

from __future__ import annotations

import base64
import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

import yolact
from components.register.candidate import Candidate
from components.register.data_card import DATA_CARD_FILE, data_card
from components.register.model_card import CARD_FILE, model_card
from yolact.backbone_registry import find_backbone
from yolact.files import write_json_atomic, write_text_atomic
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact_ops.lineage.lineage import shown_settings
from yolact_ops.registry.versions import DETECT_FILE, PARAMS_FILE
from yolact_ops.settings.params import Params
from yolact_ops.tracking.store import quiet_mlflow

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

REQUIREMENTS = (
    "defusedxml",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pycocotools",
    "pydantic",
    "pyyaml",
    "safetensors",
    "torch",
    "torchvision",
)
"""Distributions that prediction needs; the model pins the installed versions. Some backbones need more."""


def package_model(candidate: Candidate, parts: Path, folder: Path, entry: LoggedModel) -> None:
    """Write the MLflow model into ``folder``: weights, code, settings, signature, example, versions and both cards.

    Args:
        candidate: what to pack.
        parts: folder to gather the artifacts in; must not exist.
        folder: must not exist.
        entry: the model's entry in the store, named in its ``MLmodel`` file.
    """
    quiet_mlflow()
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    from components.register import pyfunc_model

    model_dir = parts / "model"
    model_dir.mkdir(parents=True)
    for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
        shutil.copy2(candidate.model_dir / name, model_dir)
    detect = candidate.params.evaluate.detect
    write_json_atomic(parts / DETECT_FILE, detect.model_dump(mode="json"))
    write_text_atomic(parts / PARAMS_FILE, params_text(candidate.params))
    image = base64.b64encode(candidate.example).decode("ascii")
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=pyfunc_model.__file__,
        artifacts={
            "model": str(model_dir),
            "detect": str(parts / DETECT_FILE),
            "params": str(parts / PARAMS_FILE),
        },
        code_paths=[str(Path(yolact.__file__).parent)],
        signature=pyfunc_model.signature(detect),
        input_example=pd.DataFrame({pyfunc_model.COLUMN: [image]}),
        pip_requirements=pinned_requirements(find_backbone(candidate.params.model.backbone).requirements),
        model_config=pyfunc_model.MODEL_CONFIG,
        mlflow_model=Model(
            artifact_path=entry.artifact_location,
            run_id=entry.source_run_id,
            model_uuid=entry.model_id,
            model_id=entry.model_id,
        ),
    )
    write_text_atomic(folder / CARD_FILE, model_card(candidate.card))
    write_text_atomic(folder / DATA_CARD_FILE, data_card(candidate.card))


def params_text(params: Params) -> str:
    """All settings as YAML, without credentials in addresses."""
    return yaml.safe_dump(shown_settings(params), sort_keys=False, allow_unicode=True)


def pinned_requirements(more: Sequence[str] = ()) -> list[str]:
    """`REQUIREMENTS` and ``more`` with the installed versions; without local parts such as ``+cpu``, which pip cannot
    fetch."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in (*REQUIREMENTS, *more)]
