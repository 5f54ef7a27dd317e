"""The study of the server, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.small_networks import tiny_config
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact_bench.studies import serving


@pytest.mark.slow
def test_it_measures_start_overhead_throughput_and_a_longer_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    save_model(Yolact(tiny_config(), 2), ["a", "b"], tmp_path / "model")
    serving.main(tmp_path / "model", clients=4, seconds=0.3, duration=1, rounds=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["ready", "bare", "4", "4", "gain"]
    assert len(lines) == 16
    assert all("{200: " in line and " MiB, " in line for line in lines[6:])


def test_rates_count_good_answers_and_percentiles_are_in_milliseconds() -> None:
    load = serving.Load(seconds=[k / 1000 for k in range(101)], duration=2.0)
    load.statuses.update({200: 90, 429: 11})
    assert load.rate == 45
    assert load.percentiles() == pytest.approx([50, 95, 99])
