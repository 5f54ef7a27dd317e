"""Where and how tasks run on a cluster: the typed and validated ``cluster.yaml``, which documents the values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from yolact.errors import SettingsError, suggestion
from yolact.limits import CPU_COUNT_VARIABLE
from yolact_ops.commands.secrets import SECRET_FILES_VARIABLE
from yolact_ops.lineage.code import find_steps
from yolact_ops.lineage.variables import IMAGE_VARIABLE, PIPELINE_RUN_VARIABLE
from yolact_ops.settings.overrides import merge, parse_override
from yolact_ops.settings.yaml_text import plain, read_yaml

CLUSTER = Path(__file__).with_name("cluster.yaml")

SHARED_MEMORY_VOLUME = "shared-memory"
"""Name of the volume at `SHARED_MEMORY`."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - of a task's own container

SCRATCH_VOLUME = "scratch"
"""Name of a task's volume for temporary files."""
SCRATCH_VARIABLE = "TMPDIR"
"""Where Python and others put temporary files."""

SECRETS = "/etc/yolact/secrets"
"""Where secrets are mounted, one folder each."""

_OWN_VARIABLES = (
    IMAGE_VARIABLE,
    PIPELINE_RUN_VARIABLE,
    CPU_COUNT_VARIABLE,
    SECRET_FILES_VARIABLE,
    SCRATCH_VARIABLE,
)
"""Variables that `pipelines.placement` sets itself."""

_OTHER_MOUNTS = (SHARED_MEMORY, "/kfp-launcher", "/gcs", "/s3", "/minio", "/.local", "/.cache", "/.config")
"""Where tasks have a volume already: Kubeflow Pipelines 2.17 mounts all but the first."""

PARALLEL_STEP = "train"
"""The step that starts a process for each GPU of its task, and whose work several nodes can share."""

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
"""A label of RFC 1123."""
_QUALIFIED = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"


def _object_name(value: str) -> str:
    if len(value) > 253 or not re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", value):
        raise ValueError("not a name of Kubernetes: lower-case letters, digits, - and ., a letter or digit at each end")
    return value


def _storage_class(value: str) -> str:
    return value and _object_name(value)


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


def _device(value: str) -> str:
    if "/" not in value:
        raise ValueError("not a device of Kubernetes, as rdma/ib")
    return _label_key(value)


CORES, BYTES = r"\d+(\.\d+)?m?", r"\d+(\.\d+)?(Ki|Mi|Gi|Ti|k|M|G|T)?"


def _number_as_text(value: object) -> object:
    """A number, as YAML reads ``cpu: 8`` and ``-C task.cpu=8``, as text; other values as they are."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Cores = Annotated[str, BeforeValidator(_number_as_text), Field(pattern=f"^{CORES}$")]
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
Device = Annotated[str, AfterValidator(_device)]
"""Name of an extended resource, which a device plugin offers."""
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


class NodeRequirement(_Section):
    """What a label of the node must be, or had better be."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[LabelValue]
    """Some for ``In`` and ``NotIn``, a whole number for ``Gt`` and ``Lt``, none for the others."""
    weight: Annotated[int, Field(ge=1, le=100)] | None
    """None: the node must have it, with all other requirements without a weight; else how much it is preferred."""

    @model_validator(mode="after")
    def _values_fit_the_operator(self) -> Self:
        if self.operator in ("In", "NotIn") and not self.values:
            raise ValueError(f"operator {self.operator} needs one or more values")
        if self.operator in ("Exists", "DoesNotExist") and self.values:
            raise ValueError(f"operator {self.operator} takes no values: []")
        if self.operator in ("Gt", "Lt") and not (len(self.values) == 1 and self.values[0].isdecimal()):
            raise ValueError(f"operator {self.operator} needs one value, a whole number as text, as ['80']")
        return self


