"""What `submit` and `schedule` send: a pipeline and its arguments, checked first."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.source.step import choose_source
from pipelines.compiler import PIPELINES, pipeline_text
from pipelines.image import check_image
from pipelines.names import check_name
from pipelines.options import ClusterOptions, JobOptions, SettingsOptions
from pipelines.servers.client import RUN_ID, Cluster, Job
from pipelines.servers.connection import Connection
from pipelines.spec import CompiledPipeline, parse_arguments, parse_compiled, read_compiled
from yolact.errors import SettingsError
from yolact_ops.commands.task import as_text
from yolact_ops.lineage.code import ROOT
from yolact_ops.lineage.git import git_state
from yolact_ops.settings.presets import PARAMS

SETTINGS_PARAMETER = "params"
"""The pipelines' parameter that takes all settings."""

REVISION_PARAMETERS = ("data_repository", "data_path", "data_revision")
"""The pipelines' parameters that name a revision of the data, instead of ``data.source``."""

DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
MODEL = re.compile(r"(models:/)?[^/@]+(@[^/@]+|/\d+)")


def _is_s3(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"s3://[^/\s]+(/.*)?", value) is not None


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "shards": (lambda value: value >= 1, "must be at least 1"),
    "batch_size": (lambda value: value >= 1, "must be at least 1"),
    "device": (lambda value: bool(DEVICE.fullmatch(value)), "must be auto, cpu, cuda, cuda:N or mps"),
    "model": (lambda value: bool(MODEL.fullmatch(value)), "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
    "images": (_is_s3, "must be s3://BUCKET/FOLDER"),
    "destination": (lambda value: not value or _is_s3(value), "must be s3://BUCKET/FOLDER, or empty"),
    "checkpoints": (lambda value: not value or value.startswith("/"), "must be an absolute path, or empty"),
    "resume_pipeline_run": (
        lambda value: not value or bool(RUN_ID.fullmatch(value)),
        "must be the id of a run, as 0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f, or empty",
    ),
}
"""By parameter of the project's own pipelines: what can be known of a value before anything is sent."""


class Submission:
    """A compiled pipeline and its arguments."""

    def __init__(self, pipeline: str, cluster: ClusterOptions, settings: SettingsOptions, job: JobOptions) -> None:
        """Compile and check.

        Args:
            pipeline: name of a pipeline of the project, or a compiled pipeline's file.
            cluster, settings, job: options of the command.

        Raises:
            SettingsError: settings, arguments or the image do not fit.
            PipelineError: see `pipelines.spec`.
        """
        self.job = job
        self.pipeline = compile_pipeline(pipeline, cluster, job.enable_caching)
        self.arguments = self._arguments(settings)
        self.pipeline.check_arguments(self.arguments)
        self._check_values()
        check_name("--experiment", job.experiment)
        for image, versions in self.pipeline.code_versions().items():
            if unknown := check_image(image, versions):
                print(f"Not checked here: {unknown}. Each task checks its code when it starts.", file=sys.stderr)

    def _arguments(self, options: SettingsOptions) -> dict[str, Any]:
        arguments = parse_arguments(self.job.arguments or [], self.pipeline)
        if SETTINGS_PARAMETER in self.pipeline.parameters:
            settings = options.read()
            repository, path, revision = (arguments.get(name, "") for name in REVISION_PARAMETERS)
            choose_source(settings, repository=repository, path=path, revision=revision)  # refuses passwords
            arguments[SETTINGS_PARAMETER] = as_text(settings)
        elif options.are_given:
            raise SettingsError(
                f"{self.pipeline.origin}: the pipeline {self.pipeline.name} takes no settings; leave out --preset, -S"
            )
        return arguments

    def _check_values(self) -> None:
        """Refuse arguments of the project's own pipelines that their tasks would refuse."""
        if self.pipeline.name.replace("-", "_") not in PIPELINES:
            return
        for name, value in self.arguments.items():
            is_right, wanted = CHECKS.get(name, (None, ""))
            if is_right is not None and not is_right(value):
                raise SettingsError(f"--argument {name}={value}: {wanted}")

    def prepare(self, connection: Connection, name: str | None) -> tuple[Cluster, Job]:
        """Upload the pipeline's version and create the experiment on the server.

        Args:
            connection: the server.
            name: name of the run or schedule; None for one made of pipeline, version and time.

        Raises:
            SettingsError: the name cannot be stored; nothing was sent.
            ClusterError: the server is unreachable or refuses.
        """
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        name = name if name is not None else f"{self.pipeline.name}-{self.pipeline.version_name}-{now}"
        check_name("the name", name)
        cluster = Cluster(connection)
        tags = _commit_tags()
        version = cluster.upload(self.pipeline, tags)
        print(f"pipeline {self.pipeline.name}, version {version.name} ({'uploaded' if version.is_new else 'reused'})")
        commit = ", ".join(f"{tag} {value}" for tag, value in tags.items())
        job = Job(
            version=version,
            experiment_id=cluster.find_or_make_experiment(self.job.experiment),
            name=name,
            arguments=self.arguments,
            description=f"Version {version.name} of {self.pipeline.name}{f' ({commit})' if commit else ''}",
            pipeline_root=self.job.pipeline_root,
            service_account=self.job.service_account,
        )
        return cluster, job


def compile_pipeline(pipeline: str, cluster: ClusterOptions, caching: bool | None) -> CompiledPipeline:
    """Compile a pipeline of the project, or read a compiled one from its file.

    Args:
        pipeline: name or file.
        cluster: options of the command; not allowed with a file.
        caching: cache on or off for all tasks; None leaves it as compiled.

    Raises:
        SettingsError: there is no such pipeline; or cluster options were given with a file.
        PipelineError: the file is not a compiled pipeline.
    """
    if pipeline.endswith((".yaml", ".yml")):
        if cluster.are_given:
            raise SettingsError(f"{pipeline}: already compiled; --cluster and -C go with a pipeline's name")
        compiled = read_compiled(Path(pipeline))
    elif pipeline in PIPELINES:
        compiled = parse_compiled(pipeline_text(pipeline, cluster.load()), pipeline)
    else:
        known = ", ".join(PIPELINES)
        raise SettingsError(f"no pipeline {pipeline!r}; there are: {known}; or a compiled one's file, NAME.yaml")
    return compiled if caching is None else compiled.with_caching(caching)


def _commit_tags() -> dict[str, str]:
    """The checkout's commit, for the record; empty outside git."""
    commit, dirty = git_state(ROOT, ignoring=[str(PARAMS)])  # the run has its settings as an argument
    return {"git_commit": commit, "git_dirty": str(bool(dirty)).lower()} if commit else {}
