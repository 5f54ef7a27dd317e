"""The nodes on which the step trains if there are several: what the compiled pipeline tells its task of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from yolact.errors import SettingsError


@dataclass(frozen=True)
class Nodes:
    """The nodes of a TrainJob; objects of Kubernetes in their own form."""

    count: int
    image: str
    resources: dict[str, str]
    """Requests, and limits, of each node."""
    variables: dict[str, str]
    volumes: list[dict[str, Any]]
    mounts: list[dict[str, Any]]
    node_selector: dict[str, str]
    affinity: dict[str, Any]
    tolerations: list[dict[str, Any]]
    pull_secrets: list[str]
    labels: dict[str, str]
    """Of the TrainJob: Kueue's queue."""
    time_limit: int
    """Seconds."""

    def to_json(self) -> str:
        """As JSON, see `from_json`."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Nodes:
        """What `to_json` wrote.

        Raises:
            SettingsError: it is something else.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise SettingsError(f"nodes: not what `python -m pipelines compile` writes: {error}") from error
