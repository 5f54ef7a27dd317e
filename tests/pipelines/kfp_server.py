"""A fake Kubeflow Pipelines server: keeps state, and validates every request against the API's definition.

The definition is the API's swagger file, which is next to the checkout on some machines; elsewhere the requests are
compared with a list of those that the client is known to send (`KNOWN_REQUESTS`). Answers are checked too, so that the
fake cannot drift away from the API. `Server.problems` collects what was wrong.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import re
import ssl
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, unquote_to_bytes, urlsplit

import yaml

from tests.servers.servers import listening

API = "/apis/v2beta1"

LOGS = re.compile(r"/k8s/pod/logs|/apis/v1alpha1/runs/[^/]+/nodes/[^/]+/log")
"""Logs, outside the definition: of the web interface's server, of the API server."""

OLD_RUN = re.compile(r"/apis/v1beta1/runs/([^/]+)")
"""A run in the API before v2beta1."""

RUN_FIELDS = {
    "display_name", "description", "experiment_id", "pipeline_version_reference", "runtime_config", "service_account",
}  # fmt: skip
KNOWN_REQUESTS: list[tuple[str, str, set[str], set[str]]] = [
    ("GET", "/healthz", set(), set()),
    ("GET", "/pipelines/names/[^/]+", {"namespace"}, set()),
    ("POST", "/pipelines", set(), {"name", "display_name", "namespace", "tags"}),
    ("POST", "/pipelines/upload_version", {"name", "pipelineid", "tags"}, {"uploadfile"}),
    ("GET", "/pipelines/[^/]+/versions", {"filter"}, set()),
    ("GET", "/pipelines/[^/]+/versions/[^/]+", set(), set()),
    ("GET", "/experiments", {"filter", "page_size", "namespace"}, set()),
    ("POST", "/experiments", set(), {"display_name", "namespace"}),
    ("GET", "/runs", {"filter", "sort_by", "page_size", "experiment_id", "namespace"}, set()),
    ("GET", "/runs/[^/:]+", set(), set()),
    ("POST", "/runs/[^/:]+:(retry|terminate)", set(), set()),
    ("POST", "/runs", set(), RUN_FIELDS),
    ("GET", "/recurringruns", {"filter", "sort_by", "page_size", "page_token", "namespace"}, set()),
    ("POST", "/recurringruns", set(), RUN_FIELDS | {"max_concurrency", "mode", "no_catchup", "trigger"}),
    ("DELETE", "/recurringruns/[^/]+", set(), set()),
]
"""Method, path, names of query parameters, fields of the body."""


def unescape_again(text: str) -> str:
    """What the real server does to a filter that HTTP has decoded already: Go's ``url.QueryUnescape``.

    Unlike Python's function, it refuses a ``%`` without two digits.
    """
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise RefusalError(400, f"Invalid input error: failed to parse valid filter from {text!r}")
    return unquote_to_bytes(text.replace("+", " ")).decode()


