"""Reference of the server's HTTP interface, from its OpenAPI description."""

from __future__ import annotations

import json
import re
from typing import Any

from settings_reference import type_in_words

from serving.app import create_app
from serving.service import Service
from serving.settings import ServerSettings

INTRODUCTION = """# HTTP

What `yolact serve` answers, from its OpenAPI description, which a running server gives at `/openapi.json`.
[Serving](../serving.md) shows requests and explains limits, health and the page.
"""


def http() -> str:
    """The page of all requests and answers, Markdown."""
    tree = create_app(Service(ServerSettings())).openapi()
    parts = [INTRODUCTION, tree["info"]["description"]]
    for path, methods in tree["paths"].items():
        for method, operation in methods.items():
            parts += _operation(f"{method.upper()} {path}", operation)
    parts.append("## Schemas")
    for name, schema in tree["components"]["schemas"].items():
        parts += [f"### {name}", schema.get("description", ""), _fields(schema)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _operation(title: str, operation: dict[str, Any]) -> list[str]:
    parts = [f"## `{title}`", f"**{operation['summary']}.** {operation.get('description', '')}"]
    given = operation.get("parameters", [])
    if given:
        parts += ["### Parameters", "\n".join(_parameter(parameter) for parameter in given)]
    body = operation.get("requestBody")
    if body:
        parts.append("### Body")
        for kind, content in body["content"].items():
            parts += _media_type(kind, content)
    parts += ["### Answers", "\n".join(_answer(*answer) for answer in operation["responses"].items())]
    return parts


def _parameter(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    facts = [f"`{parameter['name']}`", type_in_words(schema), f"in the {parameter['in']}"]
    if schema.get("default") is not None:
        facts.append(f"default: `{json.dumps(schema['default'])}`")
    return _item(facts, parameter.get("description", ""))


def _media_type(kind: str, content: dict[str, Any]) -> list[str]:
    schema = content.get("schema", {})
    if "properties" not in schema:
        return [f"`{kind}`: {type_in_words(schema)}"]
    examples = [each["value"] for each in content.get("examples", {}).values()]
    examples += [content["example"]] if "example" in content else []
    shown = [f"```json\n{_shortened(json.dumps(example, indent=2))}\n```" for example in examples[:1]]
    return [f"`{kind}`:", _fields(schema), *shown]


def _answer(status: str, answer: dict[str, Any]) -> str:
    kinds = answer.get("content", {})
    forms = [type_in_words(content["schema"]) if content.get("schema") else kind for kind, content in kinds.items()]
    return _item([f"`{status}`", *forms], answer["description"])


def _fields(schema: dict[str, Any], depth: int = 0) -> str:
    """Fields of an object as a list, those of objects within it below them."""
    lines = []
    for name, field in schema.get("properties", {}).items():
        optional = [] if name in schema.get("required", []) else ["optional"]
        facts = [f"`{name}`", type_in_words(field), *optional]
        lines.append("    " * depth + _item(facts, field.get("description", "")))
        lines += [_fields(inner, depth + 1) for inner in _objects(field)]
    return "\n".join(lines)


def _objects(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Objects that a field's value has, or is, or is a list of; those with names of their own are described there."""
    if "properties" in schema:
        return [schema]
    inner = [*schema.get("anyOf", []), *([schema["items"]] if "items" in schema else [])]
    return [found for option in inner for found in _objects(option)]


def _item(facts: list[str], description: str) -> str:
    text = " ".join(description.split()).replace("``", "`")
    return f"- {' · '.join(facts)}" + (f"<br>{text}" if text else "")


def _shortened(text: str) -> str:
    """Long words, which are base64, cut."""
    return re.sub(r"([A-Za-z0-9+/=,:;]{24})[A-Za-z0-9+/=,:;]{24,}", r"\1...", text)
