"""Learning rates of small runs, written out by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact.engine.schedule import learning_rate, why_not_extended
from yolact.settings import PUBLISHED_AUGMENTATION, TrainConfig
from yolact_ops.settings.params import load_params

MOSAICS = PUBLISHED_AUGMENTATION.model_dump() | {"mosaic": 0.5, "mosaic_until": 0.8}
BASE = load_params(Path(__file__).resolve().parents[3] / "conf" / "base.yaml").train


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        BASE.model_dump() | {"warmup_steps": 4, "warmup_start_lr": 0.1, "lr": 0.5} | changes
    )


def rates(steps: int, settings: TrainConfig) -> list[float]:
    return [learning_rate(step, steps, settings) for step in range(steps)]


def test_steps_after_a_warm_up_by_hand() -> None:
    settings = config(schedule="step", lr_milestones=[0.5, 0.8], lr_gamma=0.1)
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.05, 0.05, 0.05, 0.005, 0.005]
    assert rates(10, settings) == pytest.approx(expected, rel=1e-12)


def test_a_cosine_after_a_warm_up_by_hand() -> None:
    half = 0.25 * math.sqrt(0.5)
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.25 + half, 0.25, 0.25 - half]
    assert rates(8, config(schedule="cosine")) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(8, 8, config(schedule="cosine")) == pytest.approx(0, abs=1e-15)


def test_without_a_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert rates(4, config(schedule="step", lr_milestones=[], warmup_steps=0)) == [0.5] * 4
    assert rates(2, config(schedule="cosine", warmup_steps=0)) == pytest.approx([0.5, 0.25])


def test_the_published_schedule() -> None:
    """120k iterations of yolact_resnet50_pascal: 1e-4 to 1e-3 in 500, then a tenth at 60k and at 100k."""
    settings = BASE.model_copy(update={"lr_milestones": [0.5, 100 / 120]})
    by_hand = {0: 1e-4, 250: 5.5e-4, 500: 1e-3, 59_999: 1e-3, 60_000: 1e-4, 99_999: 1e-4, 100_000: 1e-5, 119_999: 1e-5}
    for step, rate in by_hand.items():
        assert learning_rate(step, 120_000, settings) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_a_run_shorter_than_its_warm_up_only_rises(schedule: str) -> None:
    assert rates(3, config(schedule=schedule)) == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(("steps", "expected"), [(120_000, 500), (5000, 500), (4999, 499), (100, 10), (9, 0)])
def test_an_automatic_warm_up_is_the_published_one_but_at_most_a_tenth_of_the_run(steps: int, expected: int) -> None:
    settings = config(schedule="step", warmup_steps="auto", lr_milestones=[])
    *rising, peak = (learning_rate(step, steps, settings) for step in range(expected + 1))
    assert peak == 0.5
    assert all(rate < peak for rate in rising)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.integers(2, 60), st.floats(0.01, 10), st.floats(0, 1))
def test_the_cosine_has_no_jumps(warmup: int, length: int, peak: float, start: float) -> None:
    settings = config(schedule="cosine", warmup_steps=warmup, lr=peak, warmup_start_lr=start * peak)
    found = rates(warmup + length, settings)
    assert all(rate >= 0 for rate in found)
    assert found[warmup] == pytest.approx(peak)
    falling = found[warmup:]
    assert falling == sorted(falling, reverse=True)
    steepest = peak * math.pi / 2 / length
    assert all(a - b <= steepest * (1 + 1e-9) for a, b in pairwise(falling))
    if warmup:
        rise = peak * (1 - start) / warmup
        assert all(abs(b - a) == pytest.approx(rise, abs=1e-12) for a, b in pairwise(found[: warmup + 1]))


@pytest.mark.parametrize(
    ("changes", "steps", "reason"),
    [
        ({"schedule": "step", "lr_milestones": []}, 30, ""),
        ({"schedule": "step", "lr_milestones": [0.5]}, 15, ""),  # of 30 steps: the milestone is not passed
        (
            {"schedule": "step", "lr_milestones": [0.5]},
            16,
            "with train.schedule: step the learning rate depends on train.epochs (lr_milestones are fractions of it): "
            "epoch 6 had 0.05, and in a run of 20 it has 0.5",
        ),
        ({"schedule": "cosine"}, 5, ""),  # four steps of warm-up, and the peak
        (
            {"schedule": "cosine"},
            6,
            "with train.schedule: cosine the learning rate depends on train.epochs (it falls to zero over the run): "
            "epoch 2 had 0.498, and in a run of 20 it has 0.5",
        ),
        (
            {"schedule": "step", "lr_milestones": [], "warmup_steps": "auto"},
            4,
            "with train.schedule: step the learning rate depends on train.epochs (warmup_steps: auto is a tenth of a "
            "short run): epoch 1 had 0.233, and in a run of 20 it has 0.167",
        ),
        ({"schedule": "step", "lr_milestones": [], "augment": MOSAICS}, 24, ""),  # 8 epochs with mosaics in both
        (
            {"schedule": "step", "lr_milestones": [], "augment": MOSAICS},
            25,
            "with train.augment.mosaic the epochs with mosaics depend on train.epochs (mosaic_until is a fraction of "
            "it): they end after epoch 8, and in a run of 20 after epoch 16",
        ),
    ],
)
def test_more_epochs_are_possible_while_no_step_had_another_rate(
    changes: dict[str, Any], steps: int, reason: str
) -> None:
    """Runs of 10 and of 20 epochs of 3 steps."""
    assert why_not_extended(steps, 3, 10, config(epochs=20, lr_gamma=0.1, **changes)) == reason
