"""The gate between candidate and champion: pure functions that decide on metrics measured elsewhere.

Each rule states its verdict with the value, the limit and the shortfall, so a refusal is readable without knowing the
code. AP values are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from yolact.evaluation.bootstrap import ClassGain, Comparison, Gain
from yolact_ops.reports.formatting import decimal
from yolact_ops.settings.params import PromoteConfig

IouType = Literal["box", "mask"]

LISTED_CLASSES = 20
"""Most classes that are named for their losses; those with the largest losses."""


@dataclass(frozen=True)
class Rule:
    """The verdict of one rule."""

    name: str
    """The setting of ``promote`` that it applies, or what it checks."""
    passed: bool
    value: float | None
    """None if it could not be measured."""
    limit: float | None
    """None if the rule has no limit."""
    shortfall: float | None
    """How far the value is on the wrong side of the limit; None if the rule passed or nothing was measured."""
    text: str
    """The rule as a sentence, metrics included."""

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Latency:
    """The candidate's latency."""

    milliseconds: float
    """Median per image."""
    machine: str
    """Where and how it was measured."""


def split_metric(metric: str) -> tuple[IouType, str]:
    """The IoU type and the name of the metric: ``mask_AP50`` is (``mask``, ``AP50``)."""
    kind, _, name = metric.partition("_")
    return ("mask" if kind == "mask" else "box"), name


def judge_first(config: PromoteConfig, value: float | None, latency: Latency | None) -> list[Rule]:
    """The rules for a first champion.

    Args:
        config: the limits.
        value: the candidate's ``config.metric``; None if the evaluated images have no objects.
        latency: the candidate's; None if there is no limit.
    """
    return [_first(config, value), *_latency(config, latency)]


def judge(
    config: PromoteConfig, comparison: Comparison, lost_classes: Sequence[str], latency: Latency | None
) -> list[Rule]:
    """The rules for a candidate (b) against a champion (a).

    Args:
        config: the limits.
        comparison: for the IoU type of ``config.metric``.
        lost_classes: classes that the champion knows and the candidate does not.
        latency: the candidate's; None if there is no limit.
    """
    gain = comparison.metrics[split_metric(config.metric)[1]]
    return [
        _least_gain(config, gain),
        _doubt(config, gain),
        *_class_losses(config, comparison.per_class),
        *_lost_classes(lost_classes),
        *_latency(config, latency),
    ]


def refused(rules: Iterable[Rule]) -> list[Rule]:
    """The rules that did not pass; if none, the gate is open."""
    return [rule for rule in rules if not rule.passed]


def _first(config: PromoteConfig, value: float | None) -> Rule:
    text = "there is no champion yet: " + _shown(config.metric, value)
    return _at_least("promote.min_first", value, config.min_first, text)


def _least_gain(config: PromoteConfig, gain: Gain) -> Rule:
    value = None if gain.gain is None else gain.gain.value
    text = f"{config.metric} {decimal(gain.a, 4)} -> {decimal(gain.b, 4)}: gain {_signed(value)}"
    return _at_least("promote.min_gain", value, config.min_gain, text)


def _doubt(config: PromoteConfig, gain: Gain) -> Rule:
    value = None if gain.gain is None else gain.gain.low
    interval = "" if gain.gain is None else f"{_signed(gain.gain.low)} to {_signed(gain.gain.high)}"
    text = f"with {100 * config.confidence:g} % confidence the gain is {interval or 'unknown'}"
    return _at_least("promote.max_doubt", value, 0.0 - config.max_doubt, text)


def _class_losses(config: PromoteConfig, per_class: dict[str, ClassGain]) -> list[Rule]:
    """A verdict for each class that loses too much; else one, for the class that loses most or for no counted class."""
    name, limit = "promote.max_class_loss", config.max_class_loss
    losses = {
        label: found.a - found.b
        for label, found in per_class.items()
        if found.objects >= config.min_class_objects and found.a is not None and found.b is not None
    }
    if not losses:
        return [Rule(name, True, None, limit, None, f"no class has {config.min_class_objects} evaluated objects")]
    heavy = sorted((label for label, loss in losses.items() if loss > limit), key=lambda label: -losses[label])
    shown = heavy[:LISTED_CLASSES] or [max(losses, key=lambda label: losses[label])]
    rules = [_class_loss(name, label, per_class[label], losses[label], limit) for label in shown]
    more = len(heavy) - len(shown)
    if more > 0:
        rules.append(Rule(name, False, None, limit, None, f"and {more} more classes lose more than {limit:g} AP"))
    return rules


def _class_loss(name: str, label: str, found: ClassGain, loss: float, limit: float) -> Rule:
    change = f"loses {loss:.4f}" if loss > 0 else f"gains {-loss:.4f}"
    text = f"class {label} ({found.objects} objects) {change} AP: {decimal(found.a, 4)} -> {decimal(found.b, 4)}"
    return _at_most(name, loss, limit, text)


def _lost_classes(lost: Sequence[str]) -> list[Rule]:
    if not lost:
        return []
    text = f"the candidate does not know classes that the champion finds: {', '.join(lost)}"
    return [Rule("classes", False, float(len(lost)), 0.0, float(len(lost)), text)]


def _latency(config: PromoteConfig, latency: Latency | None) -> list[Rule]:
    if not config.max_latency_ms:
        return []
    if latency is None:
        return [Rule("promote.max_latency_ms", False, None, config.max_latency_ms, None, "latency was not measured")]
    text = f"{latency.milliseconds:.1f} ms per image ({latency.machine})"
    return [_at_most("promote.max_latency_ms", latency.milliseconds, config.max_latency_ms, text)]


def _at_least(name: str, value: float | None, limit: float, text: str) -> Rule:
    if value is None:
        return Rule(name, False, None, limit, None, f"{text}; it could not be measured, and {limit:g} is wanted")
    short = None if value >= limit else limit - value
    wanted = f"at least {limit:g}" if short is None else f"{short:.4f} below {limit:g}"
    return Rule(name, short is None, value, limit, short, f"{text}; {_placed(short, wanted)}")


def _at_most(name: str, value: float, limit: float, text: str) -> Rule:
    over = None if value <= limit else value - limit
    wanted = f"at most {limit:g}" if over is None else f"{over:.4g} above {limit:g}"
    return Rule(name, over is None, value, limit, over, f"{text}; {_placed(over, wanted)}")


def _placed(shortfall: float | None, wanted: str) -> str:
    return f"wanted {wanted}" if shortfall is None else wanted


def _shown(metric: str, value: float | None) -> str:
    return f"{metric} {decimal(value, 4)}"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4f}"
