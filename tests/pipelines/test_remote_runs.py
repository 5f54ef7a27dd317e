"""The commands for runs, against a fake server that replays recorded answers of a real one."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from pipelines import remote
from pipelines.servers import connection
from pipelines.servers.client import Cluster
from pipelines.servers.connection import Connection
from pipelines.status import watch
from pipelines.status.reader import RunReader
from tests.pipelines.command import call
from tests.pipelines.kfp_server import Fault, Server
from tests.pipelines.kube_server import serve_kubernetes
from tests.pipelines.recorded import FOLDER, Moment, moments, replay

LOG = (FOLDER / "train.log").read_text()
"""Of a pod of `train`, as Kubernetes gives it."""
LAUNCHER = LOG[: LOG.index("[train]")]
OWN = LOG[len(LAUNCHER) : LOG.index("[train] Wrote executor output file")]
PROGRESS = [line.removeprefix("[train] ") for line in OWN.splitlines() if line.startswith("[train] ")]


def changes(text: str) -> list[str]:
    """The lines of a wait without their times."""
    return [line[10:] for line in text.splitlines() if re.match(r"\d\d:\d\d:\d\d  ", line)]


def last_attempt(case: str, task: str) -> tuple[str, str]:
    """Pod and node id of a task's last attempt, as recorded in the workflow."""
    found = [
        (node["templateName"], node_id)
        for node_id, node in moments(case)[-1]["workflow"]["status"]["nodes"].items()
        if re.fullmatch(rf".*\.{task}\(0\)\.executor\(\d\)", node["name"])
    ]
    template, node_id = max(found)
    workflow, _, digest = node_id.rpartition("-")
    return f"{workflow}-{template}-{digest}", node_id


# Waiting -------------------------------------------------------------------------------------------------------------


def test_wait_shows_changes_and_progress_and_ends_with_the_cause_and_what_to_do(server: Server) -> None:
    run_id = replay(server, "out-of-memory")
    pod, _ = last_attempt("out-of-memory", "train")
    server.logs[pod] = LOG
    failed = call("wait", run_id)
    assert failed.code == 3
    assert changes(failed.out) == [
        "source: succeeded after 4 s",
        "ingest: cached",
        "preprocess: waiting for Kubeflow Pipelines to prepare it",
        "preprocess: cached",
        *(f"train: {line}" for line in PROGRESS),
        "train: failed after 8 s: out of memory: its container reached the limit of 48Gi",
    ]
    assert f"({run_id}) failed" in failed.err
    assert "  | [train] epoch 1 of 2" in failed.err
    assert "What to do: raise tasks.train.memory_limit" in failed.err
    assert failed.err.rstrip().endswith(f"See {server.host}/#/runs/details/{run_id}")
    assert "launcher" not in failed.out + failed.err


def test_wait_for_a_run_that_succeeds(server: Server) -> None:
    run_id = replay(server, "batch-prediction-ok")
    done = call("wait", run_id)
    assert done.code == 0, done.err
    assert changes(done.out)[-4:] == [
        "predict [1/3]: succeeded after 13 s",
        "predict [2/3]: succeeded after 13 s",
        "predict [3/3]: succeeded after 13 s",
        "merge: succeeded after 5 s",
    ]
    assert done.out.splitlines()[-1].endswith("succeeded")


