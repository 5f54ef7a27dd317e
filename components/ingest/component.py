"""The step `ingest` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    data_params: str, fingerprint: str, code_version: str, raw: Output[Dataset], by_reference: bool = False
) -> None:
    """Fetch images and annotations from any source.

    Args:
        data_params: the section data of params.yaml, as YAML or JSON.
        fingerprint: fingerprint of the source's content; part of the cache key.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        raw: the data set in its own format.
        by_reference: write only a reference to the source; the tasks that read the data fetch it themselves.
    """
    from pathlib import Path

    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("ingest", code_version):
        from components.ingest import display, step

        params = kubeflow.data_settings(data_params)
        step.run(
            params,
            raw_dir=Path(raw.path),
            downloads_dir=Path(raw.path).with_name("downloads"),
            reference=fingerprint if by_reference else None,
        )
        display.describe(raw, params, fingerprint)
