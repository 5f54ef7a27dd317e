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
    run_id: str = "",
    resume_run: str = "",
) -> None:
    """Train the network; a retried task goes on from its last checkpoint.

    Args:
        params: the whole of params.yaml, as YAML or JSON.
        code_version: version of the code; another one is another task for the caches.
        processed: what preprocess wrote.
        model: model.safetensors, model.json and run.json (the MLflow run).
        metrics: losses of the last epoch, the best validation, seconds a step.
        curves: train.json, losses.csv, lr.csv and ap.csv.
        checkpoints: where the volume for checkpoints is mounted; empty for none.
        run_id: id of the pipeline's run, the name of its folder there.
        resume_run: id of an earlier run whose training to go on with; empty for none.
    """
    from pathlib import Path

    from components.train import step
    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("train", code_version):
        summary = Path(curves.path) / "train.json"
        step.run(
            kubeflow.settings(params),
            processed_dir=Path(processed.path),
            model_dir=Path(model.path),
            metrics_path=summary,
            plots_dir=Path(curves.path) / "plots",
            checkpoints_dir=kubeflow.checkpoints_folder(checkpoints, run_id, resume_run, Path(model.path)),
        )
        kubeflow.describe_model(model, metrics, summary)
