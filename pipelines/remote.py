"""The commands that work on a cluster: ``submit``, ``schedule``, ``status``, ``logs``.

Exit codes: 0 done; 1 refused or out of reach, the message says what to do; 2 wrong usage; 3 the run that was waited for
failed or was cancelled; 130 waiting was interrupted, the run goes on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from pipelines.commands import ClusterChanges, ClusterFile
from pipelines.config import CLUSTER
from yolact.errors import SettingsError
from yolact_ops.settings.presets import PARAMS

if TYPE_CHECKING:
    from pipelines.client import Cluster, Job
    from pipelines.connection import Connection
    from pipelines.runs import RunStatus
    from pipelines.spec import CompiledPipeline

REPOSITORY = Path(__file__).resolve().parents[1]

SETTINGS_PARAMETER = "params"
"""The pipelines' parameter that takes all settings."""

REVISION_PARAMETERS = ("data_repository", "data_path", "data_revision")
"""The pipelines' parameters that name a revision of the data in place of ``data.source``."""

CODE_PARAMETER = "code_version"
"""The pipelines' parameter that takes the version of the code."""

IN_CLUSTER_HOST = "http://ml-pipeline-ui.kubeflow.svc.cluster.local"
"""Where Kubeflow Pipelines is for a pod of the same cluster (kubeflow.org, "Connect the SDK to the API")."""

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubeflow puts a token for Pipelines into a pod that asks for one."""

T = TypeVar("T")

app = typer.Typer()


class _ScheduleGroup(TyperGroup):
    """``schedule [PIPELINE] --cron ...`` is short for ``schedule create [PIPELINE] --cron ...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["create", *args]
        return super().parse_args(ctx, args)


schedules = typer.Typer(
    cls=_ScheduleGroup, no_args_is_help=True, help="Run a pipeline again and again: `schedule PIPELINE --cron ...`."
)
app.add_typer(schedules, name="schedule")


def _prefer_command_line(context: typer.Context, parameter: typer.CallbackParam, value: T) -> T | None:
    """Of ``--token`` and ``--token-file``, the one on the command line, whatever the environment has of the other.

    What is on the command line is read first.
    """
    other = "token_file" if parameter.name == "token" else "token"
    own, others = (context.get_parameter_source(str(name)) for name in (parameter.name, other))
    if value is None or others is None or others.name != "COMMANDLINE":
        return value
    if own is not None and own.name == "COMMANDLINE":
        raise typer.BadParameter("--token and --token-file: give one of them")
    return None


Pipeline = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A pipeline of this project, or a compiled one's file (.yaml).")
]
Host = Annotated[
    str | None,
    typer.Option(
        envvar="KF_PIPELINES_ENDPOINT",
        help="Address of Kubeflow Pipelines: https://HOST/pipeline in Kubeflow, or of its own web page.",
        show_default=False,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", envvar="KF_PIPELINES_NAMESPACE", help="Yours, where several users share a cluster."
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        "--existing-token",
        envvar="KF_PIPELINES_TOKEN",
        callback=_prefer_command_line,
        help="Bearer token. Better in the variable or in a file: all users of a machine see command lines.",
        show_default=False,
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="KF_PIPELINES_SA_TOKEN_PATH",
        callback=_prefer_command_line,
        exists=True,
        dir_okay=False,
        readable=True,
        help="File with a token, as a service account's; read again for each request.",
        show_default=False,
    ),
]
Cookie = Annotated[
    str | None,
    typer.Option(
        envvar="KF_PIPELINES_COOKIE",
        help="A browser's session behind a login page, NAME=VALUE; better in the variable.",
        show_default=False,
    ),
]
CaCert = Annotated[
    Path | None,
    typer.Option(
        "--ssl-ca-cert",
        envvar="SSL_CERT_FILE",
        exists=True,
        dir_okay=False,
        help="Certificates to trust, PEM, for a server whose own is not signed by a public authority.",
        show_default=False,
    ),
]
UiHost = Annotated[
    str | None,
    typer.Option(envvar="KF_PIPELINES_UI_ENDPOINT", help="Address of the web page, if not --host.", show_default=False),
]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help="Settings of this preset; `yolact preset list` names them.")
]
ParamsFile = Annotated[Path, typer.Option("--params", help="Settings file, if no preset is named.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-S", "--set-param", metavar="KEY=VALUE", help="Change a setting, as in `dvc exp run -S`."),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("-A", "--argument", metavar="NAME=VALUE", help="A parameter of the pipeline, besides the settings."),
]
Experiment = Annotated[str, typer.Option(help="Kubeflow's folder for runs; made if it is not there.")]
Caching = Annotated[
    bool | None,
    typer.Option(
        "--enable-caching/--no-enable-caching",
        help="Cache on or off for all tasks; if not said, each task has what the pipeline says.",
        show_default=False,
    ),
]
PipelineRoot = Annotated[
    str | None, typer.Option(help="Folder in the object store for the tasks' outputs, as s3://bucket/folder.")
]
ServiceAccount = Annotated[str | None, typer.Option(help="Kubernetes service account that the tasks run as.")]


