"""Compile the pipelines and components to YAML; the same code gives the same bytes."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from kfp import compiler
from kfp.dsl.base_component import BaseComponent

from pipelines import batch_prediction, evaluation, training
from pipelines.config import ClusterConfig
from yolact.files import write_text_atomic
from yolact_ops.lineage.code import ROOT, find_steps, installed_versions

PIPELINES: dict[str, Callable[[ClusterConfig, Mapping[str, str]], BaseComponent]] = {
    "training": training.build,
    "evaluation": evaluation.build,
    "batch_prediction": batch_prediction.build,
}
"""Pipelines by name: the function that builds each for a cluster and the code versions of the steps."""

COMPILED = Path(__file__).parent / "compiled"
"""Where `python -m pipelines compile` writes; not in git, since the files hold the code versions."""


def pipeline_text(name: str, cluster: ClusterConfig, versions: Mapping[str, str] | None = None) -> str:
    """A pipeline as YAML: its specification, and after ``---`` its settings for Kubernetes.

    Args:
        name: key of `PIPELINES`.
        cluster: settings of the tasks.
        versions: code version by step; None for those of this checkout.
    """
    return compiled_text(PIPELINES[name](cluster, installed_versions() if versions is None else versions))


def component_text(name: str) -> str:
    """A step's component as YAML, for ``kfp.components.load_component_from_url`` and others."""
    return compiled_text(getattr(importlib.import_module(f"components.{name}.component"), name))


def compile_all(cluster: ClusterConfig, folder: Path) -> list[Path]:
    """Write every pipeline and component as YAML.

    Pipelines go into ``folder``, components into ``folder/components``. If ``folder`` is `COMPILED`, each component
    becomes the ``component.yaml`` in its step's folder instead, which is in git: it depends neither on the cluster nor
    on code versions.
    """
    versions = installed_versions()
    texts = {folder / f"{name}.yaml": pipeline_text(name, cluster, versions) for name in PIPELINES}
    for step in find_steps():
        in_checkout = folder.resolve() == COMPILED
        path = ROOT / f"components/{step}/component.yaml" if in_checkout else folder / f"components/{step}.yaml"
        texts[path] = component_text(step)
    for path, text in texts.items():
        write_text_atomic(path, text)
    return list(texts)


def compiled_text(component: BaseComponent) -> str:
    """A pipeline or component as YAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compiled.yaml"
        compiler.Compiler().compile(component, str(path))
        return path.read_text(encoding="utf-8")
