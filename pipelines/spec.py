"""A compiled pipeline: its parameters, its tasks, its code versions, and its content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from yolact.errors import SettingsError, YolactError, suggestion

HASH_LENGTH = 12
"""Hexadecimal digits of the content hash in a version's name."""

CODE_PARAMETER = "code_version"
"""A task's parameter for its code version."""

_KINDS: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
"""Python types of the values of each kind of parameter (``ParameterType`` of the pipeline specification)."""


class PipelineError(YolactError, ValueError):
    """A pipeline is missing, is not compiled, or does not take the given arguments; the message names the file."""


@dataclass(frozen=True)
class Request:
    """What a task's pod asks of a node."""

    cpu: str = ""
    """Cores, as Kubernetes writes them."""
    memory: str = ""
    memory_limit: str = ""
    gpus: int = 0


@dataclass(frozen=True)
class PipelineTask:
    """A task of a pipeline, or a loop or condition around tasks."""

    name: str
    retries: int
    pause: float
    """Seconds before the first retry."""
    factor: float
    """By which each later pause is longer."""
    request: Request
    is_loop: bool = False
    inner: tuple[PipelineTask, ...] = ()


@dataclass(frozen=True)
class CompiledPipeline:
    """The compiler's output: the pipeline, and its settings for Kubernetes if it has any."""

    spec: dict[str, Any]
    """``PipelineSpec`` of the pipeline specification, as JSON."""
    platforms: dict[str, Any]
    """``PlatformSpec``, as JSON; empty when there is none."""
    origin: str
    """Named in errors."""

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return str(self.spec["pipelineInfo"]["name"])

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Specifications of the pipeline's parameters by name."""
        return dict(self.spec["root"].get("inputDefinitions", {}).get("parameters", {}))

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the compiled pipeline."""
        text = json.dumps([self.spec, self.platforms], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def version_name(self) -> str:
        """Name of this pipeline's version on a server: a hash of its content, so an unchanged one keeps its version."""
        return self.content_hash[:HASH_LENGTH]

    def tasks(self) -> tuple[PipelineTask, ...]:
        """The tasks in an order in which they can run: each after those that it depends on."""
        return tuple(self._read_tasks(self.spec["root"].get("dag", {}).get("tasks", {})))

    def _read_tasks(self, tasks: Mapping[str, Any]) -> Iterator[PipelineTask]:
        before = {name: task.get("dependentTasks", []) for name, task in sorted(tasks.items())}
        for name in TopologicalSorter(before).static_order():
            task = tasks[name]
            component = self.spec["components"][task["componentRef"]["name"]]
            retry = task.get("retryPolicy", {})
            yield PipelineTask(
                name=name,
                retries=int(retry.get("maxRetryCount", 0)),
                pause=float(str(retry.get("backoffDuration", "0s")).removesuffix("s")),
                factor=float(retry.get("backoffFactor", 1)),
                request=self._request(component),
                is_loop="parameterIterator" in task or "artifactIterator" in task,
                inner=tuple(self._read_tasks(component["dag"]["tasks"])) if "dag" in component else (),
            )

    def _request(self, component: Mapping[str, Any]) -> Request:
        executors = self.spec.get("deploymentSpec", {}).get("executors", {})
        container = executors.get(component.get("executorLabel"), {}).get("container", {})
        asked = container.get("resources", {})
        return Request(
            cpu=str(asked.get("resourceCpuRequest", "")),
            memory=str(asked.get("resourceMemoryRequest", "")),
            memory_limit=str(asked.get("resourceMemoryLimit", "")),
            gpus=int(gpus) if (gpus := str(asked.get("accelerator", {}).get("resourceCount", ""))).isdecimal() else 0,
        )

    def has_nodes(self) -> bool:
        """Whether a task makes a TrainJob, see `pipelines.nodes.describe_nodes`."""
        return any("nodes" in task.get("inputs", {}).get("parameters", {}) for task in _tasks(self.spec))

    def code_versions(self) -> dict[str, dict[str, str]]:
        """The code versions that the tasks were compiled for, by container image and step."""
        found: dict[str, dict[str, str]] = {}
        for task in _tasks(self.spec):
            argument = task.get("inputs", {}).get("parameters", {}).get(CODE_PARAMETER, {})
            version = argument.get("runtimeValue", {}).get("constant")
            if version is not None:
                label = self.spec["components"][task["componentRef"]["name"]]["executorLabel"]
                container = self.spec["deploymentSpec"]["executors"][label]["container"]
                step = container["args"][container["args"].index("--function_to_execute") + 1]
                found.setdefault(container["image"], {})[step] = version
        return found

    def to_yaml(self) -> str:
        """The text to upload: the pipeline, and its settings for Kubernetes as a second document."""
        documents = [self.spec, *([self.platforms] if self.platforms else [])]
        return yaml.safe_dump_all(documents, sort_keys=True, allow_unicode=True)

    def is_same_as(self, stored: Mapping[str, Any]) -> bool:
        """Whether a server's ``pipeline_spec`` has the same content.

        Compares them as protobuf messages, because a server may leave out defaults and writes whole numbers in its own
        way.
        """
        other = from_server(stored)
        if other is None:
            return False
        try:
            return _messages(self.spec, self.platforms) == _messages(other.spec, other.platforms)
        except json_format.ParseError:  # written by another version of the SDK
            return False

    def with_caching(self, enabled: bool) -> CompiledPipeline:
        """The same pipeline with the cache on or off for every task."""
        spec = json.loads(json.dumps(self.spec))
        for task in _tasks(spec):
            task["cachingOptions"] = {"enableCache": True} if enabled else {}
        return CompiledPipeline(spec, self.platforms, self.origin)

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments that the pipeline does not take.

        Raises:
            PipelineError: one is unknown, of a wrong type, or missing.
        """
        for name, value in arguments.items():
            self._check_argument(name, value)
        missing = [
            name
            for name, parameter in self.parameters.items()
            if name not in arguments and "defaultValue" not in parameter and not parameter.get("isOptional")
        ]
        if missing:
            raise PipelineError(
                f"{self.origin}: the pipeline {self.name} needs a value for {', '.join(missing)}; "
                f"give it as --argument {missing[0]}=VALUE"
            )

    def _check_argument(self, name: str, value: Any) -> None:
        if name not in self.parameters:
            known = suggestion(name, self.parameters) or f"it has {', '.join(self.parameters) or 'none'}"
            raise PipelineError(f"{self.origin}: the pipeline {self.name} has no parameter {name!r}; {known}")
        kind = str(self.parameters[name].get("parameterType"))
        wanted = _KINDS.get(kind, (object,))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted and object not in wanted):
            raise PipelineError(
                f"{self.origin}: parameter {name} of the pipeline {self.name} must be {kind} (found {value!r})"
            )


def read_compiled(path: Path) -> CompiledPipeline:
    """Read what ``python -m pipelines compile`` wrote.

    Raises:
        PipelineError: the file is missing or is not a compiled pipeline.
    """
    try:
        return parse_compiled(path.read_text(encoding="utf-8"), origin=str(path))
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file; `python -m pipelines compile` writes pipelines") from None
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: not a text: {error}") from error


def parse_compiled(text: str, origin: str) -> CompiledPipeline:
    """Read the text that the compiler wrote; ``origin`` is named in errors.

    Raises:
        PipelineError: it is not a compiled pipeline.
    """
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise PipelineError(f"{origin}: not valid YAML: {error}") from error
    spec: Any = documents[0] if documents else None
    platforms: Any = documents[1] if len(documents) == 2 else {}
    try:
        _messages(spec, platforms)
        assert spec["pipelineInfo"]["name"]
        assert spec["root"]["dag"]
    except (json_format.ParseError, AttributeError, TypeError, KeyError, AssertionError) as error:
        raise PipelineError(
            f"{origin}: not a compiled pipeline ({error or type(error).__name__}); "
            "`python -m pipelines compile` writes one"
        ) from error
    return CompiledPipeline(spec, platforms, origin)


def from_server(stored: Mapping[str, Any] | None) -> CompiledPipeline | None:
    """The pipeline in a server's ``pipeline_spec``, which has the settings for Kubernetes beside it or not at all.

    None if it is not a pipeline of Kubeflow Pipelines 2.
    """
    stored = stored or {}
    both = "pipeline_spec" in stored
    if "root" not in (stored["pipeline_spec"] if both else stored):
        return None
    return CompiledPipeline(
        stored["pipeline_spec"] if both else dict(stored), stored.get("platform_spec", {}) if both else {}, "the server"
    )


def parse_arguments(texts: Sequence[str], pipeline: CompiledPipeline) -> dict[str, Any]:
    """``NAME=VALUE`` each, with YAML in the value unless the parameter is a string; see `check_arguments` for the rest.

    Raises:
        SettingsError: not of this form.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not name or not equals:
            raise SettingsError(f"--argument {text}: must be NAME=VALUE")
        is_text = pipeline.parameters.get(name, {}).get("parameterType") == "STRING"
        try:
            arguments[name] = value if is_text else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SettingsError(f"--argument {text}: the value is not valid YAML: {error}") from error
    return arguments


def _messages(spec: Any, platforms: Any) -> tuple[Any, Any]:
    return (
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec()),
        json_format.ParseDict(platforms, pipeline_spec_pb2.PlatformSpec()),
    )


def _tasks(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All tasks, including those in loops and conditions."""
    for component in (spec["root"], *spec.get("components", {}).values()):
        yield from component.get("dag", {}).get("tasks", {}).values()