@app.command()
def submit(
    pipeline: Pipeline = "training",
    *,
    host: Host = None,
    experiment: Experiment = "yolact",
    wait: Annotated[bool, typer.Option("--wait", help="Show the tasks' states until the run is over.")] = False,
    overrides: Overrides = None,
    preset: Preset = None,
    params: ParamsFile = PARAMS,
    arguments: Arguments = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; made from version and time if none.")] = None,
    enable_caching: Caching = None,
    cluster_file: ClusterFile = CLUSTER,
    cluster_changes: ClusterChanges = None,
    pipeline_root: PipelineRoot = None,
    service_account: ServiceAccount = None,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    ssl_ca_cert: CaCert = None,
    ui_host: UiHost = None,
) -> None:
    """Run a pipeline on a cluster.

    Settings are checked before anything is sent. The pipeline is uploaded as a version that has the git commit's name;
    one that is there already is used.
    """
    connection = _connection(host, namespace, token, token_file, cookie, ssl_ca_cert, ui_host)
    order = _Order(
        _compile(pipeline, cluster_file, cluster_changes or [], enable_caching),
        arguments or [],
        preset,
        params,
        overrides or [],
    )
    from pipelines import watch

    cluster, job = order.prepare(connection, experiment, run_name, pipeline_root, service_account)
    run_id = cluster.start(job)
    print(f"run {job.name}\n  id  {run_id}\n  at  {connection.run_address(run_id)}", flush=True)
    if not wait:
        print(f"Its state: python -m pipelines status {run_id}")
        return
    try:
        run = watch.wait(cluster, run_id, _say)
    except KeyboardInterrupt:
        print(f"\nNot waiting any more; the run goes on: python -m pipelines status {run_id}", file=sys.stderr)
        raise typer.Exit(130) from None
    watch.check_success(cluster, run)
    print(f"run {run.name} succeeded")


