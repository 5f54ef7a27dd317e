"""The commands for a cluster: ``submit``, ``schedule``, ``status``, ``logs``.

Exit codes: 0 success; 1 refused or unreachable, the message says what to do; 2 wrong usage; 3 with ``--wait``: the run
failed or was cancelled; 130 interrupted while waiting, the run continues.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pipelines.options import ClusterOptions, JobOptions, ServerOptions, SettingsOptions, expand
from yolact.errors import SettingsError
from yolact_ops.commands.options import AsJson

if TYPE_CHECKING:
    from pipelines.connection import Connection
    from pipelines.runs import RunStatus

app = typer.Typer()


class _ScheduleGroup(TyperGroup):
    """``schedule [PIPELINE] --cron ...`` is short for ``schedule create [PIPELINE] --cron ...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["create", *args]
        return super().parse_args(ctx, args)


schedules = typer.Typer(
    cls=_ScheduleGroup, no_args_is_help=True, help="Run a pipeline repeatedly: `schedule PIPELINE --cron ...`."
)
app.add_typer(schedules, name="schedule")

Pipeline = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A pipeline of this project, or a compiled one's file (.yaml).")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or its name (the newest of that name).")]


@app.command()
@expand
def submit(
    pipeline: Pipeline = "training",
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Show the tasks' states until the run ends.")] = False,
    run_name: Annotated[
        str | None, typer.Option(help="Name of the run; by default made from version and time.")
    ] = None,
    settings: SettingsOptions,
    job: JobOptions,
    cluster: ClusterOptions,
    server: ServerOptions,
) -> None:
    """Run a pipeline on a cluster.

    Checks the settings before anything is sent. Uploads the pipeline as a version named by a hash of its content;
    reuses an unchanged one.
    """
    from pipelines import watch
    from pipelines.submission import Submission

    connection = server.connection()
    submission = Submission(pipeline, cluster, settings, job)
    client, order = submission.prepare(connection, run_name)
    run_id = client.start(order)
    print(f"run {order.name}\n  id  {run_id}\n  at  {connection.run_address(run_id)}", flush=True)
    if not wait:
        print(f"Its state: python -m pipelines status {run_id}")
        return
    try:
        run = watch.wait(client, run_id, _report)
    except KeyboardInterrupt:
        print(f"\nStopped waiting; the run continues: python -m pipelines status {run_id}", file=sys.stderr)
        raise typer.Exit(130) from None
    watch.check_success(client, run)
    print(f"run {run.name} succeeded")


@schedules.command("create")
@expand
def schedule_create(
    pipeline: Pipeline = "training",
    *,
    cron: Annotated[
        str,
        typer.Option(help="When: '0 3 * * *' is 3 o'clock each day, in the cluster's time zone (UTC by default)."),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the schedule; by default the pipeline's.")] = None,
    enable: Annotated[bool, typer.Option("--enable/--disable", help="Whether it starts runs.")] = True,
    max_concurrency: Annotated[int, typer.Option(min=1, max=10, help="Maximum number of simultaneous runs.")] = 1,
    start: Annotated[str | None, typer.Option(help="No run before: 2027-01-31 or 2027-01-31T18:00+01:00.")] = None,
    end: Annotated[str | None, typer.Option(help="No run after.")] = None,
    catch_up: Annotated[bool, typer.Option("--catch-up", help="Make up for missed runs.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a schedule of this name.")] = False,
    settings: SettingsOptions,
    job: JobOptions,
    cluster: ClusterOptions,
    server: ServerOptions,
) -> None:
    """Run a pipeline repeatedly. The word `create` is optional."""
    from pipelines.client import Schedule
    from pipelines.connection import ClusterError
    from pipelines.submission import Submission

    connection = server.connection()
    when = Schedule(
        _six_fields(cron), enable, max_concurrency, _read_time("--start", start), _read_time("--end", end), catch_up
    )
    if when.start and when.end and when.start >= when.end:
        raise SettingsError(f"--end {end}: must be later than --start {start}")
    submission = Submission(pipeline, cluster, settings, job)
    client, order = submission.prepare(connection, name or submission.pipeline.name)
    old = client.schedules(order.name)
    if old and not replace:
        raise ClusterError(
            f"there is already a schedule {order.name!r} ({_describe_schedule(old[0])}). Replace it with --replace, or "
            "choose another --name"
        )
    schedule_id = client.schedule(order, when)
    for other in old:  # last, to keep the old one if the new one is refused
        client.delete_schedule(other.recurring_run_id)
    state = "enabled" if enable else "disabled"
    print(f"schedule {order.name}: cron {when.cron}, {state}{', replacing the old one' if old else ''}")
    print(f"  id  {schedule_id}\n  at  {connection.ui_url}/#/recurringrun/details/{schedule_id}")


@schedules.command("list")
@expand
def schedule_list(*, as_json: AsJson = False, server: ServerOptions) -> None:
    """List the schedules."""
    from pipelines.client import Cluster

    found = Cluster(server.connection()).schedules()
    if as_json:
        print(json.dumps([_schedule_to_json(one) for one in found], indent=2))
        return
    for one in found:
        print(f"{one.display_name}: {_describe_schedule(one)}  {one.recurring_run_id}")
    if not found:
        print("no schedules")


@schedules.command("delete")
@expand
def schedule_delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name or id; `schedule list` shows them.")],
    *,
    server: ServerOptions,
) -> None:
    """Delete a schedule; the runs that it started stay."""
    from pipelines.client import Cluster
    from pipelines.connection import ClusterError

    client = Cluster(server.connection())
    everything = client.schedules()
    found = [one for one in everything if name in (one.display_name, one.recurring_run_id)]
    if not found:
        names = ", ".join(sorted({one.display_name for one in everything})) or "none"
        raise ClusterError(f"no schedule {name!r}; there are: {names}")
    if len(found) > 1:
        ids = ", ".join(one.recurring_run_id for one in found)
        raise ClusterError(f"{len(found)} schedules are named {name!r}; give the id of one: {ids}")
    client.delete_schedule(found[0].recurring_run_id)
    print(f"schedule {found[0].display_name} deleted")


