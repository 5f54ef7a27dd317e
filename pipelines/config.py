"""Where and how tasks run on a cluster: the typed and validated ``cluster.yaml``, which documents the values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from yolact.errors import SettingsError
from yolact_ops.lineage.code import find_steps
from yolact_ops.settings.overrides import merge, parse_override
from yolact_ops.settings.yaml_text import plain, read_yaml

CLUSTER = Path(__file__).with_name("cluster.yaml")

SHARED_MEMORY_VOLUME = "shared-memory"
"""Name of the volume at /dev/shm."""

SEVERAL_GPUS_STEP = "train"
"""The step that starts a process for each GPU of its task."""

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
"""A label of RFC 1123."""
_QUALIFIED = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"


def _object_name(value: str) -> str:
    if len(value) > 253 or not re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", value):
        raise ValueError("not a name of Kubernetes: lower-case letters, digits, - and ., a letter or digit at each end")
    return value


def _volume_name(value: str) -> str:
    if value and not re.fullmatch(_LABEL, value):
        raise ValueError(
            "not a name that Kubeflow Pipelines can mount: at most 63 lower-case letters, digits and -, a letter or "
            "digit at each end"
        )
    return value


def _label_key(value: str) -> str:
    prefix, slash, name = value.rpartition("/")
    if slash:
        _object_name(prefix)
    if not re.fullmatch(_QUALIFIED, name):
        raise ValueError("not a label of Kubernetes, as pool or example.com/pool")
    return value


def _label_value(value: str) -> str:
    if value and not re.fullmatch(_QUALIFIED, value):
        raise ValueError("not a label's value: at most 63 letters, digits, -, _ and ., a letter or digit at each end")
    return value


CORES, BYTES = r"\d+(\.\d+)?m?", r"\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?"
Cores = Annotated[str, Field(pattern=f"^{CORES}$")]
"""Kubernetes' spelling: ``"4"``, ``"0.5"``, ``"500m"``."""
Bytes = Annotated[str, Field(pattern=f"^{BYTES}$")]
"""Kubernetes' spelling: ``8Gi``."""
Name = Annotated[str, AfterValidator(_object_name)]
"""Name of an object in Kubernetes (a DNS subdomain, RFC 1123)."""
VolumeName = Annotated[str, Field(min_length=1), AfterValidator(_volume_name)]
"""Name of a claim or secret that tasks mount. Kubeflow Pipelines gives the pod's volume the same name, which has to be
a single label of RFC 1123."""
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
Variable = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable, and of the secret's key that holds its value."""
Seconds = Annotated[int, Field(ge=1)]
Key = tuple[str | int, ...]
"""The parts of a key in the file."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Toleration(_Section):
    key: LabelKey | None
    operator: Literal["Equal", "Exists"]
    value: LabelValue | None
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None


class TaskConfig(_Section):
    """Resources and settings of one task."""

    cpu: Cores
    cpu_limit: Annotated[str, Field(pattern=rf"^({CORES})?$")]
    memory: Bytes
    memory_limit: Bytes
    gpus: Annotated[int, Field(ge=0)]
    shared_memory: Annotated[str, Field(pattern=rf"^({BYTES})?$")]
    time_limit: Seconds
    retries: Annotated[int, Field(ge=0)]
    cache: bool
    secrets: list[str]
    """Keys of `ClusterConfig.secrets`."""
    node_selector: dict[LabelKey, LabelValue]
    tolerations: list[Toleration]


class RetryConfig(_Section):
    pause: Annotated[int, Field(ge=0)]
    factor: Annotated[int, Field(ge=1)]
    """Argo reads a whole number."""


class CheckpointsConfig(_Section):
    claim: Annotated[str, AfterValidator(_volume_name)]
    mount: Annotated[str, Field(pattern="^/.+")]


class SecretConfig(_Section):
    name: VolumeName
    keys: Annotated[list[Variable], Field(min_length=1)]
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
    changes = [(override, parse_override(override, "-C")) for override in overrides]
    for override, change in changes:
        merge(tree, change, f"-C {override}")
    settings = plain(tree)
    every, tasks = settings.get("task"), settings.get("tasks")
    if not isinstance(every, Mapping) or not isinstance(tasks, Mapping):
        raise SettingsError(f"{path}: needs the sections task and tasks")
    _check_steps(tasks, lambda name: _origin([("tasks", name)], changes, path))
    settings["tasks"] = {name: {**every, **(task or {})} for name, task in tasks.items()}
    try:
        config = ClusterConfig.model_validate(settings)
    except ValidationError as error:
        faults = [([detail["loc"]], _explain(detail)) for detail in error.errors()]
    else:
        faults = [([key, *others], message) for key, *others, message in _conflicts(config)]
    lines = [
        f"{_origin(keys, changes, path)}: {'.'.join(str(part) for part in keys[0])}: {message}"
        for keys, message in faults
        if (_inherited(keys[0]), message) not in [(others[0], other) for others, other in faults]
    ]
    if lines:
        raise SettingsError("\n".join(lines))
    return config


def _conflicts(config: ClusterConfig) -> Iterator[tuple[Any, ...]]:
    """What does not fit together: the keys that are concerned, the first of which is named, and a message."""
    for section, task in ((("task",), config.task), *((("tasks", name), task) for name, task in config.tasks.items())):
        for name, requested, limit in (
            ("cpu", task.cpu, task.cpu_limit),
            ("memory", task.memory, task.memory_limit),
        ):
            if limit and _amount(requested) > _amount(limit):
                message = f"{requested} is above {name}_limit ({limit}); Kubernetes refuses such a pod"
                yield (*section, name), (*section, f"{name}_limit"), message
        if task.gpus > 1 and section != ("tasks", SEVERAL_GPUS_STEP):
            message = f"only the step {SEVERAL_GPUS_STEP} uses more than one GPU (found {task.gpus})"
            yield (*section, "gpus"), message
        for secret in task.secrets:
            if secret not in config.secrets:
                yield (*section, "secrets"), f"{secret!r} is not one of the secrets ({', '.join(config.secrets)})"
    volumes = {SHARED_MEMORY_VOLUME: "the shared memory"}
    names: dict[Key, str] = {("checkpoints", "claim"): config.checkpoints.claim}
    names |= {("secrets", key, "name"): secret.name for key, secret in config.secrets.items()}
    for key, name in names.items():
        other = volumes.setdefault(name, str(key[0]))
        if name and other != key[0]:
            yield key, ("checkpoints", "claim"), f"{name}: is also the volume of {other}; one pod cannot have both"


def _amount(quantity: str) -> Decimal:
    """What Kubernetes' spelling of cores or bytes means."""
    from kubernetes.utils import parse_quantity  # imports the whole client

    return Decimal(parse_quantity(quantity))


