"""The small Model Registry answers as the real one did.

``model_registry_answers.json`` has the answers of the server of April 2026 (kubeflow/model-registry, bd07139) on
PostgreSQL 18, without times and with names instead of numbers. `python -m tests.servers.test_model_registry ADDRESS`
records them again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.servers.model_registry import exchange, unique_name

ANSWERS = Path(__file__).with_name("model_registry_answers.json")
TIMES = ("createTimeSinceEpoch", "lastUpdateTimeSinceEpoch")


def text(value: str) -> dict[str, str]:
    return {"metadataType": "MetadataStringValue", "string_value": value}


def converse(address: str) -> list[dict[str, Any]]:
    """Ask what the project asks, rightly and wrongly; return the requests with their answers."""
    name, said, ids = unique_name(), [], {"MODEL": "", "FIRST": "", "SECOND": "", "FILES": ""}

    def named(tree: Any, under: str = "") -> Any:
        """With names for what differs from server to server."""
        if isinstance(tree, dict):
            return {key: named(value, key) for key, value in sorted(tree.items()) if key not in TIMES}
        if isinstance(tree, list):
            return [named(item) for item in tree]
        if under == "id":
            return "a number"  # each kind is counted by itself, so equal numbers mean nothing
        return "MODEL" if under == "registeredModelId" and tree == ids["MODEL"] else "NAME" if tree == name else tree

    def ask(method: str, path: str, body: Any = None, *, keep: str = "") -> None:
        sent, wanted = path, json.dumps(body)
        for key, value in {"NAME": name, **ids}.items():
            sent, wanted = sent.replace(key, value), wanted.replace(f'"{key}"', f'"{value}"')
        status, answer = exchange(address, method, sent, json.loads(wanted))
        if keep:
            ids[keep] = answer["id"]
        if status >= 400:  # messages have names in them
            answer = answer["code"] if isinstance(answer, dict) else answer
        if isinstance(answer, dict):
            answer["nextPageToken"] = bool(answer.get("nextPageToken"))
        said.append({"request": f"{method} {path}", "body": body, "status": status, "answer": named(answer)})

    versions = "registered_models/MODEL/versions?pageSize"
    ask("GET", "registered_model?name=NAME")
    ask("POST", "registered_models", {"name": "NAME", "customProperties": {"kind": text("k")}}, keep="MODEL")
    ask("POST", "registered_models", {"name": "NAME"})
    ask("GET", "registered_model?name=NAME")
    ask("PATCH", "registered_models/MODEL", {"state": "ARCHIVED"})
    ask("PATCH", "registered_models/MODEL", {"description": "d"})
    ask("POST", "model_versions", {"name": "1"})
    first = {"name": "1", "registeredModelId": "MODEL", "author": "ada", "description": "one", "state": "LIVE"}
    ask("POST", "model_versions", first | {"customProperties": {"a": text("x"), "champion": text("")}}, keep="FIRST")
    ask("POST", "model_versions", first)
    ask("POST", "model_versions", {"name": "2", "registeredModelId": "MODEL"}, keep="SECOND")
    ask("GET", "model_version?name=1&parentResourceId=MODEL")
    ask("GET", "model_version?name=3&parentResourceId=MODEL")
    metric = {"metadataType": "MetadataDoubleValue", "double_value": 0.1234567890123456}
    ask("PATCH", "model_versions/FIRST", {"state": "ARCHIVED", "customProperties": {"mask_AP": metric}})
    ask("PATCH", "model_versions/FIRST", {"description": "new"})
    ask("PATCH", "model_versions/999999", {"description": "new"})
    files = {"artifactType": "model-artifact", "name": "NAME", "uri": "s3://b/x", "modelFormatName": "yolact"}
    ask("POST", "model_versions/999999/artifacts", files)
    ask("GET", "model_artifact?name=NAME&parentResourceId=FIRST")
    ask("POST", "model_versions/FIRST/artifacts", files, keep="FILES")
    ask("POST", "model_versions/FIRST/artifacts", files)
    ask("GET", "model_artifact?name=NAME&parentResourceId=FIRST")
    ask("GET", "model_artifact?name=NAME&parentResourceId=SECOND")
    ask("PATCH", "model_artifacts/FILES", {"artifactType": "model-artifact", "uri": "s3://b/y"})
    ask("PATCH", "model_artifacts/FILES", {"artifactType": "model-artifact", "state": "LIVE"})
    ask("GET", f"{versions}=1")
    ask("GET", f"{versions}=2")
    ask("GET", "nothing")
    return said


def test_both_answer_as_recorded(model_registry: str) -> None:
    assert converse(model_registry) == json.loads(ANSWERS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    ANSWERS.write_text(json.dumps(converse(sys.argv[1]), indent=1) + "\n", encoding="utf-8")
