"""Reference of the settings, from the pydantic models, their docstrings, and the values and comments of base.yaml."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pages import ROOT
from pydantic import BaseModel

from serving.settings import PREFIX, ServerSettings
from yolact_ops.settings.params import Params

BASE = ROOT / "conf" / "base.yaml"

INTRODUCTION = """# Settings

Every key of `params.yaml`: its type and limits, its published value (that of `conf/base.yaml`), and what it does. A
preset changes some of them: `yolact preset show NAME`. Unknown keys and values outside of these limits are refused
before anything runs; so are combinations that cannot work, with a message that says why. Where the text says None, the
file has `null`.
"""

SERVER = """# Settings of the server

Variables that `yolact serve` reads; `yolact serve --help` lists those that are options too. [Serving](../serving.md)
explains what they do together.
"""


def settings() -> str:
    """The page of `params.yaml`, Markdown."""
    values = yaml.safe_load(BASE.read_text(encoding="utf-8"))
    comments = base_comments(BASE.read_text(encoding="utf-8"))
    parts = [INTRODUCTION]
    for path, model in _sections(Params):
        text = own_docstring(model)
        parts.append(f"## `{path}`\n" + (f"\n{text}\n" if text else ""))
        for key, schema in _keys(model):
            whole = f"{path}.{key}"
            value = values
            for name in whole.split("."):
                value = value[name]
            described = attribute_docstrings(model).get(key) or comments.get(whole, "")
            parts.append(_entry(whole, key, schema, f"published: {_value(value)}", described))
    return "\n".join(parts)


def server_settings() -> str:
    """The page of the server's variables, Markdown."""
    parts = [SERVER]
    for key, schema in _keys(ServerSettings):
        variable = PREFIX + key.upper()
        default = f"default: {_value(schema.get('default'))}"
        parts.append(_entry(key, variable, schema, default, attribute_docstrings(ServerSettings).get(key, "")))
    return "\n".join(parts)


def attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text below each field of a model, inherited fields included, by the key in the file."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel or base.__module__.startswith("pydantic"):
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = inspect.cleandoc(str(text.value.value))
    return found


def base_comments(text: str) -> dict[str, str]:
    """The comments behind the values of a settings file, and their continuations, by the key's path."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        entry = re.match(r"( *)(\w+):(?: |$)(?:.*? +# (.*))?", line)
        continued = re.match(r" {20,}# (.*)", line)
        if entry:
            path = [(indent, key) for indent, key in path if indent < len(entry[1])] + [(len(entry[1]), entry[2])]
            found[".".join(key for _, key in path)] = entry[3] or ""
        elif continued and path:
            found[".".join(key for _, key in path)] += f" {continued[1]}"
    return {key: comment for key, comment in found.items() if comment}


def _sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Sections that have keys with values, in the order of the file."""
    order = list(yaml.safe_load(BASE.read_text(encoding="utf-8")))
    fields = [(field.alias or name, field.annotation) for name, field in model.model_fields.items()]
    if not path:
        fields.sort(key=lambda each: order.index(each[0]))
    for key, annotation in fields:
        whole = f"{path}.{key}".lstrip(".")
        for section in [annotation, *get_args(annotation)]:
            if isinstance(section, type) and issubclass(section, BaseModel):
                yield whole, section
                yield from _sections(section, whole)


def _keys(model: type[BaseModel]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys of a section that are no sections themselves, with their JSON schema."""
    for key, schema in model.model_json_schema()["properties"].items():
        if "$ref" not in schema:
            yield key, schema


def _entry(anchor: str, title: str, schema: dict[str, Any], value: str, described: str) -> str:
    facts = f"{type_in_words(schema)} · {value}"
    return f"#### `{title}` {{ #{anchor} }}\n\n{facts}\n{{ .facts }}\n\n{described}\n"


def type_in_words(schema: dict[str, Any]) -> str:
    """A JSON schema's type and limits, Markdown."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(type_in_words(option) for option in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "")
    if kind == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {type_in_words(schema['prefixItems'][0])} each"
        return "list of " + (type_in_words(schema["items"]) or "values") + _limits(schema, "Items", " entries")
    if kind == "object":
        values = schema.get("additionalProperties")
        return "mapping to " + type_in_words(values) if isinstance(values, dict) else "object"
    if kind == "string":
        if "pattern" in schema:
            return f"text that matches `{schema['pattern']}`"
        return {"path": "path", "binary": "bytes"}.get(schema.get("format", ""), "text")
    names = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "null": "`null`"}
    return names.get(kind, kind) + _limits(schema, "imum")


def _limits(schema: dict[str, Any], ending: str, unit: str = "") -> str:
    """The limits of a number or of a length, in brackets."""
    words = {"min": "at least", "exclusiveMin": "above", "max": "at most", "exclusiveMax": "below"}
    found = [f"{word} {schema[start + ending]:.12g}{unit}" for start, word in words.items() if start + ending in schema]
    return f" ({', '.join(found)})" if found else ""


def _value(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def own_docstring(model: type[BaseModel]) -> str:
    """The docstring of a model itself; pydantic gives subclasses that of their base."""
    return inspect.cleandoc(model.__dict__.get("__doc__") or "")