class Definition:
    """The swagger file as a check of requests and answers."""

    def __init__(self, path: Path) -> None:
        tree = json.loads(path.read_text(encoding="utf-8"))
        self._definitions = tree["definitions"]
        # Fixed paths come before those with a placeholder in the same place.
        self._paths = sorted(tree["paths"].items(), key=lambda item: item[0].count("{"))

    def check_request(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> Iterator[str]:
        """Problems of a request; ``body`` is JSON, or the parts' names of a form."""
        operation = self._operation(method, path)
        if operation is None:
            yield f"{method} {path}: no such operation"
            return
        parameters = operation.get("parameters", [])
        known = {parameter["name"]: parameter for parameter in parameters if parameter["in"] == "query"}
        for name, values in query.items():
            if name not in known:
                yield f"{method} {path}: unknown query parameter {name}"
            else:
                yield from (f"{method} {path}: {problem}" for problem in self._check_query(known[name], values))
        bodies = [parameter for parameter in parameters if parameter["in"] in ("body", "formData")]
        if not bodies and body is not None:
            yield f"{method} {path}: takes no body"
        for parameter in bodies:
            if parameter["in"] == "formData":
                if body != [parameter["name"]]:
                    yield f"{method} {path}: form parts {body}, not {parameter['name']}"
            else:
                yield from self._check(parameter["schema"], body, f"{method} {path}: body", is_request=True)

    def check_answer(self, method: str, path: str, answer: Any) -> Iterator[str]:
        """Problems of an answer of ours with state 200."""
        operation = self._operation(method, path)
        if operation is not None:
            schema = operation["responses"]["200"].get("schema", {})
            yield from self._check(schema, answer, f"answer to {method} {path}", is_request=False)

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for template, operations in self._paths:
            pattern = re.sub(r"\\{[^}]+\\}", "[^/:]+", re.escape(template))
            if re.fullmatch(pattern, path) and method.lower() in operations:
                found: dict[str, Any] = operations[method.lower()]
                return found
        return None

    def _check_query(self, parameter: dict[str, Any], values: list[str]) -> Iterator[str]:
        name, kind = parameter["name"], parameter["type"]
        if len(values) != 1:
            yield f"query parameter {name} is given {len(values)} times"
        if kind == "integer" and not values[0].isdigit():
            yield f"query parameter {name}: {values[0]!r} is no integer"
        if kind == "boolean" and values[0] not in ("true", "false"):
            yield f"query parameter {name}: {values[0]!r} is no boolean"
        if name == "filter":
            yield from self._check(
                {"$ref": "#/definitions/v2beta1Filter"}, json.loads(unescape_again(values[0])), name, True
            )
        if name == "sort_by" and not re.fullmatch(r"\w+ (asc|desc)", values[0]):
            yield f"query parameter sort_by: {values[0]!r}"

    def _check(self, schema: dict[str, Any], value: Any, where: str, is_request: bool) -> Iterator[str]:
        if "$ref" in schema:
            schema = self._definitions[schema["$ref"].rpartition("/")[2]]
        kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
        kind = schema.get("type")
        if kind is None:
            return
        if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean"):
            yield f"{where}: {value!r} is no {kind}"
            return
        if kind == "object":
            yield from self._check_object(schema, value, where, is_request)
        elif kind == "array":
            for index, item in enumerate(value):
                yield from self._check(schema["items"], item, f"{where}[{index}]", is_request)
        elif kind == "string":
            yield from self._check_string(schema, value, where)

    def _check_object(
        self, schema: dict[str, Any], value: dict[str, Any], where: str, is_request: bool
    ) -> Iterator[str]:
        properties = schema.get("properties")
        further = schema.get("additionalProperties")
        if properties is None and further is None:
            return  # any object, as a pipeline's specification
        for name, item in value.items():
            part = (properties or {}).get(name, further)
            if part is None:
                yield f"{where}: unknown field {name}"
                continue
            if is_request and str(part.get("description", "")).startswith("Output"):
                yield f"{where}: field {name} is the server's to give"
            yield from self._check(part, item, f"{where}.{name}", is_request)

    def _check_string(self, schema: dict[str, Any], value: str, where: str) -> Iterator[str]:
        if "enum" in schema and value not in schema["enum"]:
            yield f"{where}: {value!r} is none of {schema['enum']}"
        if schema.get("format") == "int64" and not re.fullmatch(r"-?\d+", value):
            yield f"{where}: {value!r} is no int64"
        if schema.get("format") == "date-time" and datetime.fromisoformat(value).tzinfo is None:
            yield f"{where}: {value!r} has no time zone"


def check_known(method: str, path: str, query: Mapping[str, list[str]], body: Any) -> Iterator[str]:
    """Problems of a request where there is no definition: it is not one of `KNOWN_REQUESTS`."""
    for known_method, pattern, names, fields in KNOWN_REQUESTS:
        if known_method == method and re.fullmatch(API + pattern, path):
            yield from (f"{method} {path}: query parameter {name}" for name in query.keys() - names)
            yield from (f"{method} {path}: field {name}" for name in set(body or ()) - fields)
            return
    yield f"{method} {path}: not a known request"


@dataclass
class Fault:
    """A failure of the server, ``times`` times, for requests whose ``METHOD PATH`` matches ``pattern``."""

    pattern: str
    status: int = 0
    """Status of the response; 0 closes the connection without one."""
    times: int = 1
    after: bool = False
    """Carry out the request first."""
    seconds: float = 0.0
    """Seconds to wait first."""


@dataclass
class Server:
    """State and behaviour of the fake server."""

    definition: Definition | None
    multi_user: bool = False
    token: str | None = None
    """Required in requests."""
    has_interface: bool = True
    """It is the web interface's server, which gives logs and pages; if not, the API server alone."""
    login_page: bool = False
    """Everything is answered with a page."""
    forbidden: bool = False
    page_size: int = 100
    """Most entries in a list, whatever was asked for."""
    host: str = ""
    version: str = "2.17.0"
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    moments: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Recorded moments of a run, by its id: each look shows the next one, and the last one stays."""
    shown: set[str] = field(default_factory=set)
    """Runs whose first moment has been shown."""
    after_retry: list[dict[str, Any]] = field(default_factory=list)
    """Moments of a run from its retry on."""
    has_old_api: bool = True
    """It gives the runs' workflows in the v1beta1 API."""
    logs: dict[str, str] = field(default_factory=dict)
    """By the name of the pod, while it exists; by the id of the node, if archived."""
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """``METHOD PATH`` of all requests, in order."""
    problems: list[str] = field(default_factory=list)
    _clock: int = 0

    def count(self, pattern: str) -> int:
        """How many requests ``pattern`` finds in ``METHOD PATH``."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def now(self) -> str:
        """A time, one second later each time."""
        self._clock += 1
        return stamp(self._clock)


def stamp(seconds: float) -> str:
    """A time as the API writes it."""
    moment = datetime(2026, 11, 25, 12, tzinfo=UTC) + timedelta(seconds=seconds)
    return moment.isoformat().replace("+00:00", "Z")


class RefusalError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        state, url = self.state, urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query, keep_blank_values=True)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state.requests.append(f"{method} {path}")
        fault = self._next_fault(f"{method} {path}")
        if fault and fault.seconds:
            time.sleep(fault.seconds)
        if fault and not fault.after:
            self._break(fault)
            return
        try:
            answer = self._answer(method, path, query, raw)
        except RefusalError as refusal:
            self._send(refusal.status, json.dumps({"code": 5, "message": str(refusal), "details": []}))
            return
        if fault:
            self._break(fault)
        elif isinstance(answer, str):
            kind = "text/html; charset=utf-8" if answer.startswith("<!doctype html>") else "text/plain"
            self._send(200, answer, kind)
        else:
            self._send(200, json.dumps(answer))

    def _next_fault(self, request: str) -> Fault | None:
        for fault in self.state.faults:
            if fault.times and re.search(fault.pattern, request):
                fault.times -= 1
                return fault
        return None

    def _break(self, fault: Fault) -> None:
        if fault.status:
            self._send(fault.status, json.dumps({"code": 13, "message": "the database is away", "details": []}))
        else:
            self.close_connection = True

    def _send(self, status: int, text: str, kind: str = "application/json") -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if 300 <= status < 400:
            self.send_header("Location", "/dex/auth")
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, method: str, path: str, query: dict[str, list[str]], raw: bytes) -> Any:
        state = self.state
        if state.login_page:
            return "<!doctype html><title>Log in</title>"
        if LOGS.fullmatch(path):
            return self._log(path, query)
        if found := OLD_RUN.fullmatch(path):
            return self._old_run(found[1])
        if not path.startswith("/apis/"):
            if state.has_interface:
                return "<!doctype html><title>Kubeflow Pipelines</title>"
            raise RefusalError(404, "Not Found")
        if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
            raise RefusalError(401, "Request header error: there is no user identity header")
        if state.forbidden and not path.endswith("/healthz"):
            raise RefusalError(403, "User 'ann' is not authorized with reason: (request: {Namespace: team})")
        body, upload = _read_body(self.headers.get("Content-Type", ""), raw)
        check = state.definition.check_request if state.definition else check_known
        state.problems += check(method, path, query, body)
        answer = _Backend(state, {name: values[0] for name, values in query.items()}, body, upload).answer(method, path)
        if state.definition:
            state.problems += state.definition.check_answer(method, path, answer)
        if path == f"{API}/healthz":  # outside the definition (``healthzResponse`` in the server's main.go)
            answer |= {"commit_sha": "unknown", "tag_name": state.version}
        return answer

    def _old_run(self, run_id: str) -> Any:
        if not self.state.has_old_api:
            raise RefusalError(404, "Not Found")
        moments = self.state.moments.get(run_id, [{}])
        return {
            "run": {"id": run_id},
            "pipeline_runtime": {"workflow_manifest": json.dumps(moments[0].get("workflow"))},
        }

    def _log(self, path: str, query: dict[str, list[str]]) -> str:
        if path.startswith("/k8s"):
            if not self.state.has_interface:
                raise RefusalError(404, "Not Found")
            assert set(query) == {"podname", "runid", "podnamespace"}
            pod = query["podname"][0]
        else:
            pod = path.split("/")[-2]
        if pod not in self.state.logs:
            if path.startswith("/apis"):
                return '{"error_message":"Failed to read logs: pod not found","error_details":"..."}'
            raise RefusalError(500 if path.startswith("/k8s") else 404, "Could not get main container logs")
        log = self.state.logs[pod]
        return log if re.search("-(impl|driver)-", pod) or not path.startswith("/apis") else _from_archive(log)


def _from_archive(log: str) -> str:
    """A log as the API server shows it once its pod is gone: lines that are JSON objects become their field ``log``."""
    lines = []
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            lines.append(line)
        else:
            lines.append(str(entry.get("log", "")) if isinstance(entry, dict) else line)
    return "\n".join(lines) + "\n"


def _read_body(kind: str, raw: bytes) -> tuple[Any, str | None]:
    """The body as JSON, or a form's parts' names and the text of the uploaded file."""
    if not raw:
        return None, None
    if not kind.startswith("multipart/form-data"):
        return json.loads(raw), None
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        f"Content-Type: {kind}\r\n\r\n".encode() + raw
    )
    parts = list(message.iter_parts())
    names = [part.get_param("name", header="content-disposition") for part in parts]
    return names, parts[0].get_payload(decode=True).decode()


@dataclass
class _Backend:
    """One request's work on the state."""

    state: Server
    query: dict[str, str]
    body: Any
    upload: str | None

    def answer(self, method: str, path: str) -> Any:
        routes = {
            r"GET /healthz": self.health,
            r"GET /pipelines/names/([^/]+)": self.pipeline_by_name,
            r"POST /pipelines": self.make_pipeline,
            r"POST /pipelines/upload_version": self.make_version,
            r"GET /pipelines/([^/]+)/versions": self.list_versions,
            r"GET /pipelines/([^/]+)/versions/([^/]+)": self.version,
            r"GET /experiments": lambda: {"experiments": self.find(self.state.experiments)},
            r"POST /experiments": self.make_experiment,
            r"GET /runs": lambda: {"runs": self.find(self.state.runs)[: int(self.query["page_size"])]},
            r"GET /runs/([^/:]+)": self.run,
            r"POST /runs/([^/:]+):retry": self.retry_run,
            r"POST /runs/([^/:]+):terminate": lambda run_id: {},
            r"POST /runs": self.make_run,
            r"GET /recurringruns": self.list_recurring,
            r"POST /recurringruns": self.make_recurring,
            r"DELETE /recurringruns/([^/]+)": self.delete_recurring,
        }
        for pattern, work in routes.items():
            match = re.fullmatch(pattern, f"{method} {path.removeprefix(API)}")
            if match:
                return work(*match.groups())
        raise RefusalError(404, f"Not Found: {method} {path}")

    def find(self, things: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that fit the query's filter, experiment and namespace, in its order."""
        found = list(things.values())
        if "filter" in self.query:
            (predicate,) = json.loads(unescape_again(self.query["filter"]))["predicates"]
            assert predicate["operation"] == "EQUALS"
            wanted = predicate["string_value"].lower()  # MySQL and MariaDB ignore case
            found = [thing for thing in found if thing[predicate["key"]].lower() == wanted]
        if "experiment_id" in self.query:
            found = [thing for thing in found if thing["experiment_id"] == self.query["experiment_id"]]
        if self.state.multi_user and "namespace" not in self.query and things is not self.state.versions:
            raise RefusalError(400, "Invalid input error: namespace is empty")
        field_name, _, order = self.query.get("sort_by", "created_at asc").partition(" ")
        return sorted(found, key=lambda thing: thing[field_name], reverse=order == "desc")

    def get(self, things: dict[str, dict[str, Any]], what: str, key: str) -> dict[str, Any]:
        if key not in things:
            raise RefusalError(404, f"{what} {key} not found")
        return things[key]

    def check_namespace(self, namespace: str | None) -> None:
        if self.state.multi_user and not namespace:
            raise RefusalError(400, "Invalid input error: namespace is empty")
        if not self.state.multi_user and namespace:
            raise RefusalError(400, "Invalid input error: In single-user mode, the request shouldn't contain namespace")

    def health(self) -> Any:
        return {"multi_user": True} if self.state.multi_user else {}

    def pipeline_by_name(self, name: str) -> Any:
        self.check_namespace(self.query.get("namespace"))
        for pipeline in self.state.pipelines.values():
            if pipeline["name"] == name:
                return pipeline
        raise RefusalError(404, f"Failed to get a pipeline with name {name}")

    def make_pipeline(self) -> Any:
        self.check_namespace(self.body.get("namespace"))
        if "" in self.body.get("tags", {}):  # ``ValidateTags`` of 2.17
            raise RefusalError(400, "Invalid input error: tag key cannot be empty")
        if any(pipeline["name"] == self.body["name"] for pipeline in self.state.pipelines.values()):
            raise RefusalError(409, f"Already exist error: the name {self.body['name']} already exists")
        return self.keep(self.state.pipelines, "pipeline_id", self.body)

    def make_version(self) -> Any:
        self.get(self.state.pipelines, "Pipeline", self.query["pipelineid"])
        name = self.query["name"]
        if any(version["name"] == name for version in self.state.versions.values()):
            raise RefusalError(409, "Failed to create a pipeline version")
        assert self.upload is not None
        documents = [yaml.safe_load(text) for text in self.upload.split("\n---\n")]  # as the server does
        spec = documents[0] if len(documents) == 1 else {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        tags = json.loads(self.query["tags"])
        assert all("." not in key and max(len(key), len(value)) <= 63 for key, value in tags.items())
        version = {"pipeline_id": self.query["pipelineid"], "name": name, "display_name": name, "tags": tags}
        return self.keep(self.state.versions, "pipeline_version_id", {**version, "pipeline_spec": spec})

    def list_versions(self, pipeline_id: str) -> Any:
        found = [version for version in self.find(self.state.versions) if version["pipeline_id"] == pipeline_id]
        return {"pipeline_versions": found}

    def version(self, pipeline_id: str, version_id: str) -> Any:
        self.get(self.state.pipelines, "Pipeline", pipeline_id)
        return self.get(self.state.versions, "PipelineVersion", version_id)

    def make_experiment(self) -> Any:
        self.check_namespace(self.body.get("namespace"))
        return self.keep(self.state.experiments, "experiment_id", self.body)

    def run(self, run_id: str) -> Any:
        run = self.get(self.state.runs, "Run", run_id)
        moments = self.state.moments.get(run_id, [])
        if len(moments) > 1 and run_id in self.state.shown:
            moments.pop(0)
        if moments:
            run |= moments[0]["run"]
            self.state.shown.add(run_id)
        return run

    def retry_run(self, run_id: str) -> Any:
        self.get(self.state.runs, "Run", run_id)
        self.state.moments[run_id] = [self.state.moments[run_id][-1], *self.state.after_retry]
        return {}

    def check_job(self) -> None:
        reference = self.body["pipeline_version_reference"]
        self.get(self.state.experiments, "Experiment", self.body["experiment_id"])
        version = self.state.versions.get(reference["pipeline_version_id"])
        if version is None:  # 2.17 wraps the 404
            raise RefusalError(500, "InternalServerError: Failed to create a run due to error fetching manifest")
        assert version["pipeline_id"] == reference["pipeline_id"]

    def make_run(self) -> Any:
        self.check_job()
        return self.keep(self.state.runs, "run_id", {"state": "PENDING", **self.body})

    def list_recurring(self) -> Any:
        found = self.find(self.state.recurring)
        first = int(self.query.get("page_token", "0"))
        after = first + min(self.state.page_size, int(self.query["page_size"]))
        return {
            "recurringRuns": found[first:after],
            **({"next_page_token": str(after)} if after < len(found) else {}),
        }

    def make_recurring(self) -> Any:
        self.check_job()
        cron = self.body["trigger"]["cron_schedule"]["cron"]
        assert cron.startswith("@") or len(cron.split()) == 6, "five fields would be read as seconds first"
        status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[self.body["mode"]]
        return self.keep(self.state.recurring, "recurring_run_id", {**self.body, "status": status})

    def delete_recurring(self, recurring_run_id: str) -> Any:
        self.get(self.state.recurring, "RecurringRun", recurring_run_id)
        del self.state.recurring[recurring_run_id]
        return {}

    def keep(self, things: dict[str, dict[str, Any]], key: str, thing: dict[str, Any]) -> dict[str, Any]:
        made = {**thing, key: str(uuid.uuid4()), "created_at": self.state.now()}
        things[made[key]] = made
        return made


@contextmanager
def serve(state: Server, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run the fake server on a free port of this machine; ``state.host`` is its address."""
    with listening(type("Handler", (Handler,), {"state": state}), tls) as port:
        state.host = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        yield state
