"""The outcome of a promotion as human-readable text."""

from __future__ import annotations

from typing import Any

from components.promote.promotion import Outcome
from yolact_ops.reports.formatting import decimal

HEADLINES = {
    "promoted": "version {version} is the champion now",
    "refused": "version {version} is refused; nothing was changed",
    "unchanged": "version {version} is the champion already; nothing was changed",
    "possible": "version {version} would be promoted; nothing was changed",
    "not_served": "version {version} is not served",
}
"""Headlines by status."""


def headline(outcome: Outcome) -> str:
    """The outcome in one line."""
    text = f"{outcome.name}: {HEADLINES[outcome.status].format(version=outcome.version)}"
    if outcome.status == "not_served":
        return f"{text}; {_way_back(outcome)}"
    if outcome.status != "unchanged":
        tense = "was" if outcome.status == "promoted" else "is"
        text += f" (champion {tense}: {'none' if outcome.previous is None else f'version {outcome.previous}'})"
    return f"{text}, by force" if outcome.decision is not None and outcome.decision.forced else text


def _way_back(outcome: Outcome) -> str:
    if outcome.rollback is not None:
        return f"version {outcome.rollback.version} is the champion again"
    return "there is no earlier champion to go back to, or another process has changed it"


def to_markdown(outcome: Outcome) -> str:
    """The outcome with its rules, metrics by class and notes."""
    parts = [f"# {headline(outcome)}"]
    if outcome.decision is not None:
        decision = outcome.decision
        reason = f" Reason: {decision.reason}" if decision.reason else ""
        parts.append(f"Decided by {decision.who} on {decision.host}, {decision.time}.{reason}")
    if outcome.rollout is not None:
        parts.append(f"{outcome.rollout.service} {outcome.rollout.problem or 'answers with this version.'}")
    assessment = outcome.assessment
    if assessment is not None:
        rows = [
            f"| {'passed' if rule.passed else 'REFUSED'} | `{rule.name}` | {rule.text} |" for rule in assessment.rules
        ]
        parts.append("\n".join(["| | rule | result |", "| --- | --- | --- |", *rows]))
        if assessment.notes:
            parts.append("\n".join(f"- {note}" for note in assessment.notes))
        per_class = assessment.metrics.get("per_class")
        if per_class:
            parts.append(_class_table(per_class))
    return "\n\n".join(parts) + "\n"


def _class_table(per_class: dict[str, list[Any]]) -> str:
    """Classes with the largest loss first; those without objects last."""
    gains = {name: None if a is None or b is None else b - a for name, (a, b, _) in per_class.items()}
    order = sorted(per_class, key=lambda name: (gains[name] is None, gains[name] or 0.0))
    lines = ["| class | objects | champion AP | candidate AP | gain |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in order:
        (a, b, objects), gain = per_class[name], gains[name]
        shown = "-" if gain is None else f"{gain:+.4f}"
        lines.append(f"| {name} | {objects} | {decimal(a, 4)} | {decimal(b, 4)} | {shown} |")
    return "\n".join(lines)
