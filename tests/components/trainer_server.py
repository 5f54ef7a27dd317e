"""A stand-in for Kubernetes with the Kubeflow Trainer: answers in the forms that a real one gave."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.servers.servers import listening

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded_trainer.json").read_text(encoding="utf-8"))
RUNTIME_FILE = Path(__file__).parents[2] / "deploy" / "train" / "runtime.yaml"


@dataclass
class TrainerServer:
    """What the server has, and how it behaves."""

    host: str = ""
    has_trainer: bool = True
    has_runtime: bool = True
    refusal: dict[str, Any] | None = None
    """Answer to every request that makes a TrainJob."""
    forbidden: bool = False
    broken: int = 0
    """Requests that are answered with 503 from now on."""
    job: dict[str, Any] | None = None
    others: list[str] = field(default_factory=list)
    """Names of TrainJobs of other runs."""
    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, list[str]] = field(default_factory=dict)
    """Lines by pod, with their time stamps."""
    posted: list[dict[str, Any]] = field(default_factory=list)
    deleted: int = 0
    on_create: Callable[[], None] = lambda: None
    on_look: Callable[[], None] = lambda: None
    """Called before each answer about the TrainJob once it is there."""
    on_delete: Callable[[], None] = lambda: None

    def create(self, body: dict[str, Any]) -> None:
        """Make the TrainJob and its pods."""
        self.posted.append(body)
        metadata = {"namespace": "kubeflow", "creationTimestamp": "2026-11-30T05:04:11Z", "uid": "u"}
        self.job = body | {"metadata": body["metadata"] | metadata}
        self.pods = [self.pod(f"{body['metadata']['name']}-node-0-{index}-a", index) for index in (0, 1)]
        self.on_create()

    def pod(self, name: str, index: int) -> dict[str, Any]:
        """A running pod of a node."""
        pod = copy.deepcopy(RECORDED["pods"][0])
        pod["metadata"]["name"] = name
        pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = str(index)
        return pod

    def finish(self, condition: dict[str, Any] | None = None) -> None:
        """The TrainJob's end: complete, or with the given condition."""
        assert self.job is not None
        complete = {"type": "Complete", "status": "True", "reason": "AllJobsCompleted", "message": "jobset completed"}
        self.job["status"] = {"conditions": [condition or complete]}


class _Handler(BaseHTTPRequestHandler):
    state: TrainerServer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _send(self, code: int, answer: Any) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, kind: str) -> None:
        answer = RECORDED["answers"][kind]
        self._send(answer["code"], answer)

    def _is_refused(self) -> bool:
        if self.state.broken:
            self.state.broken -= 1
            self._send(503, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "ServiceUnavailable"})
            return True
        if self.state.forbidden and "trainer.kubeflow.org" in self.path:
            self._refuse("forbidden")
            return True
        return False

    def do_GET(self) -> None:
        state, url = self.state, urlsplit(self.path)
        if self._is_refused():
            return
        if url.path == "/apis/":
            names = ["apps", "batch", *(["trainer.kubeflow.org"] if state.has_trainer else [])]
            self._send(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name) for name in names]})
        elif "/trainingruntimes/yolact-torch" in url.path and state.has_runtime:
            runtime = yaml.safe_load(RUNTIME_FILE.read_text(encoding="utf-8"))
            self._send(200, runtime | {"metadata": runtime["metadata"] | {"namespace": "kubeflow"}})
        elif url.path.rpartition("/")[2] in state.others:
            self._send(200, {"metadata": {"name": url.path.rpartition("/")[2]}})
        elif "/trainjobs/" in url.path:
            if state.job is not None:
                state.on_look()
            if state.job is None:
                self._refuse("missing")
            else:
                self._send(200, state.job)
        elif url.path.endswith("/pods"):
            self._send(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": state.pods})
        elif url.path.endswith("/log"):
            pod, query = url.path.split("/")[-2], parse_qs(url.query)
            assert (query["container"], query["timestamps"]) == (["node"], ["True"])
            self._send(200, "".join(f"{line}\n" for line in state.logs.get(pod, [])))
        else:
            self._refuse("missing")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._is_refused():
            return
        if self.state.refusal is not None:
            self._send(self.state.refusal["code"], self.state.refusal)
        elif self.state.job is not None:
            self._refuse("exists")
        else:
            self.state.create(body)
            self._send(201, self.state.job)

    def do_DELETE(self) -> None:
        if self._is_refused():
            return
        if self.state.job is None:
            self._refuse("missing")
            return
        self.state.deleted += 1
        self.state.on_delete()
        self.state.job, self.state.pods = None, []
        self._send(200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})


def _group(name: str) -> dict[str, Any]:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


@contextmanager
def trainer_server(kubeconfig: Path) -> Iterator[TrainerServer]:
    """A server, and a kubeconfig that leads to it."""
    state = TrainerServer()
    with listening(type("Handler", (_Handler,), {"state": state})) as port:
        state.host = f"http://127.0.0.1:{port}"
        tree = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": state.host}}],
            "users": [{"name": "task", "user": {"token": "secret"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "task", "namespace": "kubeflow"}}],
            "current-context": "here",
        }
        kubeconfig.write_text(yaml.safe_dump(tree), encoding="utf-8")
        yield state
