"""The study of videos, on a tiny model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.small_networks import tiny_config
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.video import VideoReader
from yolact_bench.studies import video

pytest.importorskip("av", reason="PyAV is not installed (extra video)")


def test_the_video_shows_frames_that_differ_from_one_to_the_next(tmp_path: Path) -> None:
    pictures = video.make_frames(5)
    video.write_video(tmp_path / "video.mp4", pictures)
    reader = VideoReader(tmp_path / "video.mp4")
    decoded = [frame.pixels.permute(1, 2, 0).numpy().astype(float) for frame in reader]
    assert reader.rate == video.RATE
    assert [pixels.shape for pixels in decoded] == [(video.HEIGHT, video.WIDTH, 3)] * 5
    assert all(np.abs(before - after).mean() > 1 for before, after in pairwise(decoded))
    assert np.abs(decoded[0] - pictures[0]).mean() < 8  # MPEG-4 loses a little


def test_the_bare_predictor_is_network_and_masks_round_by_round() -> None:
    meter = video.Meter(frames=2)
    times = {"decode": [9.0, 9.0], "network": [1.0, 2.0], "masks": [0.5, 0.25], "draw": [9.0, 9.0]}
    assert meter.bare(times) == [1.5, 2.25]


@pytest.mark.slow
def test_it_prints_the_time_of_each_stage_and_the_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_model(Yolact(tiny_config(), 2), ["a", "b"], tmp_path / "model")
    video.main(tmp_path / "model", frames=5, rounds=2)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("|")[1].strip(): [float(cell) for cell in line.split("|")[2:4]] for line in lines[4:-2]}
    stages = ["decode", "network", "masks", "draw", "encode", "results"]
    assert list(rows) == [*stages, "yolact predict", "bare predictor"]
    assert lines[-1].startswith("yolact predict has ")
