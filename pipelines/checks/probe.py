"""A run of one small task that reports what a pod of the cluster reaches."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from pipelines.checks.finding import Finding, Level
from pipelines.checks.inside import parse_report
from pipelines.compiler import compiled_text
from pipelines.config import ClusterConfig
from pipelines.placement import configure_task, mount_checkpoints
from pipelines.servers.client import Cluster, Job
from pipelines.servers.connection import ClusterError
from pipelines.spec import parse_compiled
from pipelines.status.display import advise, describe
from pipelines.status.logs import own_lines
from pipelines.status.reader import RunReader
from pipelines.status.runs import RunStatus, State
from yolact_ops.commands.task import IMAGE
from yolact_ops.lineage.code import find_steps

LIMIT = 600
"""Seconds that the pod may take, with the time to pull its image."""

PATIENCE = 600
"""Seconds to wait for the run, with the time until a node is free."""

INTERVAL = 5.0
"""Seconds between two looks at the run."""

EXPERIMENT = "yolact-check"
"""Kubeflow's folder of these runs."""


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def probe(mount: str, folder: str, gpu: bool) -> None:
    """Report what this pod reaches.

    Args:
        mount: where the checkpoint volume is mounted; empty for none.
        folder: s3://bucket/folder to list; empty for all buckets.
        gpu: the pod has one.
    """
    from pipelines.checks.inside import report

    report(mount, folder, gpu=gpu)


def build(config: ClusterConfig) -> BaseComponent:
    """The pipeline: a task with the place of `train`, its volume and GPU, and the secrets of all tasks."""
    train = config.for_step("train")
    used = {key for step in find_steps() for key in config.for_step(step).secrets}
    task = train.model_copy(
        update={
            "cpu": "100m",
            "memory": "1Gi",
            "memory_limit": "4Gi",
            "shared_memory": "",
            "scratch": train.scratch and "1Gi",
            "time_limit": LIMIT,
            "retries": 0,
            "cache": False,
            "secrets": [key for key in config.secrets if key in used],
        }
    )
    small = config.model_copy(update={"tasks": {**config.tasks, "probe": task}})
    mount = config.checkpoints.mount if config.checkpoints.claim else ""

    @dsl.pipeline(name="check", description="YOLACT: what a pod reaches. Deletes nothing, keeps nothing.")
    def check(folder: str = "") -> None:
        mount_checkpoints(configure_task(probe(mount=mount, folder=folder, gpu=bool(train.gpus)), small), small)

    return check


def run_probe(
    cluster: Cluster, config: ClusterConfig, service_account: str | None, folder: str | None
) -> Iterator[Finding]:
    """Run the probe, and yield what it reports.

    Args:
        cluster: the server.
        config: settings of the tasks.
        service_account: of the pod; None for the server's default.
        folder: ``s3://BUCKET/FOLDER`` to list; None for all buckets.
    """
    pipeline = parse_compiled(compiled_text(build(config)), "the probe")
    name = f"check-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    try:
        order = Job(
            version=cluster.upload(pipeline, {}),
            experiment_id=cluster.find_or_make_experiment(EXPERIMENT),
            name=name,
            arguments={"folder": folder or ""},
            description="python -m pipelines check --deep",
            service_account=service_account,
        )
        run_id = cluster.start(order)
    except ClusterError as error:
        yield Finding(Level.FAILURE, "probe", str(error))
        return
    yield Finding(Level.OK, "probe", f"run {name} has started: {cluster.connection.run_address(run_id)}")
    try:
        yield from _read(RunReader(cluster), run_id)
    except ClusterError as error:
        yield Finding(Level.FAILURE, "probe", str(error), f"`python -m pipelines status {run_id}`")


def _read(reader: RunReader, run_id: str) -> Iterator[Finding]:
    end = time.monotonic() + PATIENCE
    try:
        run = reader.read(run_id)
        while not run.is_over and time.monotonic() < end:
            time.sleep(INTERVAL)
            run = reader.read(run_id)
    except KeyboardInterrupt:
        reader.cluster.stop(run_id)
        raise
    if not run.is_over:
        reader.cluster.stop(run_id)
        now = "; ".join(f"{task.name}: {describe(task)}" for task in run.tasks) or str(run.state)
        text = f"not over after {PATIENCE // 60} minutes, and stopped. It was {now}. {run.lacking}".rstrip()
        yield Finding(Level.FAILURE, "probe", text, f"`python -m pipelines status {run_id}`")
        return
    reports: list[Finding] = []
    problem = "there is none in its log"
    for task in run.tasks:
        for node in task.attempts[-1:]:
            try:
                reports += parse_report(own_lines(reader.logs.read(run_id, node)))
            except ClusterError as error:
                problem = f"it cannot be read: {error}"
    if not reports and run.state is State.SUCCEEDED:
        logs = f"`python -m pipelines logs {run_id} --raw`"
        yield Finding(Level.UNKNOWN, "report of the probe", problem, logs)
    namespace = reader.cluster.pod_namespace
    yield from (replace(one, mend=one.mend.replace("NAMESPACE", namespace)) for one in reports)
    if run.state is not State.SUCCEEDED:
        yield _explain(run)


def _explain(run: RunStatus) -> Finding:
    causes = [run.start_cause, *(task.cause for task in run.tasks)]
    cause = next(filter(None, causes), None)
    logs = f"`python -m pipelines logs {run.run_id} --raw`"
    if cause is None:
        return Finding(Level.FAILURE, "probe", f"its run has {run.state}", logs)
    return Finding(Level.FAILURE, "probe", cause.text, advise(cause, run) or logs)
