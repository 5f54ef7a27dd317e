"""Where and how tasks run on a cluster: the typed and validated ``cluster.yaml``, which documents the values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from yolact.errors import SettingsError
from yolact_ops.lineage.code import find_steps
from yolact_ops.settings.overrides import merge, parse_override
from yolact_ops.settings.yaml_text import plain, read_yaml

CLUSTER = Path(__file__).with_name("cluster.yaml")

Cores = Annotated[str, Field(pattern=r"^\d+(\.\d+)?m?$")]
"""Kubernetes' spelling: ``"4"``, ``"0.5"``, ``"500m"``."""
Bytes = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
"""Kubernetes' spelling: ``8Gi``."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""Name of an object in Kubernetes (RFC 1123)."""
Seconds = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Toleration(_Section):
    key: str | None
    operator: Literal["Equal", "Exists"]
    value: str | None
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None


class TaskConfig(_Section):
    """Resources and settings of one task."""

    cpu: Cores
    memory: Bytes
    memory_limit: Bytes
    gpus: Annotated[int, Field(ge=0)]
    shared_memory: Bytes | Literal[""]
    time_limit: Seconds
    retries: Annotated[int, Field(ge=0)]
    cache: bool
    secrets: list[str]
    """Keys of `ClusterConfig.secrets`."""
    node_selector: dict[str, str]
    tolerations: list[Toleration]


class RetryConfig(_Section):
    pause: Annotated[int, Field(ge=0)]
    factor: Annotated[int, Field(ge=1)]
    """Argo reads a whole number."""


class CheckpointsConfig(_Section):
    claim: Name | Literal[""]
    mount: Annotated[str, Field(pattern="^/.+")]


class SecretConfig(_Section):
    name: Name
    keys: Annotated[list[str], Field(min_length=1)]
    optional: bool


class ClusterConfig(_Section):
    """The whole of ``cluster.yaml``."""

    image: Annotated[str, Field(min_length=1)]
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"]
    image_pull_secrets: list[Name]
    gpu: Annotated[str, Field(min_length=1)]
    retry: RetryConfig
    checkpoints: CheckpointsConfig
    secrets: dict[str, SecretConfig]
    task: TaskConfig
    """Defaults, also for tasks that are not in ``tasks``."""
    tasks: dict[str, TaskConfig]
    """By step; what the file leaves out is filled in from ``task``."""

    def for_step(self, step: str) -> TaskConfig:
        """Resources and settings of a step's task."""
        return self.tasks.get(step, self.task)

    @model_validator(mode="after")
    def _secrets_are_there(self) -> ClusterConfig:
        for task, config in self.tasks.items():
            for secret in config.secrets:
                if secret not in self.secrets:
                    known = ", ".join(self.secrets)
                    raise ValueError(f"tasks.{task}.secrets: {secret!r} is not one of the secrets ({known})")
        return self


def load_cluster(path: Path = CLUSTER, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read and check a cluster's settings.

    Args:
        path: the file.
        overrides: ``KEY=VALUE`` each, with dots in the key and YAML in the value: ``tasks.train.gpus=0``.

    Raises:
        SettingsError: the file is missing or not YAML, or a key is unknown, missing or has a wrong value.
    """
    try:
        tree = read_yaml(path)
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; the project's own is {CLUSTER}") from None
    origin = str(path)
    for override in overrides:
        origin = f"-C {override}"
        merge(tree, parse_override(override, "-C"), origin)
    settings = plain(tree)
    every, tasks = settings.get("task"), settings.get("tasks")
    if not isinstance(every, Mapping) or not isinstance(tasks, Mapping):
        raise SettingsError(f"{path}: needs the sections task and tasks")
    _check_steps(tasks, origin)
    settings["tasks"] = {name: {**every, **(task or {})} for name, task in tasks.items()}
    try:
        return ClusterConfig.model_validate(settings)
    except ValidationError as error:
        raise SettingsError("\n".join(f"{origin}: {_explain(detail)}" for detail in error.errors())) from error


def _check_steps(tasks: Iterable[str], origin: str) -> None:
    steps = find_steps()
    for name in tasks:
        if name not in steps:
            close = difflib.get_close_matches(name, steps, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(steps)}"
            raise SettingsError(f"{origin}: tasks.{name}: no such step; {hint}")


def _fields(section: Sequence[str | int]) -> list[str]:
    """Keys that a section of the file may have."""
    models: dict[str, type[_Section]] = {
        "retry": RetryConfig,
        "checkpoints": CheckpointsConfig,
        "secrets": SecretConfig,
        **dict.fromkeys(("task", "tasks"), Toleration if "tolerations" in section else TaskConfig),
    }
    return list((models[str(section[0])] if section else ClusterConfig).model_fields)


def _explain(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _fields(detail["loc"][:-1])
        close = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed here: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    if not key:
        return str(message)
    shown = "" if isinstance(detail["input"], dict) else f" (found {detail['input']!r})"
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"