def _inherited(key: Key) -> Key | None:
    """The key in `task` from which a key in `tasks` has its value if it is not set there."""
    return ("task", *key[2:]) if key[:1] == ("tasks",) else None


def _origin(keys: Sequence[Key], changes: Sequence[tuple[str, Mapping[str, Any]]], path: Path) -> str:
    """Where the keys were set: the last ``-C`` that concerns one of them, or else the file."""
    wanted = [*keys, *filter(None, map(_inherited, keys))]
    return next(
        (f"-C {override}" for override, change in reversed(changes) if any(_is_in(key, change) for key in wanted)),
        str(path),
    )


def _is_in(key: Key, tree: Any) -> bool:
    """Whether a tree has the key, or a list or plain value above it."""
    for part in key:
        if not isinstance(tree, Mapping):
            return True
        if part not in tree:
            return False
        tree = tree[part]
    return True


def _check_steps(tasks: Iterable[str], origin: Callable[[str], str]) -> None:
    steps = find_steps()
    for name in tasks:
        if name not in steps:
            close = difflib.get_close_matches(name, steps, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(steps)}"
            raise SettingsError(f"{origin(name)}: tasks.{name}: no such step; {hint}")


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
    if detail["type"] == "extra_forbidden":
        known = _fields(detail["loc"][:-1])
        close = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed here: {', '.join(known)}"
        return f"unknown key; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(detail["input"], dict) else f" (found {detail['input']!r})"
    return f"{message[:1].lower()}{message[1:]}{shown}"
