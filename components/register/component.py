"""The step `register` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Markdown, Model, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    params: str,
    code_version: str,
    eval_data: Input[Dataset],
    model: Input[Model],
    evaluation: Input[Artifact],
    registration: Output[Artifact],
    summary: Output[Markdown],
) -> str:
    """Put the model into the MLflow registry with its lineage.

    Args:
        params: the whole of params.yaml, as YAML or JSON.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        eval_data: what preprocess wrote for evaluation.
        model: what train wrote.
        evaluation: what evaluate wrote.
        registration: name, version, alias, metrics and identity as JSON.
        summary: the same as a table.

    Returns:
        The version's URI, as models:/yolact/3.
    """
    import json
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("register", code_version, needs_mlflow=True, inputs=[eval_data, model, evaluation]):
        from components.register import display, step

        step.run(
            kubeflow.settings(params),
            model_dir=Path(model.path),
            eval_data_dir=Path(eval_data.path),
            metrics_path=Path(evaluation.path) / "eval.json",
            report_path=Path(registration.path),
        )
        display.describe(registration, summary)
        return str(json.loads(Path(registration.path).read_text())["model_uri"])
