"""The step `evaluate` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Model, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    params: str,
    code_version: str,
    eval_data: Input[Dataset],
    model: Input[Model],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
    summary: Output[Markdown],
) -> None:
    """Evaluate a model on the test split, or else on the val split: COCO metrics, the paper's AP70, and a report.

    Args:
        params: the whole of params.yaml, as YAML or JSON.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        eval_data: what preprocess wrote for evaluation.
        model: what train or fetch wrote.
        evaluation: eval.json; report/ with detections in the COCO results format, tables, gallery; plots/.
        metrics: box and mask AP, AP50, AP75, AP70, by size.
        report: HTML page with curves and gallery.
        summary: the metrics, overall and by class.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("evaluate", code_version, needs_mlflow=True, inputs=[eval_data, model]):
        from components.evaluate import display, step

        folder = Path(evaluation.path)
        step.run(
            kubeflow.settings(params),
            eval_data_dir=Path(eval_data.path),
            model_dir=Path(model.path),
            metrics_path=folder / "eval.json",
            report_dir=folder / "report",
            plots_dir=folder / "plots",
            needs_store=True,
        )
        display.describe(evaluation, metrics, summary)
        kubeflow.show_page(report, folder / "report")
