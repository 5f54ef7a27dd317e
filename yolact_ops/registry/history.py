"""Decisions about the champion, kept as tags on the versions, and what follows from them.

A decision is one tag ``decision.NUMBER-TIME-ID`` on the version that it made champion, with JSON: who, when, from which
version, why, metrics and gate. It is written before the alias moves, as ``intended``, and becomes ``done`` after that.
A process that dies in between leaves an intended decision: the next one to hold the lock sees by the alias whether it
came to pass, and calls it ``done`` or ``abandoned`` (`settle`).

Who deletes a version deletes its decisions. The registered model keeps the highest number that a decision ever had, so
that no number is given twice, and a gap tells of them.
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
"""Of the tags' keys."""
COUNTER = "yolact.decisions"
"""Tag of the registered model: the highest number of a decision so far."""

Action = Literal["promote", "rollback"]
State = Literal["intended", "done", "abandoned"]


@dataclass(frozen=True)
class Decision:
    """Who made which version champion, and why."""

    key: str
    """Of its tag: `PREFIX`, number, time and a random part, so that the keys' order is the decisions'."""
    number: int
    """From 1; in the order of the decisions."""
    time: str
    """ISO 8601, UTC."""
    action: Action
    state: State
    version: int
    """The champion from then on."""
    previous: int | None
    """The champion until then."""
    who: str
    host: str
    forced: bool
    """The gate refused, and was overruled."""
    reason: str | None
    metrics: dict[str, Any]
    """What was measured."""
    gate: list[dict[str, Any]]
    """The rules with their verdicts, see `components.promote.gate.Rule`."""

    def to_tag(self) -> str:
        """The tag's text."""
        tree = asdict(self)
        del tree["key"]
        tree["figures"] = tree.pop("metrics")  # the key in the tags that registries hold already
        return json.dumps(tree, sort_keys=True, allow_nan=False)

    @classmethod
    def from_tag(cls, key: str, text: str) -> Decision | None:
        """Read a tag; None for one that is no decision (it was edited by hand)."""
        try:
            tree = json.loads(text)
            tree["metrics"] = tree.pop("figures")
            return cls(key=key, **tree)
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("the tag %s is not a decision and is passed over: %.80s", key, text)
            return None


@dataclass(frozen=True)
class History:
    """All decisions, oldest first, and the champion as the registry has it now."""

    name: str
    decisions: list[Decision]
    champion: int | None
    versions: list[int]
    """Those that are still there."""
    last_number: int
    """Highest that a decision ever had; 0 where there was none."""

    @property
    def missing(self) -> list[int]:
        """Numbers of decisions that went with their versions, or whose process died before it wrote them."""
        there = {decision.number for decision in self.decisions}
        return [number for number in range(1, self.last_number + 1) if number not in there]

    @property
    def unsettled(self) -> list[Decision]:
        """Decisions of processes that died, or are at work now."""
        return [decision for decision in self.decisions if decision.state == "intended"]

    @property
    def decided_champion(self) -> int | None:
        """The champion by the decisions."""
        done = [decision for decision in self.decisions if decision.state == "done"]
        return done[-1].version if done else None

    @property
    def moved_by_hand(self) -> bool:
        """Whether the champion is another than the decisions say (the alias was moved past this program)."""
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
    """Of the counter; 0 where there is none (no decision was made, or by an older program)."""
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
    """A decision that is about to be carried out, as the next of the history."""
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
    """Keep a decision on its version; one that is there gets the new state."""
    if decision.state == "intended":
        model.set_model_tag(COUNTER, str(decision.number))
    model.set_tag(decision.version, decision.key, decision.to_tag())


def settle(model: RegisteredModel, history: History) -> History:
    """Decide what became of decisions whose process died; only for who holds the lock.

    The alias tells: if it is at the version of the last unsettled decision, that one came to pass.
    """
    settled: dict[str, Decision] = {}
    for decision in reversed(history.unsettled):
        came_to_pass = not settled and decision.version == history.champion
        settled[decision.key] = replace(decision, state="done" if came_to_pass else "abandoned")
        log.warning(
            "an interrupted %s of %s version %d (%s, %s) is settled: it %s",
            decision.action,
            model.name,
            decision.version,
            decision.who,
            decision.time,
            "had come to pass" if came_to_pass else "had not come to pass, and is abandoned",
        )
        write(model, settled[decision.key])
    return replace(history, decisions=[settled.get(decision.key, decision) for decision in history.decisions])


def champions(history: History) -> list[int]:
    """Champions that a rollback can go back through; the last is the champion of now.

    A promotion puts its version on top. A rollback takes away all above its version. Champions that somebody set past
    this program count as they come to light: as ``previous`` of the next decision, or as the champion of now.
    """
    stack: list[int] = []
    for decision in history.decisions:
        if decision.state != "done":
            continue
        _put(stack, decision.previous)
        if decision.action == "rollback" and decision.version in stack:
            del stack[_last(stack, decision.version) + 1 :]
        else:
            _put(stack, decision.version)
    _put(stack, history.champion)
    return stack


def rolled_back(history: History, version: int) -> Decision | None:
    """The rollback that took a version out of use, if nothing has put it back since."""
    for decision in reversed(history.decisions):
        if decision.state == "done" and version in (decision.version, decision.previous):
            return decision if decision.action == "rollback" and decision.previous == version else None
    return None


def _put(stack: list[int], version: int | None) -> None:
    if version is not None and (not stack or stack[-1] != version):
        stack.append(version)


def _last(items: Sequence[int], wanted: int) -> int:
    return max(index for index, item in enumerate(items) if item == wanted)


def ever_champions(history: History) -> set[int]:
    """All versions that were champion at some time."""
    done: Iterable[Decision] = (decision for decision in history.decisions if decision.state == "done")
    named = [version for decision in done for version in (decision.version, decision.previous)]
    return {version for version in [*named, history.champion] if version is not None}
