"""The step `fetch` for Kubeflow Pipelines."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Model, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch(
    registered: str,
    code_version: str,
    model: Output[Model],
    params: str = "",
) -> NamedTuple("Outputs", [("params", str), ("version", str)]):  # type: ignore[valid-type]
    """Fetch a registered model.

    Args:
        registered: models:/NAME@ALIAS or models:/NAME/VERSION.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        model: model.safetensors, model.json, detect.json, version.json.
        params: the whole of params.yaml, if the model will be evaluated: opens an MLflow run for that.

    Returns:
        The settings with the model's own detection settings, and the version's URI.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("fetch", code_version, needs_mlflow=True):
        from components.fetch import step

        folder = Path(model.path)
        version = step.run(model=registered, model_dir=folder)
        model.metadata |= {"framework": "pytorch", "registered": version}
        if not params:
            return "", version
        settings = step.begin_evaluation(kubeflow.settings(params), model=version, model_dir=folder)
        return kubeflow.as_text(settings), version
