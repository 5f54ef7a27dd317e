"""Two processes compute what one does with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.yolact.engine.runs import REPOSITORY, make_images
from yolact.distributed import PeerError, joined_world
from yolact.errors import SettingsError
from yolact.settings import PUBLISHED_AUGMENTATION

BASE: dict[str, Any] = {
    "images": 8,
    "batch_size": 8,
    "epochs": 3,
    "optimizer": "sgd",
    "lr": 1e-2,
    "validate_every": 3,
    "augment": PUBLISHED_AUGMENTATION.model_dump(),
}


def run(folder: Path, processes: int, settings: dict[str, Any], expect: int = 0) -> dict[str, Any]:
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher = [] if processes == 1 else torchrun
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.yolact.engine.runs", "settings.json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (done.returncode == 0) == (expect == 0), done.stderr
    return {"log": done.stderr} if expect else torch.load(folder / "done.pt", weights_only=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"backbone_weights": "imagenet"}},  # nothing is loaded: batch norm is frozen
        {
            "images": 7,
            "loss": {
                "max_masks_per_image": 1,
                "positive_iou": 0.2,
                "negative_iou": 0.1,
                "weights": {"classification": 1, "box": 1.5, "mask": 6, "semantic": 1, "mask_iou": 25, "dice": 2},
            },
            "max_grad_norm": 1.0,
            "ema_decay": 0.5,
            "accumulate": 2,
            "model": {"backbone_weights": "imagenet"},
        },
    ],
    ids=["frozen batch norm", "clipped, averaged, in two passes, unequal shares, masks drawn, another term"],
)
def test_two_processes_give_the_gradients_weights_and_detections_of_one(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    one = run(tmp_path / "one", 1, BASE | changes | {"accumulate": 1})
    two = run(tmp_path / "two", 2, BASE | changes)
    assert len(one["gradients"]) == len(two["gradients"]) > 40
    for name, expected in one["gradients"].items():  # of the first step
        assert (two["gradients"][name] - expected).abs().max() <= 1e-5 * expected.abs().max(), name
    for name, expected in one["weights"].items():
        assert torch.allclose(two["weights"][name], expected, rtol=1e-5, atol=1e-5), name
    for mine, theirs in zip(two["history"]["steps"], one["history"]["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert two["history"]["epochs"] == [pytest.approx(row, abs=1e-4) for row in one["history"]["epochs"]]
    assert [row["image_id"] for row in two["rows"]] == [row["image_id"] for row in one["rows"]]


def test_more_processes_than_gpus_are_rejected_with_the_right_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs for four processes: the first two processes continue to the rendezvous."""
    met: list[str] = []

    def meet(backend: str, **_: Any) -> None:
        met.append(backend)
        raise ConnectionError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", meet)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "4")
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        with pytest.raises(ConnectionError if rank < 2 else SettingsError) as caught, joined_world("auto"):
            pass
    assert met == ["nccl", "nccl"]
    assert "4 processes were started on this machine, but it has 2 CUDA GPUs" in str(caught.value)
    assert "runtime.processes: auto (for torchrun, --nproc-per-node 2), or runtime.device: cpu" in str(caught.value)


def test_a_process_that_ends_while_the_others_connect_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with [pair.cc:561] Connection closed by peer [127.0.0.1]:47848")

    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.init_process_group", refuse)
    reported = pytest.raises(PeerError, match=r"has failed or is gone; its message says why .*closed by peer")
    with reported, joined_world("cpu"):
        pass


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_one_gpu_for_several_processes_is_rejected(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{device} is one GPU, but 2 processes train"), joined_world(device):
        pass


EVALUATION = """
import json, sys, torch, torch.distributed as dist
from pathlib import Path
from tests.yolact.engine.runs import small_params
from yolact.settings import DEFAULT_DETECTION
from yolact.data.coco import CocoInstances
from yolact.distributed import World
from yolact.evaluation.evaluator import predict_dataset
from yolact.models.yolact import Yolact
from yolact.inference.predictor import Predictor
rank, size, batch_size, meeting, images = *map(int, sys.argv[1:4]), *sys.argv[4:]
torch.set_num_threads(1)
if size > 1:
    dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=size)
torch.manual_seed(0)
model = Yolact(small_params().model, 2)
data = CocoInstances.load(Path(images) / "train.json", Path(images))
predictor = Predictor(model, data.class_names, DEFAULT_DETECTION, batch_size=batch_size)
lengths, network = [], predictor.predict
def predict(images):
    lengths.append(len(images))
    return network(images)
predictor.predict = predict
rows = predict_dataset(predictor, data, World(rank, size)).rows
json.dump({"rows": rows, "batches": lengths}, sys.stdout)
"""


def evaluate(folder: Path, processes: int, batch_size: int, images: Path) -> list[dict[str, Any]]:
    """The output of each process: all rows, and the lengths of the batches that it computed."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", EVALUATION, *map(str, (rank, processes, batch_size, folder / "meeting", images))],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = []
    for process in running:
        out, log = process.communicate(timeout=300)
        assert process.returncode == 0, log
        said.append(json.loads(out))
    return said


def test_two_processes_give_bit_identical_detections_to_one(tmp_path: Path) -> None:
    """18 images; full batches of 4, distributed in turn, would be 10 and 8."""
    images = make_images(tmp_path / "images", 18).parent
    (one,) = evaluate(tmp_path, 1, 4, images)
    two = evaluate(tmp_path, 2, 4, images)
    assert len(one["rows"]) > 18
    assert {row["image_id"] for row in one["rows"]} == set(range(1, 19))
    assert two[0]["rows"] == two[1]["rows"] == one["rows"]
    assert two[0]["batches"] + two[1]["batches"] == one["batches"]
    assert [sum(said["batches"]) for said in two] == [9, 9]


NORM = """
import sys, torch, torch.distributed as dist
from torch import nn
from yolact.engine.batch_norm import SyncBatchNorm2d
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
x, gradient = torch.randn(8, 5, 6, 7) * 3 + 1, torch.randn(8, 5, 6, 7)
weight, bias = torch.rand(5) + 0.5, torch.randn(5)
whole, shared = nn.BatchNorm2d(5).double(), SyncBatchNorm2d(5)
for norm in (whole, shared):
    norm.weight.data.copy_(weight)
    norm.bias.data.copy_(bias)
own = slice(0, 3) if rank == 0 else slice(3, 8)  # unequal parts
for _ in range(2):
    all_x = x.double().requires_grad_()
    expected = whole(all_x)
    expected.backward(gradient.double())
    own_x = x[own].contiguous(memory_format=torch.channels_last).requires_grad_()
    found = shared(own_x)
    found.backward(gradient[own])
for grad in (shared.weight.grad, shared.bias.grad):
    dist.all_reduce(grad)
for one, other in (
    (found, expected[own]),
    (own_x.grad, all_x.grad[own]),
    (shared.weight.grad, whole.weight.grad),
    (shared.bias.grad, whole.bias.grad),
    (shared.running_mean, whole.running_mean),
    (shared.running_var, whole.running_var),
):
    torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
assert shared.num_batches_tracked == 2
"""


def test_synchronised_batch_norm_is_batch_norm_of_the_whole_batch(tmp_path: Path) -> None:
    """Against PyTorch's in double precision: its own float32 in channels_last sums less accurately on CPUs."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", NORM, str(rank), str(tmp_path / "meeting")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, log = process.communicate(timeout=300)
        assert process.returncode == 0, log
