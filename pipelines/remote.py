"""The commands for a cluster: ``check``, ``submit``, ``wait``, ``status``, ``list``, ``logs``, ``stop``, ``retry``.

Exit codes: 0 success; 1 refused or unreachable, the message says what to do; 2 wrong usage; 3 while waiting: the run
failed or was stopped; 130 interrupted while waiting, the run continues.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.options import (
    ClusterOptions,
    JobOptions,
    Pipeline,
    ServerOptions,
    ServiceAccount,
    SettingsOptions,
    expand,
)
from pipelines.schedules import schedules
from yolact_ops.commands.options import AsJson

if TYPE_CHECKING:
    from pipelines.status.reader import RunReader
    from pipelines.status.runs import RunStatus, TaskStatus

app = typer.Typer()
app.add_typer(schedules, name="schedule")

FOLLOW_INTERVAL = 5.0
"""Seconds between two looks at a log that is followed."""

FOLLOW_PATIENCE = 120.0
"""Seconds without a log after which following ends."""

PIPED_WIDTH = 240
"""Columns of a table in a pipe or a file."""

RunName = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or its name (the newest of that name).")]
Retries = Annotated[
    int,
    typer.Option(
        min=0,
        help="While waiting: retry the run up to so many times if it fails for a cause that may pass, such as a lost "
        "node or lack of memory.",
    ),
]


@app.command()
@expand
def check(
    *,
    deep: Annotated[
        bool, typer.Option("--deep", help="Run a small task, too, that tries MLflow, S3, the volume and the GPU.")
    ] = False,
    folder: Annotated[
        str | None, typer.Option(metavar="s3://BUCKET/FOLDER", help="With --deep: a folder in S3 to list.")
    ] = None,
    service_account: ServiceAccount = None,
    as_json: AsJson = False,
    cluster: ClusterOptions,
    server: ServerOptions,
) -> None:
    """Check a cluster before the first run.

    Prints what is there, what is missing, and the command that mends it. The exit code is 1 if there is a failure.
    """
    from pipelines.checks.check import check_cluster
    from pipelines.checks.finding import Level, count_levels

    if folder and not deep:
        raise typer.BadParameter("--folder needs --deep: a pod lists it")
    found = []
    config = cluster.load()
    for one in check_cluster(server.connection(), config, service_account, deep=deep, folder=folder):
        found.append(one)
        if not as_json:
            print("\n".join(one.lines()), flush=True)
    if as_json:
        print(json.dumps([one.to_json() for one in found], indent=2))
    else:
        print(count_levels(found))
    if any(one.level is Level.FAILURE for one in found):
        raise typer.Exit(1)


@app.command()
@expand
def submit(
    pipeline: Pipeline = "training",
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Show the tasks until the run ends.")] = False,
    retries: Retries = 0,
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
    from pipelines.submission import Submission

    if retries and not wait:
        raise typer.BadParameter("--retries needs --wait: this command retries the run")
    connection = server.connection()
    submission = Submission(pipeline, cluster, settings, job)
    client, order = submission.prepare(connection, run_name)
    run_id = client.start(order)
    print(f"run {order.name}\n  id  {run_id}\n  at  {connection.run_address(run_id)}", flush=True)
    if not wait:
        print(f"Its state: python -m pipelines status {run_id}")
        return
    from pipelines.status.reader import RunReader

    _wait(RunReader(client), run_id, retries)


@app.command("wait")
@expand
def wait_command(run: RunName, *, retries: Retries = 0, server: ServerOptions) -> None:
    """Show the tasks of a run until it ends, with what they print."""
    reader = _reader(server)
    _wait(reader, reader.cluster.find_run(run), retries)


@app.command()
@expand
def status(run: RunName, *, as_json: AsJson = False, server: ServerOptions) -> None:
    """Show the state of a run and its tasks, and why it failed."""
    from pipelines.status.display import describe_run, explain_failure
    from pipelines.status.runs import State

    reader = _reader(server)
    found = reader.read(reader.cluster.find_run(run))
    address = reader.cluster.connection.run_address(found.run_id)
    if as_json:
        print(json.dumps({**found.to_json(), "address": address}, indent=2))
        return
    print("\n".join(describe_run(found)))
    if found.state is State.FAILED:
        print("\n".join(["", *explain_failure(found)]))
    print(f"See {address}")


@app.command("list")
@expand
def list_command(
    *,
    count: Annotated[int, typer.Option("--count", min=1, max=100, help="How many, the newest first.")] = 10,
    as_json: AsJson = False,
    server: ServerOptions,
) -> None:
    """List the newest runs.

    Shows state, age, MLflow run and registered version; warns of workflows that belong to no run.
    """
    from rich.console import Console

    from pipelines.status.listing import list_runs, make_table, warn_of_orphans

    reader = _reader(server)
    found = list_runs(reader, count)
    if as_json:
        print(json.dumps([one.to_json() for one in found], indent=2))
    elif found:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = PIPED_WIDTH
        console.print(make_table(found))
    else:
        print("no runs")
    for line in warn_of_orphans(reader.cluster):
        print(line, file=sys.stderr)


@app.command()
@expand
def logs(
    run: RunName,
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK", help="Only this task, as `status` names it; by default the failed tasks, or all."
        ),
    ] = None,
    *,
    attempt: Annotated[int | None, typer.Option("--try", min=1, help="Only this try; by default the last one.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the task ends.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="With the lines of Kubeflow's launcher.")] = False,
    server: ServerOptions,
) -> None:
    """Print the logs of a run's tasks."""
    from pipelines.servers.connection import ClusterError

    reader = _reader(server)
    found = reader.read(reader.cluster.find_run(run))
    chosen = _choose_tasks(found, task)
    if follow and attempt is not None:
        raise typer.BadParameter("--follow shows each try; leave out --try")
    if follow and len(chosen) != 1:
        chosen = [one for one in chosen if not one.is_over][:1] or chosen[-1:]
    if follow:
        _follow(reader, found.run_id, chosen[0].name, raw=raw)
        return
    failures = []
    for one in chosen:
        if attempt is not None and attempt > len(one.attempts):
            raise ClusterError(f"{one.name}: has had {len(one.attempts)} tries, not {attempt}")
        node = one.attempts[-1 if attempt is None else attempt - 1]
        number = len(one.attempts) if attempt is None else attempt
        print(f"==> {one.name}, try {number}, {node.pod or node.id} <==", file=sys.stderr)
        try:
            _print_log(reader.logs.read(found.run_id, node), raw=raw)
        except ClusterError as error:
            failures.append(str(error))
    if failures:
        raise ClusterError("\n".join(failures))


