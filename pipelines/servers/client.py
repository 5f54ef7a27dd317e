"""Client of a Kubeflow Pipelines server for the remote commands: versions, runs, schedules."""

from __future__ import annotations

import functools
import json
import re
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import kfp_server_api as kfp_api

from pipelines.servers import orphans
from pipelines.servers.connection import NOT_CARRIED_OUT, Api, ClusterError, Connection, create, find_namespace
from pipelines.spec import CompiledPipeline, from_server

INSTALLATION_NAMESPACE = "kubeflow"
"""Namespace in which standalone Kubeflow Pipelines runs all tasks."""

RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

PAGE = 100
"""Entries per page of a list."""

NO_ID = "00000000-0000-0000-0000-000000000000"
"""Of nothing on any server."""


@dataclass(frozen=True)
class Version:
    """A pipeline's version on the server."""

    pipeline_id: str
    version_id: str
    name: str
    is_new: bool
    """It was uploaded by this command."""


@dataclass(frozen=True)
class Job:
    """A pipeline version with its arguments, to be run once or on a schedule."""

    version: Version
    experiment_id: str
    name: str
    """Name of the run, or of the schedule."""
    arguments: Mapping[str, Any]
    description: str = ""
    pipeline_root: str | None = None
    """Folder in the object store for what the tasks write; the server's default if None."""
    service_account: str | None = None


@dataclass(frozen=True)
class Schedule:
    """When to run a job repeatedly."""

    cron: str
    """Six fields, the first is seconds."""
    enabled: bool = True
    max_concurrency: int = 1
    start: datetime | None = None
    end: datetime | None = None
    catch_up: bool = False
    """Make up for missed runs (server down, schedule disabled), one after the other."""