class TaskConfig(_Section):
    """Resources and settings of one task."""

    cpu: Cores
    cpu_limit: Annotated[str, BeforeValidator(_number_as_text), Field(pattern=rf"^({CORES})?$")]
    memory: Bytes
    memory_limit: Bytes
    gpus: Annotated[int, Field(ge=0)]
    nodes: Annotated[int, Field(ge=1)]
    """With several, the resources, secrets and place are those of each node's pod, see `ClusterConfig.for_pod`."""
    devices: dict[Device, Annotated[int, Field(ge=1)]]
    """Of each node, besides its GPUs; none with one node."""
    shared_memory: Annotated[str, Field(pattern=rf"^({BYTES})?$")]
    time_limit: Seconds
    retries: Annotated[int, Field(ge=0)]
    cache: bool
    secrets: list[str]
    """Keys of `ClusterConfig.secrets`."""
    scratch: Annotated[str, Field(pattern=rf"^({BYTES})?$")]
    """Size of the volume for temporary files."""
    env: dict[Variable, str]
    queue: Annotated[str, AfterValidator(_label_value)]
    queue_priority: Annotated[str, AfterValidator(_label_value)]
    node_selector: dict[LabelKey, LabelValue]
    node_affinity: list[NodeRequirement]
    tolerations: list[Toleration]


class RetryConfig(_Section):
    pause: Annotated[int, Field(ge=0)]
    factor: Annotated[int, Field(ge=1)]
    """Argo reads a whole number."""


class CheckpointsConfig(_Section):
    claim: Annotated[str, AfterValidator(_volume_name)]
    mount: Annotated[str, Field(pattern="^/.+")]


class ScratchConfig(_Section):
    mount: Annotated[str, Field(pattern="^/.+")]
    storage_class: Annotated[str, AfterValidator(_storage_class)]


class ParallelConfig(_Section):
    """Most tasks of a loop that run at the same time, by the step in the loop; 0: all."""

    predict: Annotated[int, Field(ge=0)]
    scan: Annotated[int, Field(ge=0)]


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
    scratch: ScratchConfig
    parallel: ParallelConfig
    raw_by_reference: bool
    """Whether scan and preprocess fetch the raw data from its source, in place of an artifact of ingest."""
    scan_parts: Annotated[int, Field(ge=1, le=1000)]
    """Parts that a data set is scanned in; 1: preprocess reads all images itself."""
    secrets: dict[str, SecretConfig]
    task: TaskConfig
    """Defaults, also for tasks that are not in ``tasks``."""
    tasks: dict[str, TaskConfig]
    """By step; what the file leaves out is filled in from ``task``."""

    def for_step(self, step: str) -> TaskConfig:
        """Resources and settings of a step's task, or of each node where several share its work."""
        return self.tasks.get(step, self.task)

    def for_pod(self, step: str) -> TaskConfig:
        """Resources and settings of the pod of a step's task: with several nodes it only follows them."""
        config = self.for_step(step)
        if config.nodes == 1:
            return config
        own = {"time_limit": config.time_limit, "retries": config.retries, "secrets": config.secrets}
        return self.task.model_copy(update=own)


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
        if task.gpus > 1 and section != ("tasks", PARALLEL_STEP):
            message = f"only the step {PARALLEL_STEP} uses more than one GPU (found {task.gpus})"
            yield (*section, "gpus"), message
        if task.nodes > 1 and section != ("tasks", PARALLEL_STEP):
            message = f"only the step {PARALLEL_STEP} uses more than one node (found {task.nodes})"
            yield (*section, "nodes"), message
        elif task.nodes > 1 and not config.checkpoints.claim:
            message = (
                f"{task.nodes} nodes share data, checkpoints and model through the volume of checkpoints.claim, which "
                "is empty: name a claim that all nodes can mount (ReadWriteMany)"
            )
            yield (*section, "nodes"), ("checkpoints", "claim"), message
        for device in task.devices:
            if task.nodes == 1:
                message = (
                    f"only nodes of a TrainJob, tasks.{PARALLEL_STEP}.nodes above 1, get other devices than gpu: "
                    "Kubeflow Pipelines 2.17 gives a task one kind (docs/kubeflow.md)"
                )
                yield (*section, "devices", device), (*section, "nodes"), message
            elif device == config.gpu:
                yield (*section, "devices", device), ("gpu",), "is what gpus counts"
        for secret in task.secrets:
            if secret not in config.secrets:
                yield (*section, "secrets"), f"{secret!r} is not one of the secrets ({', '.join(config.secrets)})"
        for variable in task.env:
            if variable in _OWN_VARIABLES:
                yield (*section, "env", variable), "tasks get this variable from the pipeline itself"
            for key, secret_config in config.secrets.items():
                if variable in secret_config.keys:
                    message = (
                        f"the secret {key} has this variable; in env everyone who may read pods or pipelines sees it, "
                        "and Kubeflow's launcher uses it for its own object store"
                    )
                    yield (*section, "env", variable), message
        if task.queue_priority and not task.queue:
            yield (*section, "queue_priority"), (*section, "queue"), "has no effect without a queue"
    mount = config.scratch.mount.rstrip("/")
    if mount in (*_OTHER_MOUNTS, SECRETS, config.checkpoints.mount.rstrip("/")):
        yield ("scratch", "mount"), ("checkpoints", "mount"), f"{mount}: tasks have another volume there"
    volumes = {SHARED_MEMORY_VOLUME: "the shared memory", SCRATCH_VOLUME: "temporary files"}
    names: dict[Key, str] = {("checkpoints", "claim"): config.checkpoints.claim}
    names |= {("secrets", key, "name"): secret.name for key, secret in config.secrets.items()}
    for where, name in names.items():
        other = volumes.setdefault(name, str(where[0]))
        if name and other != where[0]:
            yield where, ("checkpoints", "claim"), f"{name}: is also the volume of {other}; one pod cannot have both"


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
            hint = suggestion(name, steps) or f"there are: {', '.join(steps)}"
            raise SettingsError(f"{origin(name)}: tasks.{name}: no such step; {hint}")


