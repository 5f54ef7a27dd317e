"""Change the champion: one process at a time, every change recorded before and after it takes effect.

`exclusive` locks a registered model (`yolact_ops.registry.lock`) and settles what interrupted processes left behind;
`ExclusiveAccess.record` records the decision as a tag (`yolact_ops.registry.history`) and moves the alias. Nothing else
moves the champion alias.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from yolact_ops.lineage.lineage import user_name
from yolact_ops.registry.history import Action, Decision, History, new_decision, read_history, settle, write
from yolact_ops.registry.lock import Hold, hold
from yolact_ops.registry.versions import CHAMPION, RegisteredModel


@dataclass(frozen=True)
class ExclusiveAccess:
    """The right to change the champion of one registered model, while its lock is held."""

    model: RegisteredModel
    history: History
    """As it was when the lock was taken, interrupted decisions settled."""
    lock: Hold

    def record(
        self,
        action: Action,
        version: int,
        *,
        forced: bool = False,
        reason: str | None = None,
        metrics: dict[str, Any] | None = None,
        gate: Sequence[dict[str, Any]] = (),
    ) -> Decision:
        """Make a version champion and record who decided it and why.

        Writes the decision as ``intended``, moves the alias, then marks the decision ``done``. If the process dies in
        between, the next one to take the lock settles the decision by looking at the alias.

        Args:
            action: why the alias moves.
            version: the new champion.
            forced: the gate refused and was overruled.
            reason: what the user stated.
            metrics: what was measured.
            gate: the rules with their verdicts.

        Raises:
            LockedError: the lock was lost before everything was written.
            TrackingError: the store fails.
        """
        decision = new_decision(
            self.history,
            action,
            version,
            who=_user(),
            host=_host(),
            forced=forced,
            reason=reason,
            metrics=metrics,
            gate=gate,
        )
        self.lock.check()
        write(self.model, decision)
        self.lock.check()
        self.model.set_alias(CHAMPION, version)
        self.lock.check()  # without the lock the decision stays intended, and its next holder settles it by the alias
        done = replace(decision, state="done")
        write(self.model, done)
        return done


@contextmanager
def exclusive(model: RegisteredModel) -> Iterator[ExclusiveAccess]:
    """Lock a registered model against other promotions and rollbacks, and settle interrupted ones.

    Raises:
        LockedError: another process held the lock for too long.
        TrackingError: the store fails.
    """
    with hold(model.client, model.name, f"{_user()} on {_host()} (process {os.getpid()})") as lock:
        yield ExclusiveAccess(model, settle(model, read_history(model)), lock)


def _user() -> str:
    """The login at the MLflow server if there is one, else the user of this machine."""
    return os.environ.get("MLFLOW_TRACKING_USERNAME") or user_name()


def _host() -> str:
    return platform.node() or "unknown"