class Cluster:
    """A server whose address and credentials have been checked."""

    def __init__(self, connection: Connection) -> None:
        """Check the server's health.

        Raises:
            ClusterError: it is unreachable or refuses; or it is multi-user and no namespace is known.
        """
        self.connection = connection
        self._api = api = Api(connection)
        self._pipelines = kfp_api.PipelineServiceApi(api)
        self._uploads = kfp_api.PipelineUploadServiceApi(api)
        self._experiments = kfp_api.ExperimentServiceApi(api)
        self._runs = kfp_api.RunServiceApi(api)
        self._recurring = kfp_api.RecurringRunServiceApi(api)
        health = kfp_api.HealthzServiceApi(api).healthz_service_get_healthz()
        namespace = find_namespace(connection)
        if health.multi_user and not namespace:
            raise ClusterError(
                f"{connection.url} is shared by several users: name yours with --namespace NAME "
                "(its name is at the top of Kubeflow's page; `kubectl get profiles` lists all)."
            )
        self.pod_namespace = namespace or INSTALLATION_NAMESPACE
        self.is_multi_user = bool(health.multi_user)
        self._namespaced = {"namespace": namespace} if health.multi_user else {}

    # Server and rights -----------------------------------------------------------------------------------------

    def version(self) -> str:
        """The server's version, as ``2.17.0``; empty if it does not say. The API's definition leaves it out."""
        said = json.loads(self._api.get_text("/apis/v2beta1/healthz")).get("tag_name")
        return "" if said in (None, "unknown") else str(said)

    def may_upload(self) -> bool | None:
        """Whether the caller may create pipelines; None if the server does not tell.

        Asks for one with an empty tag, which the server (2.17) refuses after it has checked the right.
        """
        pipeline = kfp_api.V2beta1Pipeline(name="check", display_name="check", tags={"": ""}, **self._namespaced)
        return self._is_allowed(lambda: self._pipelines.pipeline_service_create_pipeline(pipeline), "tag key")

    def may_run(self) -> bool | None:
        """Whether the caller may start runs; None if the server does not tell, as without any experiment.

        Asks for a run of a version that does not exist, which the server (2.17) looks for after it has checked the
        right.
        """
        listed = self._experiments.experiment_service_list_experiments(page_size=1, **self._namespaced)
        if not listed.experiments:
            return None
        run = kfp_api.V2beta1Run(
            display_name="check",
            experiment_id=listed.experiments[0].experiment_id,
            pipeline_version_reference=kfp_api.V2beta1PipelineVersionReference(
                pipeline_id=NO_ID, pipeline_version_id=NO_ID
            ),
        )
        return self._is_allowed(lambda: self._runs.run_service_create_run(run), "fetching manifest")

    def _is_allowed(self, ask: Callable[[], Any], refusal: str) -> bool | None:
        """Whether a request passes the check of rights; ``refusal`` is in the server's message if it fails later."""
        try:
            ask()
        except ClusterError as error:
            if error.status == 403:
                return False
            return True if refusal in str(error) else None
        return True

    # Pipelines and experiments ---------------------------------------------------------------------------------

    def upload(self, pipeline: CompiledPipeline, tags: Mapping[str, str]) -> Version:
        """The pipeline's version, uploaded unless the server has it; creates the pipeline itself if it is missing.

        Raises:
            ClusterError: the server refuses; or the version's name is taken by other content.
        """
        pipeline_id = self._find_or_make_pipeline(pipeline.name)
        name = pipeline.version_name
        found = self._find_version(pipeline_id, name)
        if found is None:
            made = create(
                functools.partial(self._upload_version, pipeline, pipeline_id, name, tags),
                functools.partial(self._find_version, pipeline_id, name),
            )
            return Version(pipeline_id, made.pipeline_version_id, name, is_new=True)
        if pipeline.is_same_as(found.pipeline_spec or {}):
            return Version(pipeline_id, found.pipeline_version_id, name, is_new=False)
        raise ClusterError(
            f"{self.connection.url}: the version {name} of the pipeline {pipeline.name} has other content. Somebody "
            "uploaded it by hand under that name: delete it in the web interface, and submit again."
        )

    def find_or_make_experiment(self, name: str) -> str:
        """Id of the experiment of this name."""

        def find() -> Any | None:
            found = self._experiments.experiment_service_list_experiments(
                filter=_equals("display_name", name), **self._namespaced
            )
            return next(iter(found.experiments or []), None)

        def make() -> Any:
            experiment = kfp_api.V2beta1Experiment(display_name=name, **self._namespaced)
            return self._experiments.experiment_service_create_experiment(experiment)

        return str((find() or create(make, find)).experiment_id)

    def _find_or_make_pipeline(self, name: str) -> str:
        def find() -> Any | None:
            try:
                return self._pipelines.pipeline_service_get_pipeline_by_name(name, **self._namespaced)
            except ClusterError as error:
                if error.status == 404:
                    return None
                raise

        def make() -> Any:
            pipeline = kfp_api.V2beta1Pipeline(name=name, display_name=name, **self._namespaced)
            return self._pipelines.pipeline_service_create_pipeline(pipeline)

        return str((find() or create(make, find)).pipeline_id)

    def _upload_version(self, pipeline: CompiledPipeline, pipeline_id: str, name: str, tags: Mapping[str, str]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{pipeline.name}.yaml"
            file.write_text(pipeline.to_yaml(), encoding="utf-8")
            return self._uploads.upload_pipeline_version(
                str(file), name=name, pipelineid=pipeline_id, tags=json.dumps(dict(tags))
            )

    def _find_version(self, pipeline_id: str, name: str) -> Any | None:
        listed = self._pipelines.pipeline_service_list_pipeline_versions(
            pipeline_id, filter=_equals("display_name", name)
        )
        found = next(iter(listed.pipeline_versions or []), None)
        if found is None:
            return None
        return self._pipelines.pipeline_service_get_pipeline_version(pipeline_id, found.pipeline_version_id)

    # Runs ------------------------------------------------------------------------------------------------------

    def start(self, job: Job) -> str:
        """Start a run exactly once and return its id.

        Names of runs may repeat, so a mark in the description identifies the run if the response was lost.

        Raises:
            ClusterError: the server refuses; or a workflow may be running without a run, which the message explains.
        """
        description = _marked(job.description)

        def find() -> Any | None:
            listed = self._runs.run_service_list_runs(
                experiment_id=job.experiment_id,
                filter=_equals("display_name", job.name),
                sort_by="created_at desc",
                page_size=PAGE,
                **self._namespaced,
            )
            return next((run for run in listed.runs or [] if run.description == description), None)

        def make() -> Any:
            run = kfp_api.V2beta1Run(display_name=job.name, description=description, **_body(job))
            return self._runs.run_service_create_run(run)

        try:
            return str(create(make, find, repeat_after=NOT_CARRIED_OUT).run_id)
        except ClusterError as error:
            if not error.may_be_done:
                raise
            raise ClusterError(f"{error} {orphans.explain_unknown(self, 'workflow', job.name)}") from error

    def has_run(self, run_id: str) -> bool:
        """Whether the server knows a run of this id."""
        try:
            self._runs.run_service_get_run(run_id)
        except ClusterError as error:
            if error.status == 404:
                return False
            raise
        return True

    def run(self, run_id: str) -> Any:
        """A run (``V2beta1Run``).

        Raises:
            ClusterError: there is none, or the server does not answer or refuses.
        """
        try:
            return self._runs.run_service_get_run(run_id)
        except ClusterError as error:
            if error.status == 404:
                raise self._no_run(run_id) from error
            raise

    def find_run(self, run: str) -> str:
        """Id of the newest run of a name; an id is returned as it is.

        Raises:
            ClusterError: no run has that name.
        """
        if RUN_ID.fullmatch(run):
            return run
        found = [each for each in self.runs(PAGE, name=run) if each.display_name == run]  # MySQL ignores case
        if not found:
            raise self._no_run(run)
        return str(found[0].run_id)

    def _no_run(self, run: str) -> ClusterError:
        where = f" in namespace {self.pod_namespace}" if self._namespaced else ""
        return ClusterError(
            f"{self.connection.url}: no run has the id or name {run!r}{where}. "
            "`python -m pipelines list` shows the newest.",
            status=404,
        )

    def runs(self, count: int, name: str | None = None) -> list[Any]:
        """The newest runs (``V2beta1Run``), or those of one name, the newest first; ``count`` at most."""
        listed = self._runs.run_service_list_runs(
            sort_by="created_at desc",
            page_size=count,
            **({"filter": _equals("display_name", name)} if name is not None else {}),
            **self._namespaced,
        )
        return list(listed.runs or [])

    def pipeline_of(self, run: Any) -> CompiledPipeline | None:
        """The pipeline that a run runs; None if its version has been deleted."""
        reference = run.pipeline_version_reference
        if run.pipeline_spec:
            return from_server(run.pipeline_spec)
        if reference is None or not reference.pipeline_version_id:
            return None
        try:
            version = self._pipelines.pipeline_service_get_pipeline_version(
                reference.pipeline_id, reference.pipeline_version_id
            )
        except ClusterError as error:
            if error.status == 404:
                return None
            raise
        return from_server(version.pipeline_spec)

    def workflow(self, run_id: str) -> dict[str, Any] | None:
        """The run's Argo workflow as the server last saw it, from the v1beta1 API; None if the server does not give it.

        The server (``toApiRunDetailV1`` of 2.17) gives it for runs of both APIs. It has what the v2beta1 API leaves
        out: names of nodes, and messages such as ``OOMKilled``.
        """
        try:
            detail = json.loads(self._api.get_text(f"/apis/v1beta1/runs/{run_id}"))
            workflow = json.loads(detail["pipeline_runtime"]["workflow_manifest"])
        except (ClusterError, ValueError, KeyError, TypeError):
            return None
        return workflow if isinstance(workflow, dict) else None

    def stop(self, run_id: str) -> None:
        """Have a run's pods ended; their tasks are not tried again."""
        self._runs.run_service_terminate_run(run_id)

    def retry(self, run_id: str) -> None:
        """Run the failed tasks of a failed or stopped run again, and those after them, in the same run."""
        self._runs.run_service_retry_run(run_id)

    # Schedules -------------------------------------------------------------------------------------------------

    def schedules(self, name: str | None = None) -> list[Any]:
        """The recurring runs (``V2beta1RecurringRun``), or those of one name, oldest first."""
        found: list[Any] = []
        token = ""
        while True:
            page = self._recurring.recurring_run_service_list_recurring_runs(
                page_size=PAGE,
                sort_by="created_at asc",
                **({"filter": _equals("display_name", name)} if name is not None else {}),
                **({"page_token": token} if token else {}),
                **self._namespaced,
            )
            listed = page.recurring_runs or []
            found += [run for run in listed if name in (None, run.display_name)]  # MySQL ignores case
            token = page.next_page_token or ""
            if not token:
                return found

    def schedule(self, job: Job, schedule: Schedule) -> str:
        """Create a recurring run exactly once and return its id."""
        description = _marked(job.description)

        def find() -> Any | None:
            return next((run for run in self.schedules(job.name) if run.description == description), None)

        def make() -> Any:
            recurring = kfp_api.V2beta1RecurringRun(
                display_name=job.name,
                description=description,
                max_concurrency=str(schedule.max_concurrency),
                mode="ENABLE" if schedule.enabled else "DISABLE",
                no_catchup=not schedule.catch_up,
                trigger=kfp_api.V2beta1Trigger(
                    cron_schedule=kfp_api.V2beta1CronSchedule(
                        cron=schedule.cron, start_time=schedule.start, end_time=schedule.end
                    )
                ),
                **_body(job),
            )
            return self._recurring.recurring_run_service_create_recurring_run(recurring)

        try:
            return str(create(make, find, repeat_after=NOT_CARRIED_OUT).recurring_run_id)
        except ClusterError as error:
            if not error.may_be_done:
                raise
            raise ClusterError(f"{error} {orphans.explain_unknown(self, 'scheduledworkflow')}") from error

    def delete_schedule(self, recurring_run_id: str) -> None:
        """Delete a recurring run; its runs stay. It is no error if it does not exist."""
        try:
            self._recurring.recurring_run_service_delete_recurring_run(recurring_run_id)
        except ClusterError as error:
            if error.status != 404:
                raise


def _body(job: Job) -> dict[str, Any]:
    """What a run and a recurring run have in common."""
    return {
        "experiment_id": job.experiment_id,
        "pipeline_version_reference": kfp_api.V2beta1PipelineVersionReference(
            pipeline_id=job.version.pipeline_id, pipeline_version_id=job.version.version_id
        ),
        "runtime_config": kfp_api.V2beta1RuntimeConfig(parameters=dict(job.arguments), pipeline_root=job.pipeline_root),
        "service_account": job.service_account,
    }


def _marked(description: str) -> str:
    return f"{description} [request {uuid.uuid4().hex}]".lstrip()


def _equals(key: str, value: str) -> str:
    """A filter of the API, ``v2beta1Filter``, as JSON.

    The server decodes it as part of a URL once more after HTTP has done so (``parseAPIFilter`` of Kubeflow Pipelines
    2.17), which turns ``+`` into a space and ``%`` into an error. Written as JSON escapes, they mean the same with and
    without that.
    """
    text = json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "string_value": value}]})
    return text.replace("+", r"\u002b").replace("%", r"\u0025")
