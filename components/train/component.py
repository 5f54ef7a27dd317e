"""The step `train` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    params: str,
    code_version: str,
    processed: Input[Dataset],
    model: Output[Model],
    metrics: Output[Metrics],
    curves: Output[Dataset],
    checkpoints: str = "",
    pipeline_run_id: str = "",
    resume_pipeline_run: str = "",
) -> None:
    """Train the network; a retried task resumes from its last checkpoint.

    Args:
        params: the whole of params.yaml, as YAML or JSON.
        code_version: of this step; part of the cache key, and checked against the image.
        processed: what preprocess wrote.
        model: model.safetensors, model.json and run.json (the MLflow run).
        metrics: losses of the last epoch, the best validation, seconds per step.
        curves: train.json, losses.csv, lr.csv and ap.csv.
        checkpoints: where the volume for checkpoints is mounted; empty for none.
        pipeline_run_id: id of the pipeline run, the name of its folder there.
        resume_pipeline_run: id of an earlier pipeline run whose training to resume; empty for none.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("train", code_version, needs_mlflow=True):
        from components.train import display, step
        from components.train.volume import checkpoints_folder

        summary = Path(curves.path) / "train.json"
        step.run(
            kubeflow.settings(params),
            processed_dir=Path(processed.path),
            model_dir=Path(model.path),
            metrics_path=summary,
            plots_dir=Path(curves.path) / "plots",
            checkpoints_dir=checkpoints_folder(checkpoints, pipeline_run_id, resume_pipeline_run, Path(model.path)),
        )
        display.describe(model, metrics, summary)
