"""The study of shards, with a few generated images and a real S3 server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.preprocess import step as preprocess
from yolact.formats.sample import generate_sample
from yolact.settings import SampleConfig
from yolact_ops.settings.params import load_params


@pytest.mark.slow
def test_it_compares_loose_files_shards_and_s3_with_latency(repository: Path, tmp_path: Path) -> None:
    few = SampleConfig(seed=3, train_images=40, val_images=2, min_size=64, max_size=96, max_objects=3)
    generate_sample(tmp_path / "raw", few)
    base = load_params(repository / "conf" / "base.yaml")
    for name, size in (("loose", 0), ("sharded", 16)):
        params = base.model_copy(update={"data": base.data.model_copy(update={"shard_size": size})})
        preprocess.run(
            params, raw_dir=tmp_path / "raw", processed_dir=tmp_path / name, report_dir=tmp_path / "report", workers=1
        )
    command = [sys.executable, "-m", "yolact_bench.studies.shards", "speed", tmp_path / "loose", tmp_path / "sharded"]
    options = ["--latency", "2", "--workers", "0,2", "--rounds", "2"]
    done = subprocess.run([*command, *options], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    number = r"\d+\.\d+"
    line = re.compile(
        rf"(\d workers, [a-z0-9 ]+): {number} images/s, {number} of loose files \({number} to {number}\); "
        rf"{number} ms of CPU time an image; first batch after \d+ ms"
    )
    sources = ("loose", "shards", "s3 with an empty cache", "s3 with a full cache")
    found = [match[1] for match in map(line.fullmatch, done.stdout.splitlines()) if match]
    assert found == [f"{workers} workers, {source}" for workers in (0, 2) for source in sources]
