"""Workflows and schedules in Kubernetes that Kubeflow Pipelines does not know: nobody sees, stops or removes them.

The API server (2.17, ``ResourceManager.CreateRun``) creates the Argo workflow first and stores the run after that. If
storing fails, the request is answered with 500 and the workflow stays; so it is with a recurring run and its
ScheduledWorkflow (``CreateJob``). The server's persistence agent deletes such workflows after two minutes
(``WORKFLOW_GC_GRACE_PERIOD_SECONDS``), as long as it runs and the database answers; those of a ScheduledWorkflow it
never deletes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pipelines.servers.connection import ClusterError
from pipelines.servers.kube import RUN_LABEL, Kubernetes, KubernetesError, Object

if TYPE_CHECKING:
    from pipelines.servers.client import Cluster

GRACE = timedelta(minutes=5)
"""Age below which an unknown object may still become known: a run that is being stored; a workflow of a schedule, whose
run the persistence agent stores when it has seen the workflow."""

KNOWN_RUNS = 100
"""How many of the server's newest runs tell that Kubernetes is the same cluster's."""

RUN_NAME = "pipelines.kubeflow.org/run_name"
"""Annotation of a workflow with the run's name; workflows of a schedule have none."""

COMPLETED = "workflows.argoproj.io/completed"
"""Argo's label of a workflow that has ended: ``true``."""

OWNER = "scheduledworkflows.kubeflow.org/isOwnedByScheduledWorkflow"
"""Label of a schedule's workflow: ``true``."""


@dataclass(frozen=True)
class Orphan:
    """A workflow or a ScheduledWorkflow that Kubeflow Pipelines does not know."""

    kind: str
    """``workflow`` or ``scheduledworkflow``, as kubectl spells it."""
    name: str
    namespace: str
    run_id: str
    """Id under which the server would know it: of a run, or of a recurring run."""
    run_name: str
    """Name that the run should have had; empty for a ScheduledWorkflow."""
    created: datetime

    @property
    def removal(self) -> str:
        """The command that removes it with its pods and, for a ScheduledWorkflow, its workflows."""
        return f"kubectl -n {self.namespace} delete {self.kind} {self.name}"

    def __str__(self) -> str:
        name = f", run {self.run_name!r}" if self.run_name else ""
        return f"{self.kind} {self.name} (created {self.created:%Y-%m-%d %H:%M} UTC{name})"


def find_orphans(cluster: Cluster, kubernetes: Kubernetes, *, grace: timedelta = GRACE) -> list[Orphan]:
    """The unfinished workflows of no known run and the ScheduledWorkflows of no known recurring run, oldest first.

    A schedule's workflows are not examined: if the schedule is known, the server makes a run of each when it sees it;
    if not, they go with it.

    Args:
        cluster: knows the runs.
        kubernetes: access to the same cluster; its namespace is searched.
        grace: minimum age of what is reported, see `GRACE`.

    Raises:
        KubernetesError: no access, or no right to list workflows or scheduledworkflows.
        ClusterError: the server does not answer.
    """
    newest = datetime.now(UTC) - grace
    found = [_orphan("scheduledworkflow", one) for one in kubernetes.scheduled_workflows()]
    known = {one.recurring_run_id for one in cluster.schedules()} if found else set()
    unknown = [one for one in found if one.created <= newest and one.run_id not in known]
    for one in kubernetes.workflows(f"{RUN_LABEL},{COMPLETED}!=true,{OWNER}!=true"):
        workflow = _orphan("workflow", one)
        if workflow.created <= newest and not cluster.has_run(workflow.run_id):
            unknown.append(workflow)
    return sorted(unknown, key=lambda one: one.created)


def is_same_cluster(cluster: Cluster, kubernetes: Kubernetes) -> bool:
    """Whether Kubernetes has the workflow of a run that the server knows: a kubeconfig may lead to another cluster.

    Raises:
        KubernetesError: no access, or no right to list workflows.
        ClusterError: the server does not answer.
    """
    known = {run.run_id for run in cluster.runs(KNOWN_RUNS)}
    return any(one["metadata"]["labels"][RUN_LABEL] in known for one in kubernetes.workflows(RUN_LABEL))


def explain_unknown(cluster: Cluster, kind: str, run_name: str = "") -> str:
    """What to do after a submission of which nobody knows whether it was carried out.

    Args:
        cluster: to which it was sent; it does not list the run or recurring run.
        kind: ``workflow`` for a run, ``scheduledworkflow`` for a recurring run.
        run_name: name of the run; ScheduledWorkflows have no name to compare.
    """
    namespace = cluster.pod_namespace
    kubectl = f"kubectl -n {namespace}"
    columns = f"NAME:.metadata.name,CREATED:.metadata.creationTimestamp,RUN:.metadata.annotations.{_escape(RUN_NAME)}"
    try:
        found = find_orphans(cluster, Kubernetes(namespace), grace=timedelta(0))
    except ClusterError as error:
        why = f" ({error})" if isinstance(error, KubernetesError) else ""
        return (
            f"A {kind} that Kubeflow Pipelines does not know may be running; this could not be checked{why}. "
            f"`{kubectl} get {kind} -o custom-columns='{columns}'` lists them, `{kubectl} delete {kind} NAME` removes "
            "one. Look before you submit again."
        )
    ours = [one for one in found if one.kind == kind and one.run_name == run_name]
    if not ours:
        return f"No unknown {kind} was found; look again in five minutes."
    commands = "; ".join(f"`{one.removal}`" for one in ours)
    return (
        f"Not known to Kubeflow Pipelines: {', '.join(map(str, ours))}. Remove it before you submit again: {commands}."
    )


def _orphan(kind: str, found: Object) -> Orphan:
    metadata = found["metadata"]
    return Orphan(
        kind=kind,
        name=metadata["name"],
        namespace=metadata["namespace"],
        run_id=metadata["uid"] if kind == "scheduledworkflow" else metadata["labels"][RUN_LABEL],
        run_name=metadata.get("annotations", {}).get(RUN_NAME, ""),
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
    )


def _escape(key: str) -> str:
    """A key with dots in kubectl's JSONPath."""
    return key.replace(".", "\\.")