_NOT_IN_KFP = (
    (
        r"priority(_?class)?(_?name)?$",
        "with Kueue use queue_priority, else a PriorityClass that is the cluster's default",
    ),
    (r"ephemeral_?storage", "use scratch, or a LimitRange with a default request of ephemeral-storage"),
    (r"rdma|resources?$", "gpu names its only kind of device; nodes of a TrainJob get others by devices"),
    (r"topology", "use node_affinity or node_selector"),
)
"""Keys that people look for and the SDK has no function for: a pattern, and what to do instead."""


def _fields(section: Sequence[str | int]) -> list[str]:
    """Keys that a section of the file may have."""
    models: dict[str, type[_Section]] = {
        "retry": RetryConfig,
        "checkpoints": CheckpointsConfig,
        "scratch": ScratchConfig,
        "parallel": ParallelConfig,
        "secrets": SecretConfig,
        **dict.fromkeys(("task", "tasks"), _task_model(section)),
    }
    return list((models[str(section[0])] if section else ClusterConfig).model_fields)


def _task_model(section: Sequence[str | int]) -> type[_Section]:
    lists: dict[str | int, type[_Section]] = {"tolerations": Toleration, "node_affinity": NodeRequirement}
    return next((lists[part] for part in section if part in lists), TaskConfig)


def _explain(detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        for pattern, remedy in _NOT_IN_KFP:
            if re.match(pattern, str(detail["loc"][-1])):
                return f"Kubeflow Pipelines 2.17 cannot set this for a task; {remedy} (docs/kubeflow.md)"
        known = _fields(detail["loc"][:-1])
        hint = suggestion(str(detail["loc"][-1]), known) or f"allowed here: {', '.join(known)}"
        return f"unknown key; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(detail["input"], dict) else f" (found {detail['input']!r})"
    return f"{message[:1].lower()}{message[1:]}{shown}"