@schedules.command("create")
def schedule_create(
    pipeline: Pipeline = "training",
    *,
    cron: Annotated[
        str,
        typer.Option(
            help="When: '0 3 * * *' is 3 o'clock each day, in the cluster's time zone (UTC, if nobody changed it)."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the schedule; the pipeline's if none.")] = None,
    enable: Annotated[bool, typer.Option("--enable/--disable", help="Whether it starts runs from now on.")] = True,
    max_concurrency: Annotated[int, typer.Option(min=1, max=10, help="Runs that may go on at once.")] = 1,
    start: Annotated[str | None, typer.Option(help="No run before: 2027-01-31 or 2027-01-31T18:00+01:00.")] = None,
    end: Annotated[str | None, typer.Option(help="No run after.")] = None,
    catch_up: Annotated[bool, typer.Option("--catch-up", help="Make up for runs that were missed.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a schedule of this name.")] = False,
    host: Host = None,
    experiment: Experiment = "yolact",
    overrides: Overrides = None,
    preset: Preset = None,
    params: ParamsFile = PARAMS,
    arguments: Arguments = None,
    enable_caching: Caching = None,
    cluster_file: ClusterFile = CLUSTER,
    cluster_changes: ClusterChanges = None,
    pipeline_root: PipelineRoot = None,
    service_account: ServiceAccount = None,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    ssl_ca_cert: CaCert = None,
    ui_host: UiHost = None,
) -> None:
    """Run a pipeline again and again. The word `create` may be left out."""
    connection = _connection(host, namespace, token, token_file, cookie, ssl_ca_cert, ui_host)
    order = _Order(
        _compile(pipeline, cluster_file, cluster_changes or [], enable_caching),
        arguments or [],
        preset,
        params,
        overrides or [],
    )
    from pipelines.client import Schedule
    from pipelines.connection import ClusterError
    from pipelines.cron import to_kubeflow

    when = Schedule(
        to_kubeflow(cron), enable, max_concurrency, _read_time("--start", start), _read_time("--end", end), catch_up
    )
    if when.start and when.end and when.start >= when.end:
        raise SettingsError(f"--end {end}: must be later than --start {start}")
    cluster, job = order.prepare(connection, experiment, name or order.pipeline.name, pipeline_root, service_account)
    old = cluster.schedules(job.name)
    if old and not replace:
        raise ClusterError(
            f"there is a schedule {job.name!r} already ({_describe_schedule(old[0])}). Replace it with --replace, or "
            "choose another --name"
        )
    schedule_id = cluster.schedule(job, when)
    for other in old:  # only now: had the new one been refused, the old one would go on
        cluster.delete_schedule(other.recurring_run_id)
    state = "enabled" if enable else "disabled"
    print(f"schedule {job.name}: cron {when.cron}, {state}{', in place of the old one' if old else ''}")
    print(f"  id  {schedule_id}\n  at  {connection.ui_url}/#/recurringrun/details/{schedule_id}")


@schedules.command("list")
def schedule_list(
    host: Host = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    ssl_ca_cert: CaCert = None,
) -> None:
    """Name the schedules."""
    from pipelines.client import Cluster

    cluster = Cluster(_connection(host, namespace, token, token_file, cookie, ssl_ca_cert, None))
    found = cluster.schedules()
    if as_json:
        print(json.dumps([_schedule_to_json(one) for one in found], indent=2))
        return
    for one in found:
        print(f"{one.display_name}: {_describe_schedule(one)}  {one.recurring_run_id}")
    if not found:
        print("no schedules")


@schedules.command("delete")
def schedule_delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name or id; `schedule list` has them.")],
    host: Host = None,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    ssl_ca_cert: CaCert = None,
) -> None:
    """Remove a schedule; runs that it started stay."""
    from pipelines.client import Cluster
    from pipelines.connection import ClusterError

    cluster = Cluster(_connection(host, namespace, token, token_file, cookie, ssl_ca_cert, None))
    everything = cluster.schedules()
    found = [one for one in everything if name in (one.display_name, one.recurring_run_id)]
    if not found:
        names = ", ".join(sorted({one.display_name for one in everything})) or "none"
        raise ClusterError(f"no schedule {name!r}; there are: {names}")
    if len(found) > 1:
        ids = ", ".join(one.recurring_run_id for one in found)
        raise ClusterError(f"{len(found)} schedules are named {name!r}; give the id of one: {ids}")
    cluster.delete_schedule(found[0].recurring_run_id)
    print(f"schedule {found[0].display_name} deleted")


RunName = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or its name (the newest of that name).")]


@app.command()
def status(
    run: RunName,
    host: Host = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    ssl_ca_cert: CaCert = None,
    ui_host: UiHost = None,
) -> None:
    """Show how a run and its tasks stand."""
    from pipelines.client import Cluster

    connection = _connection(host, namespace, token, token_file, cookie, ssl_ca_cert, ui_host)
    found = Cluster(connection).find_run(run)
    if as_json:
        print(json.dumps({**found.to_json(), "address": connection.run_address(found.run_id)}, indent=2))
        return
    _print_status(found, connection)


@app.command()
def logs(
    run: RunName,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="This task's only; if none, those of the failed tasks, or of all."),
    ] = None,
    host: Host = None,
    namespace: Namespace = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    ssl_ca_cert: CaCert = None,
    ui_host: UiHost = None,
) -> None:
    """Print what the tasks of a run wrote."""
    from pipelines.client import Cluster
    from pipelines.connection import ClusterError
    from pipelines.logs import Pod, read_log

    connection = _connection(host, namespace, token, token_file, cookie, ssl_ca_cert, ui_host)
    cluster = Cluster(connection)
    found = cluster.find_run(run)
    chosen = [one for one in found.tasks if one.name == task] if task else found.failed_tasks or found.tasks
    if not chosen:
        names = ", ".join(one.name for one in found.tasks) or "none yet"
        wanted = f"task {task!r}" if task else "tasks"
        raise ClusterError(f"run {found.name} has no {wanted}; there are: {names}")
    pods = [(one.name, pod) for one in chosen for pod in one.pods]
    if not pods:
        raise ClusterError(f"no pod has begun to work for {', '.join(one.name for one in chosen)} (cached, or waiting)")
    failures = []
    for name, pod_name in pods:
        print(f"==> {name}: pod {pod_name} <==", file=sys.stderr)
        try:
            print(read_log(connection, Pod(found.run_id, pod_name, cluster.pod_namespace)), flush=True)
        except ClusterError as error:
            failures.append(str(error))
    if failures:
        raise ClusterError("\n".join(failures))


