"""The step `ingest` for Kubeflow Pipelines."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(data_params: str, fingerprint: str, code_version: str, raw: Output[Dataset]) -> None:
    """Bring the images and their annotations, whatever their source.

    Args:
        data_params: the section data of params.yaml, as YAML or JSON.
        fingerprint: of the source's content; another one is another task for the caches.
        code_version: version of the code; likewise.
        raw: the data set in its own layout.
    """
    from pathlib import Path

    from components.ingest import step
    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("ingest", code_version):
        params = kubeflow.data_settings(data_params)
        step.run(params, raw_dir=Path(raw.path), downloads_dir=Path(raw.path).with_name("downloads"))
        kubeflow.describe_raw(raw, params, fingerprint)
