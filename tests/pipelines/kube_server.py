"""A fake of Kubernetes' API server: answers GET with given objects, one by its name, or a list by label selector, and
keeps what is created and removes what is deleted.

Objects of Kubernetes itself are checked against its schemas; of custom ones, such as Argo's workflows, the metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pytest
import yaml

from tests.servers.servers import listening

VERSION = "1.33"
"""Kubernetes version of the schemas."""


@dataclass
class KubeServer:
    """Objects and behaviour of the fake server."""

    lists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Objects by the path of their list."""
    texts: dict[str, str] = field(default_factory=dict)
    """Logs of pods, by path."""
    forbidden: str = ""
    """Pattern of paths that are refused."""
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the path of a list to which objects can be added by POST: the status that each gets."""
    is_broken: bool = False
    """Every request is answered with an error of the server."""
    host: str = ""

    def add(self, path: str, thing: dict[str, Any]) -> None:
        """Add an object to the list at ``path``."""
        checked = thing
        if "." in thing["apiVersion"].partition("/")[0].removesuffix(".k8s.io"):  # a custom one: no schema
            checked = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": thing["metadata"]}
        kubernetes_validate.validate(checked, VERSION, strict=True)
        self.lists.setdefault(path, []).append(thing)


ONE = re.compile(r"((?:/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/[^/]+)?/[^/]+)/([^/]+)")
"""Path of one object: that of its list, and its name. (``/namespaces/NAME/pods`` is a list.)"""

NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


def fits(labels: Mapping[str, str], selector: str) -> bool:
    """Whether labels fit a selector of the forms ``key``, ``key=value`` and ``key!=value``."""
    for requirement in filter(None, selector.split(",")):
        match = re.fullmatch(r"([\w./-]+?)(?:(!?=)(.+))?", requirement)
        assert match, requirement
        key, operator, value = match.groups()
        fitting = key in labels if operator is None else (labels.get(key) == value) == (operator == "=")
        if not fitting:
            return False
    return True


class _Handler(BaseHTTPRequestHandler):
    state: KubeServer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _is_refused(self, path: str) -> bool:
        if self.state.is_broken:
            self._send(500, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "InternalError"})
        elif self.state.forbidden and re.search(self.state.forbidden, path):
            self._send(403, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden"})
        else:
            return False
        return True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self._is_refused(url.path):
            return
        if url.path in self.state.texts:
            self._send(200, self.state.texts[url.path])
            return
        if url.path == "/version/":
            self._send(200, {"major": "1", "minor": "36", "gitVersion": "v1.36.2"})
            return
        one = ONE.fullmatch(url.path)
        if one:
            found = [each for each in self.state.lists.get(one[1], []) if each["metadata"]["name"] == one[2]]
            self._send(*((200, found[0]) if found else (404, NOT_FOUND)))
            return
        if url.path.endswith("/log"):
            self._send(404, NOT_FOUND)
            return
        selector = parse_qs(url.query).get("labelSelector", [""])[0]
        items = [one for one in self.state.lists.get(url.path, []) if fits(one["metadata"].get("labels", {}), selector)]
        self._send(200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        if path not in self.state.statuses:  # no such kind on this server
            self._send(404, NOT_FOUND)
            return
        thing = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.state.add(path, thing)
        thing["status"] = self.state.statuses[path]
        self._send(201, thing)

    def do_DELETE(self) -> None:
        path = urlsplit(self.path).path
        if self._is_refused(path):
            return
        one = ONE.fullmatch(path)
        assert one, path
        things = self.state.lists.get(one[1], [])
        found = [each for each in things if each["metadata"]["name"] == one[2]]
        for each in found:
            things.remove(each)
        success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        self._send(*((200, success) if found else (404, NOT_FOUND)))

    def _send(self, status: int, answer: Any) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve_kubernetes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    """Run the fake server; a kubeconfig in ``folder`` leads to it."""
    state = KubeServer()
    with listening(type("Handler", (_Handler,), {"state": state})) as port:
        state.host = f"http://127.0.0.1:{port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": state.host}}],
            "users": [{"name": "u", "user": {}}],
        }
        (folder / "kubeconfig").write_text(yaml.safe_dump(config))
        # The library reads KUBECONFIG when it is imported.
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(folder / "kubeconfig"))
        yield state
