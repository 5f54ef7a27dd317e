"""The step `train` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    params: str,
    code_version: str,
    train_data: Input[Dataset],
    eval_data: Input[Dataset],
    model: Output[Model],
    metrics: Output[Metrics],
    curves: Output[Dataset],
    checkpoints: str = "",
    pipeline_run_id: str = "",
    resume_pipeline_run: str = "",
    nodes: str = "",
) -> None:
    """Train the network; a retried task resumes from its last checkpoint.

    Args:
        params: the whole of params.yaml, as YAML or JSON.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        train_data: what preprocess wrote for training.
        eval_data: what it wrote for evaluation; the training validates on it.
        model: model.safetensors, model.json and run.json (the MLflow run).
        metrics: losses of the last epoch, best validation, seconds per step.
        curves: train.json, and in plots/ losses.csv, lr.csv, ap.csv and loss_terms/.
        checkpoints: where the volume for checkpoints is mounted; empty for none.
        pipeline_run_id: id of the pipeline run, and name of its folder on that volume.
        resume_pipeline_run: id of an earlier pipeline run whose training to resume; empty for none.
        nodes: the nodes that train together, through a TrainJob, as JSON; empty: this task trains.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("train", code_version, needs_mlflow=True, inputs=[train_data, eval_data]):
        from components.train import display, trainjob
        from components.train.volume import checkpoints_folder

        summary = Path(curves.path) / "train.json"
        trainjob.run(
            kubeflow.settings(params),
            train_data_dir=Path(train_data.path),
            eval_data_dir=Path(eval_data.path),
            model_dir=Path(model.path),
            metrics_path=summary,
            plots_dir=Path(curves.path) / "plots",
            checkpoints_dir=checkpoints_folder(checkpoints, pipeline_run_id, resume_pipeline_run, Path(model.path)),
            nodes=nodes,
            shared=Path(checkpoints) / f"{pipeline_run_id}-nodes",
            code_version=code_version,
        )
        display.describe(model, metrics, summary)
