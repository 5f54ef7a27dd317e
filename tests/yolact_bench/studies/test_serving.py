"""The study of the server, on a tiny model."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.small_networks import tiny_config
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact_bench.studies import serving


@pytest.mark.slow
def test_it_measures_start_overhead_and_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_model(Yolact(tiny_config(), 2), ["a", "b"], tmp_path / "model")
    serving.main(str(tmp_path / "model"), starts=1, clients=4, seconds=0.3, rounds=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["ready", "bare", "4", "4", "gain"]


def test_rates_count_good_answers_and_percentiles_are_in_milliseconds() -> None:
    load = serving.Load(seconds=[k / 1000 for k in range(101)], duration=2.0)
    load.statuses.update({200: 90, 429: 11})
    assert load.rate == 45
    assert load.percentiles() == pytest.approx([50, 95, 99])


def test_a_broken_connection_counts_and_does_not_end_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        server = serving.Server(_this_process(), listener.getsockname()[1], 0.0)
        done = serving.load(server, b"", clients=1, seconds=0.2)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert set(done.statuses) == {serving.NO_ANSWER}
    assert done.statuses[serving.NO_ANSWER] > 1


def _this_process() -> Any:
    return SimpleNamespace(pid=os.getpid())
