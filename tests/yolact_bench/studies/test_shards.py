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


def preprocessed(repository: Path, folder: Path, shard_size: int) -> Path:
    """The output of preprocess for 40 generated images."""
    few = SampleConfig(seed=3, train_images=40, val_images=2, min_size=64, max_size=96, max_objects=3)
    generate_sample(folder / "raw", few)
    base = load_params(repository / "conf" / "base.yaml")
    params = base.model_copy(update={"data": base.data.model_copy(update={"shard_size": shard_size})})
    processed = folder / f"shards of {shard_size}"
    preprocess.run(params, raw_dir=folder / "raw", processed_dir=processed, report_dir=folder / "report", workers=1)
    return processed


def lines_of(repository: Path, *arguments: str | Path) -> list[str]:
    """What the study prints."""
    command = [sys.executable, "-m", "yolact_bench.studies.shards", *arguments]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_it_loads_the_first_batches_of_repeated_rows(repository: Path, tmp_path: Path) -> None:
    sharded = preprocessed(repository, tmp_path, 16)
    lines = lines_of(repository, "start", sharded, "--images", "1000", "--workers", "1", "--batches", "7")
    found = [
        re.fullmatch(
            r"([\d,]+) images, 1 workers: first batch after \d+\.\d s; private memory after (\d+) batches \d+ MiB, "
            r"of the largest worker \d+",
            line,
        )
        for line in lines
    ]
    assert [match.groups() for match in found if match] == [("40", "5"), ("1,000", "7")]


@pytest.mark.slow
def test_it_compares_loose_files_shards_and_s3_with_latency(repository: Path, tmp_path: Path) -> None:
    loose, sharded = (preprocessed(repository, tmp_path, size) for size in (0, 16))
    options = ["--latency", "2", "--workers", "0,2", "--rounds", "2"]
    lines = lines_of(repository, "speed", loose, sharded, *options)
    number = r"\d+\.\d+"
    line = re.compile(
        rf"(\d workers, [a-z0-9 ]+): {number} images/s, {number} of loose files \({number} to {number}\); "
        rf"{number} ms of CPU time an image; first batch after \d+ ms"
    )
    sources = ("loose", "shards", "s3 with an empty cache", "s3 with a full cache")
    found = [match[1] for match in map(line.fullmatch, lines) if match]
    assert found == [f"{workers} workers, {source}" for workers in (0, 2) for source in sources]
