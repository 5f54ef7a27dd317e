"""The step `scan` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def scan(
    data_params: str,
    part: str,
    parts: int,
    code_version: str,
    raw: Input[Dataset],
    result: Output[Artifact],
) -> None:
    """Read and prepare the images of one part of a data set, for preprocess to merge.

    Args:
        data_params: the section data of params.yaml, as YAML or JSON.
        part: number of the part from 0, as text.
        parts: number of all parts.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        raw: what ingest wrote.
        result: the prepared images in tar files, and what was found in each.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("scan", code_version, inputs=[raw]):
        from components.scan import display, step
        from yolact_ops.sources.raw import opened

        params = kubeflow.data_settings(data_params)
        with opened(Path(raw.path), params) as folder:
            found = step.run(params, raw_dir=folder, scan_dir=Path(result.path), part=int(part), parts=parts)
        display.describe(result, part, found)
