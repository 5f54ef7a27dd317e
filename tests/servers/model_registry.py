"""Kubeflow's Model Registry for tests: the real server where its program is found, and a small one in memory.

The small one answers like the real one: `tests/servers/test_model_registry.py` compares both with recorded answers.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.servers.mlflow_servers import postgres_server
from tests.servers.servers import free_port, listening

PROGRAM = "MODEL_REGISTRY_SERVER"
"""Environment variable with the path of the real server's program, if ``model-registry`` is not in PATH."""
DATABASE_PROGRAMS = "MODEL_REGISTRY_POSTGRES"
"""Environment variable with the folder of a PostgreSQL's programs, if the newest one installed is older than 16."""

Tree = dict[str, Any]

ENTRIES = {
    "registered_model": "registered models",
    "model_version": "model versions",
    "model_artifact": "model artifacts",
}
"""Kinds, as in paths, with their names in messages."""


@dataclass
class SmallModelRegistry:
    """A Model Registry in memory, with the requests that the project uses."""

    api: str = "v1alpha3"
    token: str = ""
    """What requests must bear; empty: nothing."""
    entries: list[tuple[str, Tree]] = field(default_factory=list)
    """Kind and entry, in the order of creation."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    address: str = ""

    def find(self, kind: str, name: str, parent: str = "") -> Tree | None:
        return next((e for k, e in self.entries if (k, e["name"], _parent(e)) == (kind, name, parent)), None)

    def by_id(self, kind: str, number: str) -> Tree | None:
        return next((e for k, e in self.entries if (k, e["id"]) == (kind, number)), None)

    def answer(self, method: str, path: str, query: dict[str, str], body: Tree) -> tuple[int, Tree | str]:
        parts = path.strip("/").split("/")
        if parts[:3] != ["api", "model_registry", self.api]:
            return 404, "404 page not found\n"
        match method, parts[3:]:
            case "GET", ["registered_models"]:
                return self._page("registered_model", "", query)
            case "GET", ["registered_models", parent, "versions"]:
                return self._page("model_version", parent, query)
            case "GET", [kind] if kind in ENTRIES:
                found = self.find(kind, query["name"], query.get("parentResourceId", ""))
                return (200, _shown(found)) if found else _error(404, "Not Found", f"no {ENTRIES[kind]} found")
            case "POST", ["registered_models"]:
                return self._create("registered_model", body)
            case "POST", ["model_versions"]:
                return self._create("model_version", body)
            case "POST", ["model_versions", parent, "artifacts"]:
                if self.by_id("model_version", parent) is None:
                    return _error(404, "Not Found", f"no model version found for id {parent}")
                return self._create("model_artifact", body | {"_parent": parent})
            case "PATCH", [kinds, number]:
                return self._update(kinds.removesuffix("s"), number, body)
        return 404, "404 page not found\n"

    def _create(self, kind: str, body: Tree) -> tuple[int, Tree | str]:
        if kind == "model_version" and not body.get("registeredModelId"):
            return _error(422, "Bad Request", "required field 'registeredModelId' is zero value.")
        if self.find(kind, body["name"], _parent(body)) is not None:
            return _error(
                409, "Conflict", f"{kind.replace('_', ' ')} with name {body['name']} already exists: conflict"
            )
        started = {} if kind == "model_artifact" else {"state": "LIVE"}
        entry = {"customProperties": {}} | started | body | {"id": str(len(self.entries) + 1)}
        self.entries.append((kind, entry))
        return 201, _shown(entry)

    def _update(self, kind: str, number: str, body: Tree) -> tuple[int, Tree | str]:
        found = self.by_id(kind, number)
        if found is None:
            return _error(404, "Not Found", f"no {kind.replace('_', ' ')} found for id {number}: not found")
        found |= {"state": "UNKNOWN" if kind == "model_artifact" else "LIVE"} | body
        return 200, _shown(found)

    def _page(self, kind: str, parent: str, query: dict[str, str]) -> tuple[int, Tree | str]:
        size = int(query.get("pageSize", 20))
        start = int(base64.b64decode(query["nextPageToken"])) if "nextPageToken" in query else 0
        found = [_shown(entry) for k, entry in self.entries if k == kind and _parent(entry) == parent]
        more = start + size < len(found)
        items = found[start : start + size]
        token = base64.b64encode(str(start + size).encode()).decode() if more else ""
        return 200, {"items": items, "nextPageToken": token, "pageSize": size, "size": len(items)}


def _parent(entry: Tree) -> str:
    return str(entry.get("registeredModelId") or entry.get("_parent") or "")


def _shown(entry: Tree) -> Tree:
    times = {"createTimeSinceEpoch": "1", "lastUpdateTimeSinceEpoch": "1"}
    return {key: value for key, value in entry.items() if key != "_parent"} | times


def _error(status: int, code: str, message: str) -> tuple[int, Tree]:
    return status, {"code": code, "message": message}


@contextmanager
def small_model_registry(**settings: Any) -> Iterator[SmallModelRegistry]:
    """Serve one; ``settings`` are the fields of `SmallModelRegistry`."""
    registry = SmallModelRegistry(**settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else {}
            if registry.token and self.headers.get("Authorization") != f"Bearer {registry.token}":
                status, content = 401, "no token\n"
            else:
                with registry.lock:
                    status, answer = registry.answer(self.command, url.path, query, body)
                content = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content.encode())))
            self.end_headers()
            self.wfile.write(content.encode())

        do_POST = do_GET  # noqa: N815
        do_PATCH = do_GET  # noqa: N815

    with listening(Handler) as port:
        registry.address = f"http://127.0.0.1:{port}"
        yield registry


@pytest.fixture(scope="session")
def real_model_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the real server on a PostgreSQL database of its own; skips where a program is missing."""
    program = os.environ.get(PROGRAM) or shutil.which("model-registry")
    if program is None:
        pytest.skip(f"no program model-registry: build github.com/kubeflow/model-registry (Go) and set {PROGRAM}")
    programs = os.environ.get(DATABASE_PROGRAMS)
    with postgres_server(None if programs is None else Path(programs)) as database:
        login = urlsplit(database.address)
        dsn = f"host={login.hostname} port={login.port} user={login.username} password={login.password} "
        port, log = free_port(), tmp_path_factory.mktemp("model-registry") / "log.txt"
        with log.open("wb") as said:
            process = subprocess.Popen(
                [
                    *(program, "proxy", "--hostname", "127.0.0.1", "--port", str(port)),
                    *("--embedmd-database-type", "postgres"),
                    *("--embedmd-database-dsn", f"{dsn} dbname={login.path.strip('/')} sslmode=disable"),
                ],
                stdout=said,
                stderr=said,
            )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None or "syntax error" in log.read_text():
            break
        try:
            with urllib.request.urlopen(f"{address}/api/model_registry/v1alpha3/registered_models", timeout=5):
                return
        except OSError:  # it answers 503 until its tables are there
            time.sleep(0.1)
    if "syntax error" in log.read_text():
        pytest.skip(f"the Model Registry needs PostgreSQL 16 or newer: set {DATABASE_PROGRAMS} to its bin folder")
    pytest.fail(f"the Model Registry did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(params=["small", "real"])
def model_registry(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a Model Registry: the small one, then the real one."""
    if request.param == "real":
        yield request.getfixturevalue("real_model_registry")
        return
    with small_model_registry() as registry:
        yield registry.address


def exchange(address: str, method: str, path: str, body: Tree | None = None) -> tuple[int, Any]:
    """Send a request to version v1alpha3 of the API; return the status and the JSON, or the text."""
    request = urllib.request.Request(
        f"{address}/api/model_registry/v1alpha3/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text


def unique_name() -> str:
    """A name of a model that no other test uses."""
    return f"yolact-{uuid.uuid4().hex[:8]}"