def test_a_line_is_shown_once_although_the_pod_goes_away(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its pod, an attempt begins with its container; without, when the pod was created."""
    run_id = replay(server, "train-first", first=-1)
    pod, _ = last_attempt("train-first", "train")
    server.logs[pod] = LOG
    server.moments[run_id] = [json.loads(json.dumps(server.moments[run_id][-1])) for _ in range(3)]
    for moment in server.moments[run_id][:2]:
        moment["run"] |= {"state": "RUNNING"}
    pods = moments("train-first")[-1]["pods"]
    with serve_kubernetes(tmp_path, monkeypatch) as kubernetes:
        kubernetes.lists["/api/v1/namespaces/kubeflow/pods"] = pods
        monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=lambda _: pods.clear(), monotonic=time.monotonic))
        failed = call("wait", run_id)
    assert failed.code == 3
    assert failed.out.count(f"train: {PROGRESS[0]}") == 1
    for task in ("source", "ingest", "preprocess"):
        assert len([line for line in changes(failed.out) if line.startswith(f"{task}: succeeded")]) == 1


def test_a_look_that_kubernetes_does_not_answer_changes_no_state(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old answer about pods is kept: without it the task would wait again."""
    run_id = replay(server, "train-first", first=-1)
    attempt = next(
        pod
        for pod in moments("train-first")[-1]["pods"]
        if pod["metadata"]["name"] == last_attempt("train-first", "train")[0]
    )
    attempt = json.loads(json.dumps(attempt))
    main = next(status for status in attempt["status"]["containerStatuses"] if status["name"] == "main")
    main["state"] = {"running": {"startedAt": main["state"]["terminated"]["startedAt"]}}
    moment = json.loads(json.dumps(server.moments[run_id][-1]))
    moment["run"] |= {"state": "RUNNING"}
    for node in moment["workflow"]["status"]["nodes"].values():
        if (
            node["name"] == attempt["metadata"]["annotations"]["workflows.argoproj.io/node-name"]
            or node["type"] != "Pod"
        ):
            node["phase"] = "Pending" if node["type"] == "Pod" else "Running"
    server.moments[run_id] = [moment]
    states = []
    with serve_kubernetes(tmp_path, monkeypatch) as kubernetes:
        kubernetes.lists["/api/v1/namespaces/kubeflow/pods"] = [attempt]
        reader = RunReader(Cluster(Connection(server.host)))
        for kubernetes.is_broken in (False, True, False):
            states.append({task.name: task.state.value for task in reader.read(run_id).tasks}["train"])
    assert states == ["running"] * 3


def test_without_the_old_api_and_kubernetes_a_wait_says_which_access_is_missing(server: Server) -> None:
    server.has_old_api = False
    failed = call("wait", replay(server, "out-of-memory"))
    assert failed.code == 3
    assert failed.out.count("no access to Kubernetes is set up on this machine (no kubeconfig)") == 1
    assert "train: failed after 8 s: the reason is not known" in failed.out


def test_with_rights_on_pods_a_status_has_the_times_of_the_tasks_own_work(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = replay(server, "batch-prediction-ok", first=-1)
    without = json.loads(call("status", run_id, "--json").out)
    with serve_kubernetes(tmp_path, monkeypatch) as kubernetes:
        kubernetes.lists["/api/v1/namespaces/kubeflow/pods"] = moments("batch-prediction-ok")[-1]["pods"]
        tree = json.loads(call("status", run_id, "--json").out)
        kubernetes.forbidden = "pods"
        server.has_old_api = False
        lacking = call("status", run_id)
    assert [task["started"][-14:-6] for task in without["tasks"]][:2] == ["21:11:06", "21:11:06"]
    assert [(task["started"][-14:-6], task["finished"][-14:-6]) for task in tree["tasks"]][:2] == [
        ("21:11:10", "21:11:17"),
        ("21:11:10", "21:11:12"),
    ]
    assert tree["tasks"][1]["attempts"][0]["exit_code"] == 0
    assert lacking.code == 0, lacking.err


def test_a_missing_right_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.has_old_api = False
    run_id = replay(server, "image-missing")
    with serve_kubernetes(tmp_path, monkeypatch) as kubernetes:
        kubernetes.forbidden = "pods"
        shown = call("status", run_id)
    assert "no right to list pods in namespace kubeflow" in shown.out
    assert "source      waiting for its pod to start" in shown.out


def again(moment: Moment, log: str, server: Server) -> Moment:
    """The last moment of `out-of-memory` as after a retry, which uses the nodes' ids again, with another failure."""
    text = json.dumps(moment).replace("2026-11-28T21:2", "2026-11-28T22:2").replace("OOMKilled (exit", "Error (exit")
    server.logs[last_attempt("out-of-memory", "train")[0]] = log
    found: Moment = json.loads(text)
    return found


def test_a_run_is_retried_while_its_causes_may_pass(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = replay(server, "out-of-memory")
    failed = moments("out-of-memory")[-1]

    def look_again(seconds: float) -> None:
        if server.count(":retry"):
            server.logs[pod] = "[train] epoch 2 of 10\ntrain failed: params.yaml: train.lr: must be positive\n"

    pod, _ = last_attempt("out-of-memory", "train")
    server.logs[pod] = OWN
    resubmitted = json.loads(json.dumps(failed))  # Kubeflow Pipelines first removes the nodes that it will run again
    resubmitted["run"] |= {"state": "RUNNING", "run_details": {"task_details": []}}
    resubmitted["workflow"]["status"]["nodes"] = {}
    server.after_retry = [resubmitted, again(failed, OWN, server)]
    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=look_again, monotonic=time.monotonic))
    done = call("wait", run_id, "--retries", "3")
    assert done.code == 3
    assert server.count(f"POST .*/{run_id}:retry") == 1
    shown = changes(done.out)
    assert "the run is starting" in shown[shown.index("retrying the run (1 of 3)") :]
    assert not any(line.endswith("not reached") for line in shown)
    assert "train: epoch 2 of 10" in shown[shown.index("retrying the run (1 of 3)") :]
    assert "train: failed after 8 s: params.yaml: train.lr: must be positive" in shown
    assert "out of memory" not in done.err


def test_a_cause_that_stays_is_not_retried(server: Server) -> None:
    run_id = replay(server, "invalid-pod")
    server.moments[run_id][-1]["run"]["state"] = "FAILED"  # it was stopped by hand
    assert call("wait", run_id, "--retries", "2").code == 3
    assert server.count(":retry") == 0


def test_a_run_that_the_server_does_not_retry_ends_the_wait_with_its_cause(server: Server) -> None:
    server.faults = [Fault("POST .*:retry", 500, times=9)]
    failed = call("wait", replay(server, "out-of-memory"), "--retries", "3")
    assert failed.code == 3
    assert server.count("POST .*:retry") == 1
    assert "the run cannot be retried: " in failed.out
    assert "out of memory" in failed.err


def test_a_stopped_run_is_not_a_success(server: Server) -> None:
    stopped = call("wait", replay(server, "restricted-namespace"))
    assert stopped.code == 3
    assert "was stopped" in stopped.err
    assert "the namespace's Pod Security policy restricted:latest refused its pod" in stopped.err


def test_a_run_that_cannot_start_says_why(server: Server) -> None:
    failed = call("wait", replay(server, "no-service-account"))
    assert failed.code == 3
    assert "the run could not start: the service account nobody-here does not exist" in failed.err


def test_waiting_tolerates_an_unavailable_server(server: Server) -> None:
    run_id = replay(server, "batch-prediction-ok")
    times = 2 * (connection.RETRIES + 1)
    server.faults = [
        Fault("GET .*v2beta1/runs/", 503, times=times),
        Fault("GET .*v2beta1/runs/", 0, times=connection.RETRIES + 1),
    ]
    done = call("wait", run_id)
    assert done.code == 0, done.err
    assert done.out.count("trying again: ") == 2, "each message once"


def test_waiting_ends_when_the_server_stays_unavailable_and_says_that_the_run_continues(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = replay(server, "batch-prediction-ok")
    monkeypatch.setattr(watch, "PATIENCE", 0.0)
    server.faults = [Fault("GET .*versions/", 503, times=10**6)]
    lost = call("wait", run_id)
    assert lost.code == 1
    assert f"The run continues; wait again with `python -m pipelines wait {run_id}`." in lost.err


def test_waiting_can_be_interrupted_and_the_run_continues(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    run_id = replay(server, "batch-prediction-ok")
    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=interrupt, monotonic=time.monotonic))
    left = call("wait", run_id)
    assert left.code == 130
    assert f"the run continues. Wait again: python -m pipelines wait {run_id}" in left.err


@pytest.mark.parametrize("way", ["file", "command"])
def test_a_token_that_expires_while_waiting_is_renewed(server: Server, tmp_path: Path, way: str) -> None:
    run_id = replay(server, "train-first")
    server.token, file = "first", tmp_path / "token"
    file.write_text("first")

    def renew(seconds: float) -> None:
        if server.token == "first":
            server.token = "second"
        else:
            file.write_text("second")

    options = ["--token-file", file] if way == "file" else ["--token-command", f"cat {file}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "time", SimpleNamespace(sleep=renew, monotonic=time.monotonic))
        done = call("wait", run_id, *options)
    assert done.code == 3, done.err
    assert "task train: failed after 2 min (try 2 of 6)" in done.err
    assert "answers 401" in done.out


@pytest.mark.parametrize(
    ("command", "problem"),
    [("false", "exit code 1: printed nothing"), ("/nonexistent/x", "No such file"), ("true", "printed nothing")],
)
def test_a_command_that_prints_no_token_is_named(server: Server, command: str, problem: str) -> None:
    refused = call("status", "x", "--token-command", command)
    assert refused.code == 1
    assert f"--token-command {command} ...: " in refused.err
    assert problem in refused.err
    server.requests.append("none, as it should be")


def test_on_a_terminal_a_table_changes_in_place(server: Server) -> None:
    run_id = replay(server, "out-of-memory")
    pod, _ = last_attempt("out-of-memory", "train")
    server.logs[pod] = LOG
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    with Live(console=console, auto_refresh=False) as live:
        watch.wait(RunReader(Cluster(Connection(server.host))), run_id, watch.LiveTable(live))
    last = output.getvalue().rpartition("task")[2]
    assert [line.split()[0] for line in last.splitlines() if re.match(r"[a-z]+ ", line)] == [
        *("source", "ingest", "preprocess", "train", "evaluate", "register", "promote"),
    ]
    assert "done: 6 steps" in last


# Status, list, stop, retry -------------------------------------------------------------------------------------------


def test_status_shows_a_run_by_id_and_by_name_with_the_cause(server: Server) -> None:
    run_id = replay(server, "train-first", first=-1)
    pod, _ = last_attempt("train-first", "train")
    server.logs[pod] = LOG + "F1128 20:56:33.000000      20 main.go:59] failed to execute component: signal: killed\n"
    by_name = call("status", server.runs[run_id]["display_name"])
    assert by_name.code == 0, by_name.err
    assert by_name.out == call("status", run_id).out
    lines = by_name.out.splitlines()
    assert lines[0].endswith(": failed")
    tasks = [line[12:].split(maxsplit=1) for line in lines if re.match(r"  (\d\d:| {8})", line)]
    assert [name for name, _ in tasks] == [
        *("source", "ingest", "preprocess", "train", "evaluate", "register", "promote"),
    ]
    assert tasks[3][1].startswith("failed after 2 min (try 2 of 6): its process was killed")
    assert f"or try again: `python -m pipelines retry {run_id}`" in by_name.out
    tree = json.loads(call("status", run_id, "--json").out)
    assert tree["state"] == "failed"
    assert tree["address"] == f"{server.host}/#/runs/details/{run_id}"
    assert [attempt["message"] for attempt in tree["tasks"][3]["attempts"]] == [
        "pod deleted",
        "main: Error (exit code 1)",
    ]


def test_status_of_a_missing_run_says_so(server: Server) -> None:
    for run in ("nightly", "01234567-89ab-cdef-0123-456789abcdef"):
        refused = call("status", run)
        assert refused.code == 1
        assert f"no run has the id or name '{run}'" in refused.err


def test_without_the_pipelines_version_the_state_of_the_run_is_shown(server: Server) -> None:
    run_id = replay(server, "train-first", first=-1)
    server.versions.clear()
    shown = call("status", run_id)
    assert shown.code == 0, shown.err
    assert "Its tasks are not known: the version of its pipeline has been deleted" in shown.out


def test_list_shows_states_and_what_became_of_the_runs(server: Server) -> None:
    failed = replay(server, "out-of-memory", first=-1)
    done = replay(server, "train-resumed", first=-1)
    for case, task, log in (
        ("train-resumed", "train", LOG),
        ("train-resumed", "register", "[register] yolact version 3 registered\n"),
    ):
        server.logs[last_attempt(case, task)[1]] = log
    tree = {one["run_id"]: one for one in json.loads(call("list", "--json").out)}
    assert (tree[done]["state"], tree[done]["mlflow_run"], tree[done]["version"]) == (
        "succeeded",
        "brawny-crab-625",
        "yolact 3",
    )
    assert (tree[failed]["state"], tree[failed]["mlflow_run"], tree[failed]["version"]) == ("failed", None, None)
    shown = call("list", "--count", "2").out
    assert "train failed after 8 s: out of memory" in shown
    assert done in shown


@pytest.mark.parametrize("is_same_cluster", [True, False])
def test_list_warns_of_workflows_of_no_run_but_not_of_another_clusters(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_same_cluster: bool
) -> None:
    run_id = replay(server, "train-first", first=-1)
    with serve_kubernetes(tmp_path, monkeypatch) as kubernetes:
        for name, known in (("training-zzzzz", "11111111-2222-3333-4444-555555555555"), ("training-a", run_id)):
            workflow = {
                "apiVersion": "argoproj.io/v1alpha1",
                "kind": "Workflow",
                "metadata": {
                    "name": name,
                    "namespace": "kubeflow",
                    "labels": {"pipeline/runid": known},
                    "creationTimestamp": "2026-11-01T00:00:00Z",
                },
            }
            if is_same_cluster or known != run_id:
                kubernetes.add("/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows", workflow)
        shown = call("list")
    assert shown.code == 0
    assert ("kubectl -n kubeflow delete workflow training-zzzzz" in shown.err) is is_same_cluster
    assert "training-a:" not in shown.err


def test_list_shows_runs_of_pipelines_that_it_does_not_understand(server: Server) -> None:
    replay(server, "train-first", first=-1)
    for version in server.versions.values():
        version["pipeline_spec"] = {"kind": "Workflow", "spec": {}}
    shown = call("list")
    assert shown.code == 0, shown.err
    assert "failed" in shown.out


@pytest.mark.parametrize("content", ["{", "[]", "clusters: 3", "contexts: [{}]"])
def test_a_broken_kubeconfig_is_no_obstacle(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    run_id = replay(server, "image-missing")
    server.has_old_api = False
    (tmp_path / "kubeconfig").write_text(content)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    shown = call("status", run_id)
    assert shown.code == 0, shown.err
    assert "kubeconfig" in shown.out


def test_a_volume_that_cannot_be_mounted_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = replay(server, "image-missing")
    with serve_kubernetes(tmp_path, monkeypatch) as kubernetes:
        (pod,) = [one for one in moments("image-missing")[0]["pods"] if "impl" in one["metadata"]["name"]]
        pod["status"] = {"phase": "Pending", "containerStatuses": [{"name": "main", "state": {"waiting": {}}}]}
        server.moments[run_id][0]["workflow"] = json.loads(
            re.sub(r"Unschedulable[^\"]*", "PodInitializing", json.dumps(server.moments[run_id][0]["workflow"]))
        )
        kubernetes.lists["/api/v1/namespaces/kubeflow/pods"] = [pod]
        kubernetes.lists["/api/v1/namespaces/kubeflow/events"] = [
            {"metadata": {}, "reason": "FailedMount", "message": "MountVolume.SetUp failed: no such export"}
        ]
        shown = call("status", run_id)
    assert "waiting for its volume, which cannot be mounted (MountVolume.SetUp failed: no such export)" in shown.out


def test_stop_and_retry_send_their_requests_only_where_they_make_sense(server: Server) -> None:
    running = replay(server, "image-missing")
    assert call("retry", running, "--wait").code == 1
    assert "is being stopped" in call("stop", running).out
    assert server.count(f"POST .*/{running}:terminate") == 1
    refused = call("retry", running)
    assert refused.code == 1
    assert "only a failed or stopped run can be retried" in refused.err
    failed = replay(server, "train-first", first=-1)
    assert "is over: failed" in call("stop", failed).err
    assert call("retry", failed).code == 0
    assert server.count(r"POST .*:retry") == 1


TRAINJOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainjobs"


def replay_with_nodes(server: Server) -> str:
    """A running run whose task train has made a TrainJob."""
    run_id = replay(server, "image-missing")
    for version in server.versions.values():
        train = version["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"]["train"]
        train["inputs"]["parameters"]["nodes"] = {"runtimeValue": {"constant": "{}"}}
    return run_id


def trainjob(name: str, run_id: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "kubeflow", "labels": {"pipeline/runid": run_id}}
    return {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": metadata}


def test_stop_deletes_the_trainjob_of_the_run_and_no_other(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = replay_with_nodes(server)
    with serve_kubernetes(tmp_path, monkeypatch) as kubernetes:
        kubernetes.add(TRAINJOBS, trainjob("ours", run_id))
        kubernetes.add(TRAINJOBS, trainjob("another", "another-run"))
        stopped = call("stop", run_id)
        left = [one["metadata"]["name"] for one in kubernetes.lists[TRAINJOBS]]
    assert (stopped.code, stopped.err, left) == (0, "", ["another"])
    assert "TrainJob ours is deleted" in stopped.out
    assert server.count(f"POST .*/{run_id}:terminate") == 1


@pytest.mark.parametrize("forbidden", ["trainjobs$", "trainjobs/ours"])
def test_stop_without_the_rights_says_how_the_trainjob_is_deleted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbidden: str
) -> None:
    run_id = replay_with_nodes(server)
    command = f"kubectl -n kubeflow delete trainjobs -l pipeline/runid={run_id}"
    assert command in call("stop", run_id).err  # no kubeconfig
    with serve_kubernetes(tmp_path, monkeypatch) as kubernetes:
        kubernetes.add(TRAINJOBS, trainjob("ours", run_id))
        kubernetes.forbidden = forbidden
        refused = call("stop", run_id)
    right = "list" if forbidden.endswith("$") else "delete"
    assert refused.code == 0
    assert f"no right to {right} trainjobs.trainer.kubeflow.org in namespace kubeflow" in refused.err
    assert command in refused.err


def test_stop_says_nothing_of_trainjobs_where_there_is_none(server: Server) -> None:
    assert call("stop", replay(server, "image-missing")).err == ""


# Logs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["interface", "api, pod", "api, archive"])
def test_logs_come_from_the_interface_or_from_the_api_server(server: Server, source: str) -> None:
    server.has_interface = source == "interface"
    run_id = replay(server, "train-first", first=-1)
    pod, node = last_attempt("train-first", "train")
    server.logs[node if source == "api, archive" else pod] = LOG
    printed = call("logs", run_id)
    assert printed.code == 0, printed.err
    assert printed.out == OWN
    assert printed.err == f"==> train, try 2, {pod} <==\n"
    assert call("logs", run_id, "train", "--raw").out == LOG


def test_logs_of_an_earlier_try(server: Server) -> None:
    run_id = replay(server, "train-first", first=-1)
    pod, _ = last_attempt("train-first", "train")
    tries = json.loads(call("status", run_id, "--json").out)["tasks"][3]["attempts"]
    server.logs = {tries[0]["node"]: "first\n", pod: "second\n"}
    server.has_interface = False
    assert call("logs", run_id, "train", "--try", "1").out == "first\n"
    assert call("logs", run_id, "train").out == "second\n"
    assert "has had 2 tries, not 3" in call("logs", run_id, "train", "--try", "3").err
    refused = call("logs", run_id, "eval")
    assert "has no task 'eval'; there are: source, ingest" in refused.err
    assert "no pod has started for evaluate (not reached)" in call("logs", run_id, "evaluate").err


def test_followed_logs_go_on_until_the_task_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = replay(server, "train-first")
    pod, _ = last_attempt("train-first", "train")
    server.logs[pod] = LAUNCHER + "[train] one\n[train] tw"

    def more(seconds: float) -> None:
        server.logs[pod] = LAUNCHER + "[train] one\n[train] two\nlast"

    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=more, monotonic=time.monotonic))
    printed = call("logs", run_id, "train", "--follow")
    assert printed.code == 0, printed.err
    assert printed.out == "[train] one\n[train] two\nlast\n"


def test_logs_missing_from_the_api_come_from_kubernetes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = replay(server, "train-first", first=-1)
    pod, _ = last_attempt("train-first", "train")
    with serve_kubernetes(tmp_path, monkeypatch) as kubernetes:
        kubernetes.texts[f"/api/v1/namespaces/kubeflow/pods/{pod}/log"] = LOG
        printed = call("logs", run_id)
    assert printed.code == 0, printed.err
    assert printed.out == OWN


def test_without_any_log_the_command_to_try_elsewhere_is_named(server: Server) -> None:
    server.multi_user = True
    run_id = replay(server, "train-first", first=-1)
    pod, _ = last_attempt("train-first", "train")
    refused = call("logs", run_id, "-n", "team")
    assert refused.code == 1
    assert f"kubectl -n team logs {pod} -c main" in refused.err
    assert "no access to Kubernetes is set up on this machine" in refused.err
    assert "API server: Failed to read logs: pod not found" in refused.err
