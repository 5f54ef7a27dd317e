"""The step `source` for Kubeflow Pipelines."""

from typing import NamedTuple

from kfp import dsl

from yolact_ops.commands.task import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def source(
    params: str,
    code_version: str,
    data_repository: str = "",
    data_path: str = "",
    data_revision: str = "",
) -> NamedTuple("Outputs", [("params", str), ("data_params", str), ("shards", str), ("fingerprint", str)]):  # type: ignore[valid-type]
    """Pin the data's revision, and check the settings before anything is fetched.

    Args:
        params: the whole of params.yaml, as YAML or JSON.
        code_version: version of this step's code; part of the cache key, and checked against the container image.
        data_repository: git repository that tracks the data, by DVC or git; empty uses data.source.
        data_path: path of the data in that repository.
        data_revision: commit, tag or branch of that repository.

    Returns:
        All settings with the revision pinned, their section data and runtime.shards, and a fingerprint of the data.
    """
    from yolact_ops.commands import task as kubeflow

    with kubeflow.task("source", code_version):
        from components.source import step
        from yolact_ops.settings.params import DataParams

        found = step.run(kubeflow.settings(params), repository=data_repository, path=data_path, revision=data_revision)
        data = DataParams(data=found.params.data)
        return kubeflow.as_text(found.params), kubeflow.as_text(data), found.params.runtime.shards, found.fingerprint