class _Order:
    """What the user wants to run, checked as far as that is possible without the server."""

    def __init__(
        self, pipeline: CompiledPipeline, arguments: list[str], preset: str | None, params: Path, overrides: list[str]
    ) -> None:
        from components.source.step import choose_source
        from pipelines.spec import parse_arguments, version_names
        from yolact_ops.commands.task import as_text
        from yolact_ops.lineage.code import code_version
        from yolact_ops.lineage.git import git_state
        from yolact_ops.settings.presets import choose

        self.pipeline = pipeline
        self.arguments = parse_arguments(arguments, pipeline)
        if SETTINGS_PARAMETER in pipeline.parameters:
            settings = choose(preset, params, overrides)
            repository, path, revision = (self.arguments.get(name, "") for name in REVISION_PARAMETERS)
            choose_source(settings, repository=repository, path=path, revision=revision)  # refuses passwords
            self.arguments[SETTINGS_PARAMETER] = as_text(settings)
        elif preset or overrides:
            raise SettingsError(
                f"{pipeline.origin}: the pipeline {pipeline.name} takes no settings; leave out --preset, -S"
            )
        if CODE_PARAMETER in pipeline.parameters:
            self.arguments.setdefault(CODE_PARAMETER, code_version())
        pipeline.check_arguments(self.arguments)
        self.commit, dirty = git_state(REPOSITORY, ignoring=[str(PARAMS)])  # settings travel with the run
        self.dirty = bool(dirty)
        self.names = version_names(pipeline, self.commit, dirty=self.dirty)

    def prepare(
        self,
        connection: Connection,
        experiment: str,
        name: str | None,
        pipeline_root: str | None,
        service_account: str | None,
    ) -> tuple[Cluster, Job]:
        """Bring the pipeline's version and the experiment onto the server."""
        from pipelines.client import Cluster, Job

        if self.dirty:
            print("The code has changes that are not committed; the version's name says so.", file=sys.stderr)
        cluster = Cluster(connection)
        tags = {"git_commit": self.commit, "git_dirty": str(self.dirty).lower()} if self.commit else {}
        version = cluster.upload(self.pipeline, self.names, tags)
        print(f"pipeline {self.pipeline.name}, version {version.name} ({'uploaded' if version.is_new else 'reused'})")
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        job = Job(
            version=version,
            experiment_id=cluster.find_or_make_experiment(experiment),
            name=name or f"{self.pipeline.name}-{version.name}-{now}",
            arguments=self.arguments,
            description=f"Version {version.name} of {self.pipeline.name}",
            pipeline_root=pipeline_root,
            service_account=service_account,
        )
        return cluster, job


