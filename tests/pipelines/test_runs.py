"""What is read of a run: against recorded answers of a real server, from each source of nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.spec import Request
from pipelines.status.causes import explain_waiting, find_cause
from pipelines.status.display import describe, describe_run
from pipelines.status.logs import own_lines
from pipelines.status.nodes import ERROR, FAILED, Node, node_id, pod_name
from pipelines.status.runs import RunStatus, State, read_run
from tests.pipelines.recorded import CASES, FOLDER, Moment, api_run, moments, nodes, tasks

SOURCES = ("api", "workflow", "pods")


def read(case: str, moment: Moment, source: str) -> RunStatus:
    return read_run(api_run(moment), tasks(case), nodes(moment, source))


LAST_STATES = {
    "batch-prediction": ("failed", "fetch succeeded, split failed"),
    "batch-prediction-ok": (
        "succeeded",
        "fetch succeeded, split succeeded, predict [1/3] succeeded, predict [2/3] succeeded, predict [3/3] succeeded, "
        "merge succeeded",
    ),
    "cached-artifact-gone": ("failed", "source succeeded, ingest cached, preprocess cached, train failed"),
    "image-missing": ("running", "source waiting"),
    "invalid-pod": ("running", "source succeeded, ingest cached, preprocess cached, train waiting"),
    "mlflow-integration": ("stopped", "source succeeded, ingest cached, preprocess cached, train stopped"),
    "no-service-account": ("failed", ""),
    "out-of-memory": ("failed", "source succeeded, ingest cached, preprocess cached, train failed"),
    "restricted-namespace": ("stopped", "source stopped"),
    "retried-by-request": (
        "succeeded",
        "source succeeded, ingest succeeded, preprocess succeeded, train succeeded, evaluate succeeded, register "
        "succeeded, promote succeeded",
    ),
    "train-first": ("failed", "source succeeded, ingest succeeded, preprocess succeeded, train failed"),
    "train-resumed": (
        "succeeded",
        "source succeeded, ingest cached, preprocess cached, train succeeded, evaluate succeeded, register succeeded, "
        "promote succeeded",
    ),
}
"""Of the last moment of each case: the state of the run, and those of the tasks that were reached."""


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", CASES)
def test_every_recorded_run_has_a_row_for_each_task_in_its_order(case: str, source: str) -> None:
    run = read(case, moments(case)[-1], source)
    reached = ", ".join(f"{task.name} {task.state}" for task in run.tasks if task.state is not State.NOT_REACHED)
    assert (run.state.value, reached) == LAST_STATES[case]
    order = [task.name for task in tasks(case)]
    if case != "batch-prediction-ok":
        assert [task.step for task in run.tasks] == [("predict" if name == "for-loop-1" else name) for name in order]


@pytest.mark.parametrize("case", CASES)
def test_names_and_ids_made_from_the_api_alone_are_those_of_the_workflow(case: str) -> None:
    last = moments(case)[-1]
    assert {name: node.id for name, node in nodes(last, "api").items()} == {
        name: node.id for name, node in nodes(last, "workflow").items()
    }


@pytest.mark.parametrize("case", CASES)
def test_attempts_have_the_times_of_the_workflow_even_where_the_api_does_not_tell_them_apart(case: str) -> None:
    for moment in moments(case):
        if moment.get("workflow"):
            known = nodes(moment, "workflow")
            for name, node in nodes(moment, "api").items():
                if name not in known:  # the API was asked some seconds later
                    continue
                assert node.started == known[name].started
                assert node.finished in (known[name].finished, None)  # the API may be some seconds behind


@pytest.mark.parametrize("case", CASES)
def test_names_of_pods_are_made_as_argo_makes_them(case: str) -> None:
    for moment in moments(case):
        real = {
            pod["metadata"]["annotations"].get("workflows.argoproj.io/node-name"): pod["metadata"]["name"]
            for pod in moment.get("pods", [])
        }
        for source in ("api", "workflow") if real else ():
            made = {name: node.pod for name, node in nodes(moment, source).items() if node.pod}
            assert made.items() <= {**made, **real}.items()
            assert {name for name in real if name and name.rpartition(".")[2].startswith("executor(")} <= made.keys()


def test_a_node_that_is_the_workflow_has_its_name_as_id() -> None:
    assert node_id("training-x", "training-x") == "training-x"
    assert pod_name("training-x", "") == "training-x"


@pytest.mark.parametrize(
    ("case", "moment", "task", "text"),
    [
        ("train-first", 0, "train", "waiting for a pause until"),
        ("train-first", 1, "train", "running (try 2 of 6)"),
        ("train-first", -1, "train", "failed after 2 min (try 2 of 6)"),
        ("train-resumed", 0, "evaluate", "waiting for a node with 4 free cores, 12Gi free memory, 1 free GPU"),
        ("image-missing", 0, "source", "waiting for a node with 1 free core, 1Gi free memory"),
        ("batch-prediction-ok", 0, "predict [2/3]", "waiting for Kubeflow Pipelines to prepare it"),
        ("batch-prediction-ok", -1, "predict [3/3]", "succeeded after 9 s"),
        ("batch-prediction-ok", -1, "split", "succeeded after 2 s"),
        ("cached-artifact-gone", -1, "ingest", "cached"),
    ],
)
def test_states_in_words(case: str, moment: int, task: str, text: str) -> None:
    found = moments(case)[moment]
    run = read(case, found, "pods" if found.get("pods") else "api")
    (shown,) = [describe(one) for one in run.tasks if one.name == task]
    assert shown.startswith(text)


@pytest.mark.parametrize(
    ("case", "task", "cause", "may_pass"),
    [
        ("out-of-memory", "train", "out of memory: its container reached the limit of 48Gi", True),
        ("invalid-pod", "train", "Kubernetes refused its pod: spec.containers[1].resources.requests", False),
        ("mlflow-integration", "train", "Kubernetes refused its pod: spec.containers[1].env[2].valueFrom", False),
        ("restricted-namespace", "source", "the namespace's Pod Security policy restricted:latest refused", False),
        ("batch-prediction", "split", "it ended with exit code 1", False),
    ],
)
@pytest.mark.parametrize("source", ["workflow", "pods"])
def test_causes_of_recorded_failures(case: str, task: str, cause: str, may_pass: bool, source: str) -> None:
    run = read(case, moments(case)[-1], source)
    (failed,) = [one for one in run.tasks if one.name == task]
    assert failed.failed is not None
    found = find_cause(failed.failed, failed.step, failed.request)
    assert found.text.startswith(cause)
    assert found.may_pass is may_pass


def test_a_run_that_could_not_start_names_the_service_account() -> None:
    run = read("no-service-account", moments("no-service-account")[-1], "workflow")
    assert run.start_failure is not None
    assert find_cause(run.start_failure, "", Request()).text == "the service account nobody-here does not exist"


def test_a_deleted_pod_is_a_cause_that_may_pass() -> None:
    first = nodes(moments("train-first")[-1], "workflow")
    (deleted,) = [node for name, node in first.items() if name.endswith(".train(0).executor(0)")]
    cause = find_cause(deleted, "train", Request())
    assert (cause.text, cause.may_pass) == ("its pod was deleted", True)


@pytest.mark.parametrize(
    ("log", "text", "may_pass"),
    [
        ("[train] epoch 1\n\ntrain failed: params.yaml: train.lr: must be positive\n", "params.yaml: train.lr", False),
        (
            "[train] epoch 1\nF0101 main.go:59] failed to execute component: signal: killed\n",
            "its process was killed",
            True,
        ),
        (
            "[train] x\ntrain failed: http://mlflow:5000: no answer\n"
            "F0101 main.go:59] failed to execute component: exit status 69\n",
            "http://mlflow:5000: no answer",
            True,
        ),
        (
            "upload failed: slow, trying again\nF0101 main.go:59] failed to execute component: signal: killed\n",
            "its process was killed",
            True,
        ),
        (
            "train failed: it crashed\nF0101 main.go:59] failed to execute component: exit status 70\n",
            "it crashed",
            True,
        ),
        (
            "train failed: stopped by SIGTERM\nF0101 main.go:59] failed to execute component: exit status 75\n",
            "stopped by SIGTERM",
            True,
        ),
        ("train failed: there is no answer key\n", "there is no answer key", False),
        ("Traceback (most recent call last):\nValueError: x\n", "its code raised an exception", True),
        ("", "it ended with exit code 1", False),
    ],
)
def test_causes_in_the_log(log: str, text: str, may_pass: bool) -> None:
    node = Node("t-1", "t.executor(0)", FAILED, message="main: Error (exit code 1)")
    cause = find_cause(node, "train", Request(), log)
    assert cause.text.startswith(text)
    assert cause.may_pass is may_pass


@pytest.mark.parametrize(
    ("message", "text", "may_pass"),
    [
        ("Pod was terminated in response to imminent node shutdown.", "its node was shut down", True),
        ("The node was low on resource: memory.", "its pod was evicted from the node", True),
        ("Pod was active on the node longer than the specified deadline", "it reached its time limit", False),
        ('pods "x" is forbidden: exceeded quota: q, requested: cpu=4', "the namespace's quota refused its pod", True),
    ],
)
def test_causes_in_messages_that_were_not_recorded(message: str, text: str, may_pass: bool) -> None:
    cause = find_cause(Node("t-1", "t", ERROR, message=message), "train", Request())
    assert cause.text.startswith(text)
    assert cause.may_pass is may_pass


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ('0/1 nodes are available: persistentvolumeclaim "ckpt" not found.', "the volume claim ckpt, which is missing"),
        ("pod has unbound immediate PersistentVolumeClaims", "its volume, which is not bound"),
        (
            'ImagePullBackOff: Back-off pulling image "a/b:1"',
            'its image, which cannot be pulled (Back-off pulling image "a/b:1")',
        ),
        ('CreateContainerConfigError: secret "s3" not found', "the secret s3, which is missing"),
        ("0/3 nodes are available: 3 node(s) had untolerated taint {gpu: true}", "a node without taints"),
        (
            "0/3 nodes: 1 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint {a: b}",
            "a node with enough free resources, a node without taints",
        ),
        ("couldn't find key AWS_X in Secret kubeflow/yolact-s3", "the key AWS_X of the secret yolact-s3"),
        (
            "SchedulingGated: Scheduling is blocked due to non-empty scheduling gates",
            "its turn in Kueue's queue (`kubectl get workloads`)",
        ),
        ("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.", "a node with the labels of"),
        ("something new", "something new"),
    ],
)
def test_reasons_to_wait(message: str, text: str) -> None:
    assert explain_waiting(message, Request()).startswith(text)


def test_a_task_whose_container_has_ended_before_argo_says_so_is_running() -> None:
    name = "training-x(0).root(0).train(0).executor(0)"
    pod = {
        "metadata": {"name": "training-x-1"},
        "status": {"containerStatuses": [{"name": "main", "state": {"terminated": {"exitCode": 0}}}]},
    }
    assert Node("training-x-1", name, "Pending").with_pod(pod).phase == "Running"
    assert Node("training-x-1", name, "Succeeded").with_pod(pod).phase == "Succeeded"


def test_the_log_of_a_training_that_the_kernel_killed_too_often_says_so_and_may_pass() -> None:
    """The launcher of Kubeflow Pipelines ends with 1; the component's own exit code is in its log."""
    log = (FOLDER / "out-of-memory.log").read_text()
    node = Node("t-1", "t.executor(0)", FAILED, message="main: Error (exit code 1)")
    cause = find_cause(node, "train", Request(), log)
    assert cause.text.startswith("the training process was killed (SIGKILL, by the kernel for lack of memory")
    assert cause.may_pass


