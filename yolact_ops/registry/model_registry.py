"""Kubeflow's Model Registry, by its REST API.

Its Python package is not used: a release speaks one version of the API (0.3.18 only ``v1``, a server of April 2026 only
``v1alpha3``), and its `ModelRegistry` class patches the event loop of the whole process (nest_asyncio).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import requests  # type: ignore[import-untyped]

from yolact.errors import EX_UNAVAILABLE, YolactError

TOKEN_VARIABLE = "MODEL_REGISTRY_TOKEN"  # noqa: S105 - a variable's name
"""Environment variable with a token for a server behind a gateway."""

API_VERSIONS = ("v1", "v1alpha3")
"""Those that have the requests used here, newest first."""

TIMEOUT = 30.0
"""Seconds for one answer."""

_PAGE = 100
"""Entries per request."""

Kind = Literal["registered_models", "model_versions", "model_artifacts"]
Tree = dict[str, Any]
"""An entry as in the API's JSON: ``id``, ``name``, ``state``, ``customProperties`` and more."""


class ModelRegistryError(YolactError, RuntimeError):
    """The Model Registry does not answer, refuses, or has entries of others; the message names its address."""


class ModelRegistryUnavailableError(ModelRegistryError):
    """The Model Registry cannot be reached, or has a problem: a retry may succeed."""

    exit_code = EX_UNAVAILABLE


class ModelRegistry:
    """A Model Registry server. Every method raises `ModelRegistryError` if it fails."""

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address.rstrip("/")
        self._session = requests.Session()
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def model(self, name: str) -> Tree | None:
        """The registered model of this name; None if there is none."""
        return self._find("registered_model", {"name": name})

    def version(self, model: Tree, name: str) -> Tree | None:
        """The version of this name; None if there is none."""
        return self._find("model_version", {"name": name, "parentResourceId": model["id"]})

    def versions(self, model: Tree) -> dict[str, Tree]:
        """All versions by name."""
        found: dict[str, Tree] = {}
        token = ""
        while True:
            page = self._json("GET", f"registered_models/{model['id']}/versions", {"pageSize": _PAGE} | _next(token))
            found |= {version["name"]: version for version in page["items"]}
            token = page["nextPageToken"]
            if not token:
                return found

    def artifact(self, version: Tree, name: str) -> Tree | None:
        """The version's model artifact of this name; None if there is none."""
        return self._find("model_artifact", {"name": name, "parentResourceId": version["id"]})

    def create(self, path: str, body: Tree) -> Tree | None:
        """Create an entry; None if one of its name exists, made by another process meanwhile.

        Args:
            path: ``registered_models``, ``model_versions`` or ``model_versions/ID/artifacts``.
            body: the entry without ``id``.
        """
        answer = self._request("POST", path, body=body)
        return None if answer.status_code == 409 else self._content(answer)

    def update(self, kind: Kind, found: Tree, changes: Tree) -> None:
        """Change an entry.

        The server replaces ``customProperties`` as a whole, and makes an entry LIVE whose ``state`` is not sent.
        """
        self._json("PATCH", f"{kind}/{found['id']}", body=changes)

    @cached_property
    def _root(self) -> str:
        """Address of the newest version of the API that the server has."""
        for version in API_VERSIONS:
            root = f"{self.address}/api/model_registry/{version}"
            answer = self._send("GET", f"{root}/registered_models", {"pageSize": 1})
            if answer.status_code != 404:
                self._content(answer)
                return root
        raise ModelRegistryError(
            f"{self.address} is not Kubeflow's Model Registry: it has none of /api/model_registry/"
            f"{{{','.join(API_VERSIONS)}}}. Correct register.model_registry in params.yaml"
        )

    def _find(self, path: str, query: Tree) -> Tree | None:
        answer = self._request("GET", path, query)
        return None if answer.status_code == 404 else self._content(answer)

    def _json(self, method: str, path: str, query: Tree | None = None, body: Tree | None = None) -> Tree:
        return self._content(self._request(method, path, query, body))

    def _request(self, method: str, path: str, query: Tree | None = None, body: Tree | None = None) -> Any:
        return self._send(method, f"{self._root}/{path}", query, body)

    def _send(self, method: str, url: str, query: Tree | None = None, body: Tree | None = None) -> Any:
        try:
            return self._session.request(method, url, params=query, json=body, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise ModelRegistryUnavailableError(
                f"the Model Registry at {self.address} does not answer ({type(error).__name__}). Check that it "
                "runs and that register.model_registry in params.yaml is its address (none: no copy)"
            ) from error

    def _content(self, answer: Any) -> Tree:
        status = answer.status_code
        if status in (401, 403):
            raise ModelRegistryError(
                f"the Model Registry at {self.address} answers {status}: set the variable {TOKEN_VARIABLE}"
            )
        try:
            tree = answer.json()
        except requests.JSONDecodeError:
            tree = None
        if status >= 300 or not isinstance(tree, dict):
            said = tree.get("message") if isinstance(tree, dict) else answer.text.strip().partition("\n")[0]
            kind = ModelRegistryUnavailableError if status >= 500 else ModelRegistryError
            raise kind(
                f"the Model Registry at {self.address} answers {status} to {answer.request.method} "
                f"{answer.request.path_url}: {str(said)[:300]}"
            )
        return tree


def _next(token: str) -> Tree:
    return {"nextPageToken": token} if token else {}
