"""The history of the champion: decisions, stored as tags of the versions, and what can be derived from them.

A decision is one tag ``decision.NUMBER-TIME-ID`` of the version that it made champion. Its value is JSON: who, when,
from which version, why, metrics and gate. It is written as ``intended`` before the alias moves and becomes ``done``
afterwards. A process that dies in between leaves an intended decision: the next process to hold the lock sees from the
alias whether it took effect and marks it ``done`` or ``abandoned`` (`settle`).

Deleting a version deletes its decisions. The registered model stores the highest number of any decision, so no number
is used twice and deleted decisions show as gaps.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from yolact_ops.registry.versions import CHAMPION, RegisteredModel

log = logging.getLogger(__name__)

PREFIX = "decision."
"""Prefix of the tag keys."""
COUNTER = "yolact.decisions"
"""Tag of the registered model: the highest decision number so far."""

Action = Literal["promote", "rollback"]
State = Literal["intended", "done", "abandoned"]


@dataclass(frozen=True)
class Decision:
    """Who made which version champion, and why."""

    key: str
    """The tag's key: `PREFIX`, number, time and a random part; sorts in the order of the decisions."""
    number: int
    """From 1, in the order of the decisions."""
    time: str
    """ISO 8601, UTC."""
    action: Action
    state: State
    version: int
    """The new champion."""
    previous: int | None
    """The champion before; None if there was none."""
    who: str
    host: str
    forced: bool
    """The gate refused and was overruled."""
    reason: str | None
    metrics: dict[str, Any]
    """What was measured."""
    gate: list[dict[str, Any]]
    """The rules of the gate with their verdicts, as JSON."""

    def to_tag(self) -> str:
        """The tag's value."""
        tree = asdict(self)
        del tree["key"]
        tree["figures"] = tree.pop("metrics")  # the key in the tags that registries hold already
        return json.dumps(tree, sort_keys=True, allow_nan=False)

    @classmethod
    def from_tag(cls, key: str, text: str) -> Decision | None:
        """Read a tag; None if its value is not a decision (edited by hand)."""
        try:
            tree = json.loads(text)
            tree["metrics"] = tree.pop("figures")
            return cls(key=key, **tree)
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("the tag %s is not a decision and is ignored: %.80s", key, text)
            return None


@dataclass(frozen=True)
class History:
    """All decisions, oldest first, and the current champion."""

    name: str
    decisions: list[Decision]
    champion: int | None
    versions: list[int]
    """Versions that still exist."""
    last_number: int
    """The highest number any decision had; 0 if there was none."""

    @property
    def missing(self) -> list[int]:
        """Numbers of decisions deleted with their versions, or whose process died before writing them."""
        there = {decision.number for decision in self.decisions}
        return [number for number in range(1, self.last_number + 1) if number not in there]

    @property
    def unsettled(self) -> list[Decision]:
        """Decisions of processes that died or are still running."""
        return [decision for decision in self.decisions if decision.state == "intended"]

    @property
    def decided_champion(self) -> int | None:
        """The champion according to the decisions."""
        done = [decision for decision in self.decisions if decision.state == "done"]
        return done[-1].version if done else None

    @property
    def moved_by_hand(self) -> bool:
        """Whether the alias disagrees with the decisions: somebody moved it without this program."""
        return not self.unsettled and self.champion != self.decided_champion


def read_history(model: RegisteredModel) -> History:
    """Read all decisions.

    Raises:
        TrackingError: the store fails.
    """
    versions = model.versions()
    decisions = [
        decision
        for version in versions.values()
        for key, text in version.tags.items()
        if key.startswith(PREFIX) and (decision := Decision.from_tag(key, text)) is not None
    ]
    decisions.sort(key=lambda decision: (decision.number, decision.key))
    last_number = max([_number(model.tags().get(COUNTER)), *(decision.number for decision in decisions)])
    return History(model.name, decisions, model.alias(CHAMPION), list(versions), last_number)


def _number(text: str | None) -> int:
    """The counter's value; 0 if there is none."""
    return int(text) if text is not None and text.isdecimal() else 0


def new_decision(
    history: History,
    action: Action,
    version: int,
    *,
    who: str,
    host: str,
    forced: bool = False,
    reason: str | None = None,
    metrics: dict[str, Any] | None = None,
    gate: Sequence[dict[str, Any]] = (),
) -> Decision:
    """The next decision of a history, about to be carried out."""
    now = datetime.now(UTC)
    number = history.last_number + 1
    return Decision(
        key=f"{PREFIX}{number:06d}-{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}",
        number=number,
        time=now.isoformat(timespec="seconds"),
        action=action,
        state="intended",
        version=version,
        previous=history.champion,
        who=who,
        host=host,
        forced=forced,
        reason=reason,
        metrics=metrics or {},
        gate=list(gate),
    )


def write(model: RegisteredModel, decision: Decision) -> None:
    """Write a decision to its version, or update its state."""
    if decision.state == "intended":
        model.set_model_tag(COUNTER, str(decision.number))
    model.set_tag(decision.version, decision.key, decision.to_tag())


def settle(model: RegisteredModel, history: History) -> History:
    """Mark the decisions of dead processes as done or abandoned; requires the lock.

    If the alias is at the version of the last unsettled decision, that decision took effect.
    """
    settled: dict[str, Decision] = {}
    for decision in reversed(history.unsettled):
        took_effect = not settled and decision.version == history.champion
        settled[decision.key] = replace(decision, state="done" if took_effect else "abandoned")
        log.warning(
            "settled an interrupted %s of %s version %d (%s, %s): it %s",
            decision.action,
            model.name,
            decision.version,
            decision.who,
            decision.time,
            "took effect" if took_effect else "did not take effect and is abandoned",
        )
        write(model, settled[decision.key])
    return replace(history, decisions=[settled.get(decision.key, decision) for decision in history.decisions])


def champions(history: History) -> list[int]:
    """The champions that rollbacks can return to, as a stack; the last one is the current champion.

    A promotion pushes its version. A rollback pops everything above its version. Champions set without this program
    appear as ``previous`` of the next decision, or as the current champion.
    """
    stack: list[int] = []
    for decision in history.decisions:
        if decision.state != "done":
            continue
        _push(stack, decision.previous)
        if decision.action == "rollback" and decision.version in stack:
            del stack[_last(stack, decision.version) + 1 :]
        else:
            _push(stack, decision.version)
    _push(stack, history.champion)
    return stack


def rolled_back(history: History, version: int) -> Decision | None:
    """The rollback that took a version out of use, unless it became champion again since."""
    for decision in reversed(history.decisions):
        if decision.state == "done" and version in (decision.version, decision.previous):
            return decision if decision.action == "rollback" and decision.previous == version else None
    return None


def _push(stack: list[int], version: int | None) -> None:
    if version is not None and (not stack or stack[-1] != version):
        stack.append(version)


def _last(items: Sequence[int], wanted: int) -> int:
    return max(index for index, item in enumerate(items) if item == wanted)


def ever_champions(history: History) -> set[int]:
    """All versions that were ever champion."""
    done: Iterable[Decision] = (decision for decision in history.decisions if decision.state == "done")
    named = [version for decision in done for version in (decision.version, decision.previous)]
    return {version for version in [*named, history.champion] if version is not None}
