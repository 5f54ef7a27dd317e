"""How a run's nodes are read; `test_remote` has runs as users see them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import kfp_server_api as kfp_api
import pytest

from pipelines.runs import RunStatus, read_run

START = datetime(2026, 11, 25, 12, tzinfo=UTC)
NEVER = datetime(1970, 1, 1, tzinfo=UTC)


def node(name: str, state: str, digits: str, children: tuple[str, ...] = (), **more: Any) -> Any:
    below = [kfp_api.PipelineTaskDetailChildTask(pod_name=f"run-{child}") for child in children]
    return kfp_api.V2beta1PipelineTaskDetail(
        **{
            "display_name": name,
            "state": state,
            "pod_name": f"run-template-{digits}",
            "child_tasks": below,
            "start_time": START,
            "end_time": NEVER,
            **more,
        }
    )


def run(*nodes: Any, state: str = "RUNNING") -> RunStatus:
    details = kfp_api.V2beta1RunDetails(task_details=list(nodes)) if nodes else None
    return read_run(kfp_api.V2beta1Run(run_id="id", display_name="name", state=state, run_details=details))


def test_a_new_run_has_no_tasks() -> None:
    found = run(state="PENDING")
    assert found.tasks == ()
    assert not found.is_over


def test_loop_nodes_are_left_out_and_their_tasks_distinguished() -> None:
    found = run(
        node("run", "RUNNING", "0", pod_name="run"),
        node("root", "RUNNING", "1"),
        node("for-loop-1", "RUNNING", "2"),
        node("iteration-iterations(0:0)", "RUNNING", "3"),
        node("iteration-item-driver", "SUCCEEDED", "4"),
        node("iteration-item", "RUNNING", "5"),
        node("predict-driver", "SUCCEEDED", "6"),
        node("predict", "SUCCEEDED", "7", ("8",)),
        node("executor", "SUCCEEDED", "8"),
        node("predict", "RUNNING", "9", ("10",)),
        node("executor", "RUNNING", "10"),
    )
    assert [(task.name, task.state, task.pods) for task in found.tasks] == [
        ("for-loop-1", "RUNNING", ()),
        ("predict", "SUCCEEDED", ("run-template-8",)),
        ("predict", "RUNNING", ("run-template-10",)),
    ]
    assert len({task.node for task in found.tasks}) == 3


def test_nested_failures_are_reported_by_the_tasks_with_pods() -> None:
    found = run(
        node("for-loop-1", "FAILED", "2"), node("predict", "FAILED", "7", ("8",)), node("executor", "FAILED", "8")
    )
    assert [task.name for task in found.failed_tasks] == ["predict"]
    assert [task.name for task in run(node("train", "FAILED", "2")).failed_tasks] == ["train"]


@pytest.mark.parametrize(("executor", "cached"), [("SKIPPED", True), ("SUCCEEDED", False), (None, False)])
def test_only_a_skipped_executor_means_the_cache(executor: str | None, cached: bool) -> None:
    below = [node("executor", executor, "8")] if executor else []
    (task,) = run(node("ingest", "SUCCEEDED", "7", ("8",)), *below).tasks
    assert task.cached is cached


def test_the_newest_error_of_the_history_is_the_message() -> None:
    def status(message: str | None) -> Any:
        error = kfp_api.GoogleRpcStatus(message=message) if message else None
        return kfp_api.V2beta1RuntimeStatus(state="FAILED", error=error)

    (task,) = run(
        node("train", "FAILED", "7", ("8",)),
        node("executor", "FAILED", "8", state_history=[status("old"), status("out of\nmemory"), status(None)]),
    ).tasks
    assert task.message == "out of memory"


def test_times_that_mean_not_yet_are_left_out() -> None:
    (task,) = run(node("train", "RUNNING", "7", end_time=datetime(1, 1, 1, tzinfo=UTC))).tasks
    assert (task.started, task.finished) == (START, None)
    (task,) = run(node("train", "PENDING", "7", start_time=NEVER)).tasks
    assert (task.started, task.finished) == (None, None)
