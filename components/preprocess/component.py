"""The step `preprocess` for Kubeflow Pipelines."""

from typing import List  # noqa: UP035  # kfp knows lists of artifacts by this name

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preprocess(
    data_params: str,
    code_version: str,
    train_data: Output[Dataset],
    eval_data: Output[Dataset],
    report: Output[HTML],
    raw: Input[Dataset] = None,
    scans: Input[List[Artifact]] = None,  # noqa: UP006
    shards: str = "local",
) -> None:
    """Convert a data set of any format to COCO instances, list every problem found, and report.

    Args:
        data_params: the section data of params.yaml, as YAML or JSON.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        train_data: images/ and train.json.
        eval_data: images/, val.json, test.json if images are held out, and stats.json.
        report: counts, sizes, a gallery, problems.
        raw: what ingest wrote; unless there are scans.
        scans: what the scan tasks wrote, of all parts.
        shards: runtime.shards of params.yaml: where shards go.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("preprocess", code_version, inputs=[raw] if raw else scans or []):
        from components.preprocess import display, step
        from yolact_ops.sources.raw import opened

        pages, processed = (Path(report.path).with_name(name) for name in ("report_files", "processed"))
        params = kubeflow.data_settings(data_params)
        with opened(Path(raw.path) if raw else None, params) as folder:
            step.run(
                params,
                raw_dir=folder,
                scans=[Path(scan.path) for scan in scans or []],
                processed_dir=processed,
                report_dir=pages,
                shards=shards,
            )
        display.hand_over(processed, train_data, eval_data)
        kubeflow.show_page(report, pages)
