"""The command ``schedule``: run a pipeline repeatedly."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipelines.options import ClusterOptions, JobOptions, Pipeline, ServerOptions, SettingsOptions, expand
from yolact.errors import SettingsError
from yolact_ops.commands.options import AsJson


class _ScheduleGroup(TyperGroup):
    """``schedule [PIPELINE] --cron ...`` is short for ``schedule create [PIPELINE] --cron ...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["create", *args]
        return super().parse_args(ctx, args)


schedules = typer.Typer(
    cls=_ScheduleGroup, no_args_is_help=True, help="Run a pipeline repeatedly: `schedule PIPELINE --cron ...`."
)


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
    from pipelines.servers.client import Schedule
    from pipelines.servers.connection import ClusterError
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
    from pipelines.servers.client import Cluster

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
    from pipelines.servers.client import Cluster
    from pipelines.servers.connection import ClusterError

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
