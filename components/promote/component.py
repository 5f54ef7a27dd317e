"""The step `promote` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Markdown, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    params: str,
    code_version: str,
    eval_data: Input[Dataset],
    registration: Input[Artifact],
    promotion: Output[Artifact],
    summary: Output[Markdown],
) -> str:
    """Make the version that was just registered the champion, if the gate allows it.

    A refusal is a result, not a failure, unless promote.fail_on_refusal says otherwise.

    Args:
        params: the whole of params.yaml, as YAML or JSON.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        eval_data: what preprocess wrote for evaluation.
        registration: what register wrote.
        promotion: the decision and its reasons, as JSON.
        summary: the decision, rule by rule.

    Returns:
        promoted, refused or unchanged.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("promote", code_version, needs_mlflow=True, inputs=[eval_data]):
        from components.promote import step

        outcome = step.run(
            kubeflow.settings(params),
            registration_path=Path(registration.path),
            eval_data_dir=Path(eval_data.path),
            report_path=Path(promotion.path),
            page_path=Path(summary.path),
        )
        promotion.metadata["status"] = outcome.status
        return str(outcome.status)
