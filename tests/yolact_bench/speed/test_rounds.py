"""`yolact_bench.speed.rounds`: the order of runs, and the statistics of their times."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from yolact.errors import SettingsError
from yolact_bench.speed.rounds import Rounds, tuned_gpu


def test_backends_alternate_within_a_round_and_its_times_are_means_over_the_runs() -> None:
    calls: list[tuple[str, int]] = []

    def run(name: str, number: int) -> list[float]:
        calls.append((name, number))
        return [float(number), 10.0]

    rounds = Rounds({name: partial(run, name) for name in "ab"}, print, runs_per_round=2)
    rounds.warm_up(1)
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert rounds.times == {"a": [], "b": []}
    calls.clear()
    rounds.measure(2)
    assert calls == [(name, number) for number in range(4) for name in "ab"]
    assert rounds.times == {"a": [[0.5, 10], [2.5, 10]], "b": [[0.5, 10], [2.5, 10]]}


def test_speed_is_the_median_of_the_ratios_within_each_round() -> None:
    """Totals 10, 40, 100 and 5, 10, 100: ratios 2, 4 and 1, while the medians' ratio is 4."""
    times = {"reference": [[4.0, 6.0], [30.0, 10.0], [50.0, 50.0]], "other": [[1.0, 4.0], [4.0, 6.0], [40.0, 60.0]]}
    rounds = Rounds({name: rows.__getitem__ for name, rows in times.items()}, lambda _: None)
    rounds.measure(3)
    assert rounds.medians("reference") == [30, 10, 40]
    assert rounds.medians("other") == [4, 6, 10]
    assert rounds.speed("other", "reference") == 2
    assert rounds.speed("reference", "reference") == 1


def test_cudnn_chooses_by_trial_on_a_gpu_only_while_it_is_measured() -> None:
    before = torch.backends.cudnn.benchmark
    with tuned_gpu(torch.device("cuda"), batch=1):
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before
    with pytest.raises(SettingsError, match=r"try a smaller --batch \(now 3\)"), tuned_gpu(torch.device("cpu"), 3):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert torch.backends.cudnn.benchmark == before
