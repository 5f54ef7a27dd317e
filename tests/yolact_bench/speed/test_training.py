"""`yolact_bench.speed.training`: times, first steps compared, other implementations, memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.loss_inputs import published_loss
from tests.small_networks import tiny_config
from yolact.errors import SettingsError
from yolact.models.yolact import Yolact
from yolact_bench.speed import training
from yolact_bench.speed.backends import BackendSpec
from yolact_bench.speed.training import TrainingBenchmark
from yolact_bench.speed.training_backends import TRAINING_STAGES, SgdSettings, TrainingRunner, TrainingTask, make_batch

CONFIG = tiny_config(image_size=96)
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
CPU = torch.device("cpu")

WRAPPER = """
from yolact_bench.speed.backends import BackendSpec
from yolact_bench.speed.training_backends import SgdSettings, TrainingTask, YolactTrainingBackend
from yolact.settings import LossConfig, ModelConfig

class Backend(YolactTrainingBackend):
    pass

def load_training(weights, model, num_classes, loss, optimizer, device):
    task = TrainingTask(
        weights, ModelConfig(**model), num_classes, LossConfig(**loss), SgdSettings(**optimizer), device, 1
    )
    return Backend(BackendSpec.own("fp32"), task)
"""
"""Our own backend in another file."""


@pytest.fixture(scope="module")
def model() -> Yolact:
    torch.manual_seed(0)
    return Yolact(CONFIG, 3).eval()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_file(text: str) -> Path:
        path = tmp_path / "other.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def measure(model: Yolact, *specs: BackendSpec, with_memory: bool = False) -> TrainingBenchmark:
    return training.measure(
        model,
        [IMAGE],
        specs,
        published_loss(),
        weights="made up",
        device=CPU,
        batch=2,
        objects=3,
        rounds=2,
        memory=with_memory,
    )


def test_every_backend_has_times_of_all_stages_and_the_settings_are_recorded(model: Yolact) -> None:
    result = measure(model, BackendSpec.own("fp32"), BackendSpec.own("bf16"))
    assert [backend.name for backend in result.backends] == ["yolact fp32", "yolact bf16"]
    for backend in result.backends:
        times = backend.milliseconds
        assert all(getattr(times, stage) > 0 for stage in TRAINING_STAGES)
        assert backend.images_per_second == pytest.approx(2000 / times.total)
        assert backend.memory is None
    assert result.backends[0].speed == 1
    assert result.reference == "yolact fp32"
    settings = result.settings
    assert (settings.batch, settings.objects, settings.rounds, settings.num_classes) == (2, 3, 2, 3)
    assert settings.model == CONFIG


def test_a_backend_that_computes_the_same_has_the_same_terms_and_gradients(
    model: Yolact, write: Callable[[str], Path]
) -> None:
    reference, own = measure(model, BackendSpec.other(write(WRAPPER)), BackendSpec.own("fp32")).backends
    assert reference.term_errors is None
    assert reference.gradient_error is None
    assert own.terms == reference.terms
    assert own.term_errors == dict.fromkeys(("classification", "box", "mask", "semantic"), 0)
    assert own.gradient_error == pytest.approx(0, abs=1e-6)


def test_differences_of_terms_and_gradients_are_relative_to_the_reference(
    model: Yolact, write: Callable[[str], Path]
) -> None:
    """The reference's terms are twice as large, its gradients three times: a half and two thirds are missing."""
    changed = """
    def terms(self, losses):
        return {name: 2 * value for name, value in super().terms(losses).items() if name != "box"} | {"other": 1.0}
    def gradients(self):
        return {name: 3 * value for name, value in super().gradients().items()}
"""
    text = WRAPPER.replace("\n    pass\n", changed)
    _, own = measure(model, BackendSpec.other(write(text)), BackendSpec.own("fp32")).backends
    assert own.term_errors == pytest.approx({"classification": 0.5, "mask": 0.5, "semantic": 0.5, "other": None})
    assert own.gradient_error == pytest.approx(2 / 3, rel=1e-5)


def test_steps_change_the_weights_but_not_batch_norm(model: Yolact, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    task = TrainingTask(tmp_path / "weights.pth", CONFIG, 3, published_loss(), SgdSettings(), "cpu", 1)
    runner = TrainingRunner(BackendSpec.own("fp32"), task)
    value = None
    for stage in runner.stages(runner.prepare(make_batch([IMAGE], 2, 96, 3, 3, seed=0))):
        value = stage(value)
    before, after = model.state_dict(), runner.backend.network.state_dict()
    norms = {name for name in before if "bn" in name or "downsample.1" in name}
    weights = {name for name in before if name.endswith(".weight")} - norms
    assert "backbone.conv1.weight" in weights
    assert norms
    assert all(torch.equal(before[name], after[name]) for name in norms)
    assert not any(torch.equal(before[name], after[name]) for name in weights)


def test_objects_are_ellipses_in_their_boxes() -> None:
    batch = make_batch([IMAGE], batch=3, size=200, num_classes=4, objects=20, seed=1)
    assert batch.images.shape == (3, 3, 200, 200)
    assert batch.images.dtype == np.uint8
    for image in batch.targets:
        boxes, masks, labels = image["boxes"], image["masks"], image["labels"]
        assert (boxes.shape, masks.shape, labels.shape) == ((20, 4), (20, 200, 200), (20,))
        assert set(labels.tolist()) <= {0, 1, 2, 3}
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * 200**2
        large = area > 500
        assert large.any()
        np.testing.assert_allclose(masks.sum(axis=(1, 2))[large], np.pi / 4 * area[large], rtol=0.1)
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = mask.nonzero()
            if len(rows):
                assert box[0] * 200 - 1 <= columns.min() <= columns.max() <= box[2] * 200
                assert box[1] * 200 - 1 <= rows.min() <= rows.max() <= box[3] * 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function load_training; docs/benchmarks.md has the protocol"),
        ("def load_training(**_): raise ValueError('no')", r"load_training failed: ValueError: no \(.*other.py:1\)"),
        ("def load_training(**_): return 1", "has no method prepare, forward, loss, backward, optimizer"),
        (WRAPPER.replace("\n    pass\n", "\n    def loss(self, batch, outputs): 1 / 0\n"), "ZeroDivisionError"),
        (WRAPPER.replace("\n    pass\n", "\n    def terms(self, losses): return 3\n"), "must return a dict of floats"),
        (
            WRAPPER.replace("\n    pass\n", "\n    def terms(self, losses): return {'box': float('nan')}\n"),
            "other: the loss of the first step is not finite",
        ),
    ],
)
def test_a_file_that_breaks_the_protocol_is_named(
    model: Yolact, write: Callable[[str], Path], text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        measure(model, BackendSpec.other(write(text)), BackendSpec.own("fp32"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot reset the count")
def test_memory_of_training_is_measured_in_a_separate_process(model: Yolact, write: Callable[[str], Path]) -> None:
    text = WRAPPER.replace(
        "\n    pass\n",
        "\n    def forward(self, batch): np.ones(300 * 2**20, np.uint8); return super().forward(batch)\n",
    )
    [result] = measure(model, BackendSpec.other(write("import numpy as np\n" + text)), with_memory=True).backends
    assert result.memory is not None
    assert result.memory.kind == "resident"
    assert result.memory.work - result.memory.loading > 250