@app.command()
@expand
def status(run: RunName, *, as_json: AsJson = False, server: ServerOptions) -> None:
    """Show the state of a run and its tasks."""
    from pipelines.client import Cluster

    connection = server.connection()
    found = Cluster(connection).find_run(run)
    if as_json:
        print(json.dumps({**found.to_json(), "address": connection.run_address(found.run_id)}, indent=2))
        return
    _print_status(found, connection)


@app.command()
@expand
def logs(
    run: RunName,
    *,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this task; by default the failed tasks, or all."),
    ] = None,
    server: ServerOptions,
) -> None:
    """Print the logs of a run's tasks."""
    from pipelines.client import Cluster
    from pipelines.connection import ClusterError
    from pipelines.logs import Pod, read_log

    connection = server.connection()
    client = Cluster(connection)
    found = client.find_run(run)
    chosen = [one for one in found.tasks if one.name == task] if task else found.failed_tasks or found.tasks
    if not chosen:
        names = ", ".join(one.name for one in found.tasks) or "none yet"
        wanted = f"task {task!r}" if task else "tasks"
        raise ClusterError(f"run {found.name} has no {wanted}; there are: {names}")
    pods = [(one.name, pod) for one in chosen for pod in one.pods]
    if not pods:
        raise ClusterError(f"no pod has started for {', '.join(one.name for one in chosen)} (cached, or waiting)")
    failures = []
    for name, pod_name in pods:
        print(f"==> {name}: pod {pod_name} <==", file=sys.stderr)
        try:
            print(read_log(connection, Pod(found.run_id, pod_name, client.pod_namespace)), flush=True)
        except ClusterError as error:
            failures.append(str(error))
    if failures:
        raise ClusterError("\n".join(failures))


def _six_fields(cron: str) -> str:
    """Convert a cron expression to Kubeflow Pipelines' form (github.com/robfig/cron, version 1): seconds first.

    That parser also accepts five fields, but as seconds to month: ``0 3 * * *``, 3 o'clock in every crontab, would be
    the third minute of each hour. Words such as ``@daily`` are kept; the server checks the fields themselves.

    Raises:
        SettingsError: it has another number of fields.
    """
    fields = cron.split()
    if fields and fields[0].startswith("@"):
        return " ".join(fields)
    if len(fields) == 5:
        fields.insert(0, "0")
    if len(fields) != 6:
        raise SettingsError(
            f"--cron {cron!r}: has {len(fields)} fields, not 5 (minute, hour, day of the month, month, day of the "
            "week) or 6 (second in front). Put it in quotes: --cron '0 3 * * *' is 3 o'clock each day"
        )
    return " ".join(fields)


def _report(text: str) -> None:
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
        print("  no task has started")
