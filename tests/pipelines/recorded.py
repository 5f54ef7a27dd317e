"""Recorded answers of a real Kubeflow Pipelines server; ``recorded/README.md`` describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kfp_server_api
import yaml

from pipelines.spec import PipelineTask, read_compiled
from pipelines.status.nodes import NODE_NAME, Node, from_run, from_workflow
from tests.pipelines.kfp_server import Server

FOLDER = Path(__file__).parent / "recorded"
GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))

Moment = dict[str, Any]


def moments(case: str) -> list[Moment]:
    """The moments of a case, the last one last."""
    found: list[Moment] = json.loads((FOLDER / f"{case}.json").read_text())
    return found


def pipeline_file(case: str) -> Path:
    """The compiled pipeline that the case's run ran; its tasks are still today's."""
    return GOLDEN / ("batch_prediction.yaml" if case.startswith("batch") else "training.yaml")


def tasks(case: str) -> tuple[PipelineTask, ...]:
    return read_compiled(pipeline_file(case)).tasks()


def api_run(moment: Moment) -> Any:
    """The run as the generated client gives it."""

    class Response:
        data = json.dumps(moment["run"])

    return kfp_server_api.ApiClient().deserialize(Response, "V2beta1Run")


def nodes(moment: Moment, source: str) -> dict[str, Node]:
    """The nodes as read from ``api`` (v2beta1 alone), ``workflow``, or ``pods`` (workflow and pods)."""
    if source == "api":
        return from_run(api_run(moment).run_details.task_details or [])
    found = from_workflow(moment["workflow"])
    for pod in moment["pods"] if source == "pods" else []:
        name = pod["metadata"]["annotations"].get(NODE_NAME)
        if name in found:
            found[name] = found[name].with_pod(pod)
    return found


def replay(server: Server, case: str, first: int = 0) -> str:
    """Have the fake server answer as recorded from moment ``first`` on, one moment a look; returns the run's id."""
    shown = moments(case)[first:]
    run = shown[0]["run"]
    reference = run["pipeline_version_reference"]
    spec, platform = yaml.safe_load_all(pipeline_file(case).read_text())
    version = {
        "pipeline_id": reference["pipeline_id"],
        "pipeline_version_id": reference["pipeline_version_id"],
        "name": "v1",
        "display_name": "v1",
        "created_at": run["created_at"],
        "pipeline_spec": {"pipeline_spec": spec, "platform_spec": platform},
    }
    server.pipelines[reference["pipeline_id"]] = {"pipeline_id": reference["pipeline_id"], "name": "recorded"}
    server.versions[reference["pipeline_version_id"]] = version
    server.runs[run["run_id"]] = {**run, "experiment_id": "e"}
    server.moments[run["run_id"]] = shown
    return str(run["run_id"])