@app.command()
@expand
def stop(run: RunName, *, server: ServerOptions) -> None:
    """Stop a run.

    Its tasks end as if their pods were deleted, and its TrainJob is deleted; `retry` resumes a training from its newest
    checkpoint.
    """
    from pipelines.servers.connection import ClusterError
    from pipelines.servers.kube import RUN_LABEL, Kubernetes, KubernetesError

    reader = _reader(server)
    found = reader.read(reader.cluster.find_run(run))
    if found.is_over:
        raise ClusterError(f"run {found.name} ({found.run_id}) is over: {found.state}")
    reader.cluster.stop(found.run_id)
    print(f"run {found.name} is being stopped. Go on later: python -m pipelines retry {found.run_id}")
    pipeline = reader.cluster.pipeline_of(reader.cluster.run(found.run_id))
    if pipeline is not None and not pipeline.has_nodes():
        return
    namespace = reader.cluster.pod_namespace
    try:  # the task deletes it too, unless its container has ended before
        for name in Kubernetes(namespace).delete_trainjobs(found.run_id):
            print(f"TrainJob {name} is deleted; its pods write a checkpoint")
    except KubernetesError as error:
        print(
            f"its TrainJob is left to the task, which may not have the time to delete it ({error}). If you have the "
            f"right: kubectl -n {namespace} delete trainjobs -l {RUN_LABEL}={found.run_id}",
            file=sys.stderr,
        )