def test_only_the_lines_of_the_component_are_its_own() -> None:
    own = list(own_lines((FOLDER / "train.log").read_text()))
    assert len(own) == 11
    assert own[0].startswith("[train] MLflow run")
    assert own[-1].startswith("  checkpoints")
    killed = list(own_lines((FOLDER / "out-of-memory.log").read_text()))
    assert [line for line in killed if not line.startswith(("[train] the training process", "train failed: "))] == [""]


def test_a_task_that_cannot_be_prepared_has_failed() -> None:
    found = moments("out-of-memory")[-1]
    known = nodes(found, "workflow")
    root = next(name for name in known if name.endswith(".root(0)"))
    without = {name: node for name, node in known.items() if not name.startswith(f"{root}.train(0)")}
    del without[f"{root}.train"]
    without[f"{root}.train-driver(0)"] = replace(
        known[f"{root}.train-driver(0)"], phase=ERROR, message="no such secret"
    )
    (train,) = [
        task for task in read_run(api_run(found), tasks("out-of-memory"), without).tasks if task.name == "train"
    ]
    assert train.state is State.FAILED
    assert train.failed is not None
    assert train.failed.message == "no such secret"


def test_a_run_that_is_being_stopped_says_so() -> None:
    run = read("invalid-pod", moments("invalid-pod")[-1], "workflow")
    assert next(describe_run(run)).endswith(": running, and being stopped")
