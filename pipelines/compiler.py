"""From Python to what a cluster takes: the pipelines and components as YAML files, the same bytes each time."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from kfp import compiler
from kfp.dsl.base_component import BaseComponent

from pipelines import batch_prediction, evaluation, training
from pipelines.config import ClusterConfig
from yolact.files import write_text_atomic

PIPELINES: dict[str, Callable[[ClusterConfig], BaseComponent]] = {
    "training": training.build,
    "evaluation": evaluation.build,
    "batch_prediction": batch_prediction.build,
}
"""By name: what makes each for a cluster."""

COMPONENTS = (
    *("source", "ingest", "preprocess", "train", "evaluate", "register", "promote"),
    *("fetch", "split", "predict", "merge"),
)
"""Folders of ``components`` with a ``component.py``, whose function has the folder's name."""

COMPILED = Path(__file__).parent / "compiled"
ROOT = Path(__file__).parents[1]


def pipeline_text(name: str, cluster: ClusterConfig) -> str:
    """A pipeline as YAML: its specification, and after ``---`` what Kubernetes is to know of its tasks."""
    return _compiled(PIPELINES[name](cluster))


def component_text(name: str) -> str:
    """A component as YAML, for ``kfp.components.load_component_from_url`` and others."""
    return _compiled(getattr(importlib.import_module(f"components.{name}.component"), name))


def compile_all(cluster: ClusterConfig, folder: Path) -> list[Path]:
    """Write every pipeline into ``folder``, and its ``component.yaml`` into every component's folder.

    Components lie in the checkout, and are the same for every cluster; they are written only where ``folder`` is the
    project's own.
    """
    texts = {folder / f"{name}.yaml": pipeline_text(name, cluster) for name in PIPELINES}
    if folder.resolve() == COMPILED:
        texts |= {ROOT / "components" / name / "component.yaml": component_text(name) for name in COMPONENTS}
    else:
        texts |= {folder / "components" / f"{name}.yaml": component_text(name) for name in COMPONENTS}
    for path, text in texts.items():
        write_text_atomic(path, text)
    return list(texts)


def _compiled(component: BaseComponent) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compiled.yaml"
        compiler.Compiler().compile(component, str(path))
        return path.read_text(encoding="utf-8")
