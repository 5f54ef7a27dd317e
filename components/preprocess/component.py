"""The step `preprocess` for Kubeflow Pipelines."""

from typing import List  # noqa: UP035  # kfp knows lists of artifacts by this name

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preprocess(
    data_params: str,
    code_version: str,
    processed: Output[Dataset],
    report: Output[HTML],
    raw: Input[Dataset] = None,
    scans: Input[List[Artifact]] = None,  # noqa: UP006
) -> None:
    """Convert a data set of any format to COCO instances, list every problem found, and report.

    Args:
        data_params: the section data of params.yaml, as YAML or JSON.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        processed: images/, train.json, val.json, test.json if images are held out, and stats.json.
        report: counts, sizes, a gallery, problems.
        raw: what ingest wrote; unless there are scans.
        scans: what the scan tasks wrote, of all parts.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("preprocess", code_version, inputs=[raw] if raw else scans or []):
        from components.preprocess import display, step
        from yolact_ops.sources.raw import opened

        pages = Path(report.path).with_name("report_files")
        params = kubeflow.data_settings(data_params)
        with opened(Path(raw.path) if raw else None, params) as folder:
            step.run(
                params,
                raw_dir=folder,
                scans=[Path(scan.path) for scan in scans or []],
                processed_dir=Path(processed.path),
                report_dir=pages,
            )
        display.describe(processed)
        kubeflow.show_page(report, pages)