@app.command()
@expand
def retry(
    run: RunName,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Show the tasks until the run ends.")] = False,
    server: ServerOptions,
) -> None:
    """Run the failed tasks of a run again.

    They and the tasks after them run in the same run; the training resumes from its checkpoint.
    """
    from pipelines.servers.connection import ClusterError
    from pipelines.status.runs import State

    reader = _reader(server)
    found = reader.read(reader.cluster.find_run(run))
    if found.state not in (State.FAILED, State.STOPPED):
        raise ClusterError(
            f"run {found.name} ({found.run_id}) is {found.state}; only a failed or stopped run can be retried"
        )
    reader.cluster.retry(found.run_id)
    print(f"run {found.name} is retried", flush=True)
    if wait:
        _wait(reader, found.run_id, 0)
    else:
        print(f"Its state: python -m pipelines status {found.run_id}")


def _reader(server: ServerOptions) -> RunReader:
    from pipelines.servers.client import Cluster
    from pipelines.status.reader import RunReader

    return RunReader(Cluster(server.connection()))


def _wait(reader: RunReader, run_id: str, retries: int) -> None:
    from pipelines.status import watch

    try:
        with watch.open_screen() as screen:
            run = watch.wait(reader, run_id, screen, retries)
    except KeyboardInterrupt:
        print(
            f"\nStopped waiting; the run continues. Wait again: python -m pipelines wait {run_id}; stop it: python -m "
            f"pipelines stop {run_id}",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    watch.check_success(run, reader.cluster.connection.run_address(run_id))
    print(f"run {run.name} succeeded")


def _choose_tasks(run: RunStatus, name: str | None) -> list[TaskStatus]:
    """The tasks with a pod that are asked for."""
    from pipelines.servers.connection import ClusterError

    named = [one for one in run.tasks if name in (one.name, one.step)]
    if name and not named:
        known = ", ".join(one.name for one in run.tasks) or "none"
        raise ClusterError(f"run {run.name} has no task {name!r}; there are: {known}")
    wanted = named or run.failed_tasks or run.tasks
    chosen = [one for one in wanted if one.attempts]
    if not chosen:
        states = ", ".join(f"{one.name} ({one.state})" for one in wanted) or "no task"
        raise ClusterError(f"run {run.name}: no pod has started for {states}")
    return chosen


def _print_log(text: str, *, raw: bool) -> None:
    from pipelines.status.logs import own_lines

    lines = text.splitlines() if raw else list(own_lines(text))
    if lines:
        print("\n".join(lines), flush=True)


def _follow(reader: RunReader, run_id: str, name: str, *, raw: bool) -> None:
    """Print a task's log until the task is over, attempt after attempt."""
    from pipelines.servers.connection import ClusterError
    from pipelines.status.logs import NewLines, own_lines
    from pipelines.status.nodes import PENDING

    shown: dict[tuple[str, datetime | None], NewLines] = {}
    ended = set()
    failing_since: float | None = None
    while True:
        try:
            task = next(one for one in reader.read(run_id).tasks if one.name == name)
            for node in task.attempts:
                key, is_last = node.key, node is task.attempts[-1]
                if key in ended or node.phase == PENDING:
                    continue
                try:
                    text = reader.logs.read(run_id, node)
                except ClusterError:
                    if is_last:
                        raise
                    text = ""
                if is_last and not task.is_over:
                    text = text[: text.rfind("\n") + 1]  # the last line may be incomplete
                else:
                    ended.add(key)
                lines = text.splitlines() if raw else list(own_lines(text))
                for line in shown.setdefault(key, NewLines()).take(lines):
                    print(line, flush=True)
            if task.is_over:
                return
            failing_since = None
        except ClusterError:  # a pod that has just started has no log, either
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since > FOLLOW_PATIENCE:
                raise
        time.sleep(FOLLOW_INTERVAL)