def _compile(pipeline: str, cluster_file: Path, cluster_changes: list[str], caching: bool | None) -> CompiledPipeline:
    """Compile a pipeline of the project, or read a compiled one's file."""
    from pipelines.compiler import PIPELINES, pipeline_text
    from pipelines.config import load_cluster
    from pipelines.spec import parse_compiled, read_compiled

    if pipeline.endswith((".yaml", ".yml")):
        if cluster_changes or cluster_file != CLUSTER:
            raise SettingsError(f"{pipeline}: is compiled already; --cluster and -C go with a pipeline's name")
        compiled = read_compiled(Path(pipeline))
    elif pipeline in PIPELINES:
        compiled = parse_compiled(pipeline_text(pipeline, load_cluster(cluster_file, cluster_changes)), pipeline)
    else:
        known = ", ".join(PIPELINES)
        raise SettingsError(f"no pipeline {pipeline!r}; there are: {known}; or a compiled one's file, NAME.yaml")
    return compiled if caching is None else compiled.with_caching(caching)


def _connection(
    host: str | None,
    namespace: str | None,
    token: str | None,
    token_file: Path | None,
    cookie: str | None,
    ssl_ca_cert: Path | None,
    ui_host: str | None,
) -> Connection:
    from pipelines.connection import IN_POD_NAMESPACE, Connection

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of each repeated request
    if not host and IN_POD_NAMESPACE.exists():
        host = IN_CLUSTER_HOST
    if not host:
        raise SettingsError(
            "where is the cluster? Give --host ADDRESS, or set KF_PIPELINES_ENDPOINT. For a look without a public "
            "address: `kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80`, then --host http://127.0.0.1:8080"
        )
    if not (token or token_file or cookie) and os.access(SERVICE_ACCOUNT_TOKEN, os.R_OK):
        token_file = SERVICE_ACCOUNT_TOKEN
    return Connection(host, namespace, token, token_file, cookie, ssl_ca_cert, ui_host)


def _say(text: str) -> None:
    print(f"{datetime.now().astimezone():%H:%M:%S}  {text}", flush=True)


def _read_time(option: str, text: str | None) -> datetime | None:
    """A date or time in ISO 8601; without an offset it is UTC."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(f"{option} {text}: not a time; write 2027-01-31 or 2027-01-31T18:00+01:00") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _describe_schedule(recurring: Any) -> str:
    schedule = _schedule_to_json(recurring)
    when = f"cron {schedule['cron']}" if schedule["cron"] else "periodic"
    return f"{when}, {schedule['state'].lower()}"


def _schedule_to_json(recurring: Any) -> dict[str, Any]:
    cron = recurring.trigger.cron_schedule if recurring.trigger else None
    return {
        "name": recurring.display_name,
        "id": recurring.recurring_run_id,
        "cron": cron.cron if cron else None,
        "start": cron.start_time.isoformat() if cron and cron.start_time else None,
        "end": cron.end_time.isoformat() if cron and cron.end_time else None,
        "state": recurring.status or "UNKNOWN",
        "experiment_id": recurring.experiment_id,
    }


def _print_status(run: RunStatus, connection: Connection) -> None:
    from pipelines.watch import describe_state

    print(f"run {run.name}: {run.state.lower()}{f' ({run.message})' if run.message else ''}")
    print(f"  id       {run.run_id}")
    for label, moment in (("created", run.created), ("finished", run.finished)):
        if moment:
            print(f"  {label:8} {moment.astimezone():%Y-%m-%d %H:%M:%S}")
    print(f"  at       {connection.run_address(run.run_id)}")
    width = max((len(task.name) for task in run.tasks), default=0)
    for task in run.tasks:
        began = f"{task.started.astimezone():%H:%M:%S}" if task.started else " " * 8
        print(f"  {began}  {task.name:{width}}  {describe_state(task)}{f': {task.message}' if task.message else ''}")
    if not run.tasks:
        print("  no task has begun")
