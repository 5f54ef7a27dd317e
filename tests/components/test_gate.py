"""The gate on invented metrics: each rule at its limit, just inside and just outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.promote.gate import LISTED_CLASSES, Latency, Rule, judge, judge_first, refused
from yolact.evaluation.bootstrap import ClassGain, Comparison, Gain, Interval
from yolact_ops.settings.params import PromoteConfig, parse_params


@pytest.fixture(scope="module")
def base(repository: Path) -> PromoteConfig:
    tree = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    return parse_params(tree).promote


def config(base: PromoteConfig, **changes: Any) -> PromoteConfig:
    limits = {"metric": "mask_AP", "min_gain": 0.0, "max_doubt": 0.0, "max_class_loss": 0.125, "min_class_objects": 10}
    return PromoteConfig.model_validate(
        base.model_dump() | limits | {"max_latency_ms": 0.0, "min_first": 0.5} | changes
    )


def gain(a: float | None, b: float | None, low: float = 0.0, high: float = 1.0) -> Gain:
    return Gain(a, b, None if a is None or b is None else Interval(b - a, low, high))


def comparison(metrics: dict[str, Gain], classes: dict[str, tuple[float | None, float | None, int]]) -> Comparison:
    per_class = {name: ClassGain(*vars(gain(a, b)).values(), objects=count) for name, (a, b, count) in classes.items()}
    return Comparison("mask", images=50, samples=100, confidence=0.95, metrics=metrics, per_class=per_class)


def refusals(rules: list[Rule]) -> dict[str, Rule]:
    return {rule.name: rule for rule in refused(rules)}


@pytest.mark.parametrize(
    ("min_gain", "b", "shortfall"),
    [(0.0, 0.5, None), (0.125, 0.625, None), (0.125, 0.5625, 0.0625), (0.0, 0.25, 0.25), (-0.25, 0.25, None)],
)
def test_the_gain_must_reach_the_minimum(
    base: PromoteConfig, min_gain: float, b: float, shortfall: float | None
) -> None:
    found = refusals(judge(config(base, min_gain=min_gain), comparison({"AP": gain(0.5, b)}, {}), [], None))
    if shortfall is None:
        assert found == {}
        return
    rule = found["promote.min_gain"]
    assert (rule.value, rule.limit, rule.shortfall) == (b - 0.5, min_gain, shortfall)
    assert f"{shortfall:.4f} below" in rule.text


@pytest.mark.parametrize(
    ("max_doubt", "low", "shortfall"),
    [(0.0, 0.0, None), (0.0, -0.125, 0.125), (0.125, -0.125, None), (0.125, -0.25, 0.125), (0.0, 0.25, None)],
)
def test_the_lower_end_of_the_interval_must_not_be_too_far_below_zero(
    base: PromoteConfig, max_doubt: float, low: float, shortfall: float | None
) -> None:
    found = refusals(judge(config(base, max_doubt=max_doubt), comparison({"AP": gain(0.5, 0.75, low)}, {}), [], None))
    if shortfall is None:
        assert found == {}
        return
    rule = found["promote.max_doubt"]
    assert (rule.value, rule.limit, rule.shortfall) == (low, -max_doubt, shortfall)


def test_only_the_chosen_metric_counts(base: PromoteConfig) -> None:
    both = comparison({"AP": gain(0.5, 0.25, -0.5), "AP50": gain(0.5, 0.75)}, {})
    assert refusals(judge(config(base, metric="mask_AP50"), both, [], None)) == {}
    assert set(refusals(judge(config(base), both, [], None))) == {"promote.min_gain", "promote.max_doubt"}


def test_no_class_with_enough_objects_may_lose_more_than_the_limit(base: PromoteConfig) -> None:
    classes = {
        "at the limit": (0.5, 0.375, 10),
        "too much": (0.5, 0.25, 10),
        "rare": (1.0, 0.0, 9),
        "up": (0.1, 0.9, 99),
    }
    rules = judge(config(base), comparison({"AP": gain(0.5, 0.75)}, classes), [], None)
    (rule,) = refused(rules)
    assert (rule.name, rule.value, rule.limit, rule.shortfall) == ("promote.max_class_loss", 0.25, 0.125, 0.125)
    assert rule.text.startswith("class too much (10 objects) loses 0.2500 AP: 0.5000 -> 0.2500")


def test_if_no_class_loses_too_much_the_largest_loss_is_reported(base: PromoteConfig) -> None:
    classes = {"a": (0.5, 0.75, 10), "b": (0.5, 0.4375, 10), "none": (None, None, 0)}
    rules = judge(config(base), comparison({"AP": gain(0.5, 0.75)}, classes), [], None)
    assert refused(rules) == []
    assert [rule.text for rule in rules if rule.name == "promote.max_class_loss"] == [
        "class b (10 objects) loses 0.0625 AP: 0.5000 -> 0.4375; wanted at most 0.125"
    ]


def test_the_worst_classes_are_named_and_the_rest_counted(base: PromoteConfig) -> None:
    classes = {f"class {k}": (1.0, 0.5 - k / 100, 10) for k in range(LISTED_CLASSES + 5)}
    found = refused(judge(config(base), comparison({"AP": gain(0.5, 0.75)}, classes), [], None))
    assert len(found) == LISTED_CLASSES + 1
    assert found[0].text.startswith(f"class class {LISTED_CLASSES + 4} ")
    assert "5 more classes" in found[-1].text


def test_what_could_not_be_measured_is_refused(base: PromoteConfig) -> None:
    found = refusals(judge(config(base), comparison({"AP": gain(None, None)}, {}), [], None))
    assert set(found) == {"promote.min_gain", "promote.max_doubt"}
    assert all("could not be measured" in rule.text for rule in found.values())
    assert refusals(judge_first(config(base), None, None))["promote.min_first"].value is None


def test_lost_classes_are_named(base: PromoteConfig) -> None:
    (rule,) = refused(judge(config(base), comparison({"AP": gain(0.5, 0.75)}, {}), ["cat", "dog"], None))
    assert (rule.name, rule.value) == ("classes", 2)
    assert "cat, dog" in rule.text


@pytest.mark.parametrize(("value", "passes"), [(0.5, True), (0.4999, False)])
def test_a_first_champion_must_reach_the_minimum(base: PromoteConfig, value: float, passes: bool) -> None:
    rules = judge_first(config(base), value, None)
    assert [rule.passed for rule in rules] == [passes]


@pytest.mark.parametrize(("milliseconds", "over"), [(100.0, None), (150.0, 50.0)])
def test_latency_is_limited_if_a_limit_is_set(base: PromoteConfig, milliseconds: float, over: float | None) -> None:
    limits = config(base, max_latency_ms=100.0)
    rules = judge_first(limits, 0.75, Latency(milliseconds, "a machine"))
    assert [(rule.name, rule.shortfall) for rule in rules] == [
        ("promote.min_first", None),
        ("promote.max_latency_ms", over),
    ]
    assert "a machine" in rules[1].text
    assert not judge_first(limits, 0.75, None)[1].passed
    assert len(judge_first(config(base), 0.75, Latency(milliseconds, "a machine"))) == 1
