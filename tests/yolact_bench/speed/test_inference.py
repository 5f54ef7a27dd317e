"""`yolact_bench.speed`: inference, agreement, random weights, evaluation work, memory and images."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from yolact.devices import peak_resident
from yolact.errors import DataError, ExportError, SettingsError
from yolact.inference.postprocess import detect
from yolact.inference.predictor import Predictor
from yolact.models.published import PUBLISHED_MODELS
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION, PUBLISHED_DETECTION, ModelConfig
from yolact_bench.speed import agreement, evaluation, inference, memory, process
from yolact_bench.speed.agreement import Agreement, compare
from yolact_bench.speed.backends import RAW_NAMES, STAGES, BackendSpec, Found, InferenceTask
from yolact_bench.speed.calibration import BOX_SHARE, calibrated_network
from yolact_bench.speed.images import read_images
from yolact_bench.speed.inference import InferenceBenchmark, LoadedBackend
from yolact_bench.speed.memory import restart_peak_resident

CLASSES = ("circle", "square", "triangle")
CONFIG: ModelConfig = PUBLISHED_MODELS["yolact_resnet50"].model.model_copy(
    update={
        "backbone": "resnet18",
        "backbone_weights": "none",
        "image_size": 96,
        "fpn_channels": 8,
        "num_prototypes": 4,
        "anchor_scales": [[8.0], [16.0], [24.0], [40.0], [60.0]],
    }
)
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
CPU = torch.device("cpu")

WRAPPER = """
from yolact_bench.speed.backends import BackendSpec, InferenceTask, YolactBackend
from yolact.settings import DetectConfig, ModelConfig

class Backend(YolactBackend):
    pass

def load(weights, model, num_classes, detection, device):
    classes = tuple(str(label) for label in range(num_classes))
    task = InferenceTask(weights, ModelConfig(**model), classes, DetectConfig(**detection), device, 1)
    return Backend(BackendSpec.own("fp32"), task)
"""
"""Our own backend in another file."""

STUB = """
import numpy as np

class Backend:
    def preprocess(self, images): return images
    def network(self, inputs): return inputs
    def nms(self, raw): return raw
    def masks(self, detections, sizes):
        return [(np.zeros((1, 4)), np.ones(1), np.zeros(1), np.ones((1, *size))) for size in sizes]

def load(weights, model, num_classes, detection, device):
    return Backend()
"""
"""A backend without a network."""


@pytest.fixture(scope="module")
def model() -> Yolact:
    return calibrated_network(CONFIG, len(CLASSES), IMAGE, objects=6)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the file of another implementation."""

    def write_file(text: str, name: str = "other.py") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def measure(
    model: Yolact,
    *specs: BackendSpec,
    images: tuple[np.ndarray, ...] = (IMAGE,),
    batch: int = 1,
    rounds: int = 2,
    with_memory: bool = False,
) -> InferenceBenchmark:
    return inference.measure(
        model,
        CLASSES,
        images,
        specs,
        PUBLISHED_DETECTION,
        weights="made up",
        device=CPU,
        batch=batch,
        rounds=rounds,
        memory=with_memory,
    )


def loaded(model: Yolact, spec: BackendSpec, folder: Path) -> LoadedBackend:
    """A backend in this process: a new one takes seconds to start."""
    torch.save(model.state_dict(), folder / "weights.pth")
    task = InferenceTask(folder / "weights.pth", CONFIG, CLASSES, PUBLISHED_DETECTION, "cpu", torch.get_num_threads())
    return LoadedBackend(spec, task, [IMAGE], 1, cpu_time=False)


def agreement_of_ours_with(model: Yolact, file: Path) -> Agreement:
    """Our agreement with another implementation."""
    specs = (BackendSpec.other(file), BackendSpec.own("fp32"))
    other, own = (loaded(model, spec, file.parent).outcome() for spec in specs)
    return own.agreement(other, integer_boxes=PUBLISHED_DETECTION.integer_boxes)


# --- inference ------------------------------------------------------------------------------------------------------


def test_every_backend_has_times_of_all_stages_and_the_settings_are_recorded(model: Yolact) -> None:
    result = measure(model, BackendSpec.own("fp32"), BackendSpec.own("bf16"), images=(IMAGE, IMAGE[:30]), batch=2)
    assert [backend.name for backend in result.backends] == ["yolact fp32", "yolact bf16"]
    assert result.reference == "yolact fp32"
    for backend in result.backends:
        times = dataclasses.asdict(backend.milliseconds)
        assert list(times) == [*STAGES, "total"]
        assert all(time > 0 for time in times.values())
        assert backend.memory is None
    settings = result.settings
    assert settings.model == CONFIG
    assert settings.images == [(40, 60), (30, 60)]
    assert (settings.batch, settings.rounds, settings.weights) == (2, 2, "made up")
    assert result.machine.torch == torch.__version__
    assert result.machine.threads == torch.get_num_threads()
    assert result.backends[0].agreement is None
    assert result.backends[1].agreement is not None


FULL_TURNS = """
from yolact_bench.speed import process
process.LONG = 1e9
"""
"""Have a backend's process run all runs of a turn, however busy the machine is."""

SCRIPTED = """
from yolact_bench.speed import rounds

times = iter({times})

class ScriptedLaps:
    def __init__(self, device, clock): pass
    def lap(self): return next(times)

rounds.Laps = ScriptedLaps
"""
"""A clock of the backend's process, on which each stage takes the next of the given times."""


def test_metrics_are_medians_and_speed_is_the_median_of_the_rounds_own_ratios(
    model: Yolact, write: Callable[..., Path]
) -> None:
    """Both backends take three turns, of which the last run counts; in the third the machine is ten times slower."""
    specs = []
    for name, turns in {
        "first": ([1, 6, 2, 1], [1, 7, 2, 2], [10, 60, 20, 10]),
        "second": ([1, 1, 1, 2], [1, 1, 1, 1], [10, 20, 10, 10]),
    }.items():
        times = [99] * 4 * process.RUNS * inference.WARM_UP
        for turn in turns:
            times += [99] * 4 * (process.RUNS - 1) + turn
        specs.append(BackendSpec.other(write(FULL_TURNS + SCRIPTED.format(times=times) + STUB, f"{name}.py")))
    result = measure(model, *specs, rounds=3, batch=2)
    first, second = result.backends
    assert dataclasses.astuple(first.milliseconds) == (1, 7, 2, 2, 12)  # totals 10, 12, 100
    assert dataclasses.astuple(second.milliseconds) == (1, 1, 1, 2, 5)  # totals 5, 4, 50
    assert first.images_per_second == pytest.approx(2 / 0.012)
    assert first.speed == 1
    assert second.speed == 2  # of 10 / 5, 12 / 4 and 100 / 50


def test_backends_take_turns_within_each_round_each_in_a_process_of_its_own(
    model: Yolact, write: Callable[..., Path], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    specs = []
    for name in ("a", "b"):
        noted = f"import os; print({name!r}, os.getpid(), file=open({str(log)!r}, 'a')); return inputs"
        specs.append(BackendSpec.other(write(FULL_TURNS + STUB.replace("return inputs", noted), f"{name}.py")))
    measure(model, *specs, rounds=3)
    rows = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
    turn = {name: name * process.RUNS for name in "ab"}
    warm_up = "".join(turn[name] * inference.WARM_UP for name in "ab")
    assert "".join(name for name, _ in rows) == warm_up + (turn["a"] + turn["b"]) * 3 + "ab"  # the last to compare
    processes = {(name, number) for name, number in rows}
    assert len(processes) == len({number for _, number in processes} | {str(os.getpid())}) - 1 == 2


def test_batches_take_the_images_in_turn(model: Yolact, write: Callable[..., Path], tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = STUB.replace("return images", f"open({str(log)!r}, 'a').write(str(len(images[0]))); return images")
    images = tuple(np.zeros((height, 5, 3), np.uint8) for height in (1, 2, 3))
    measure(model, BackendSpec.other(write(FULL_TURNS + text)), images=images, rounds=4)
    turns = "12312" + "1231"
    assert log.read_text(encoding="utf-8") == "".join(image * process.RUNS for image in turns) + "1"


def test_another_implementation_with_the_same_results_is_equal(model: Yolact, write: Callable[..., Path]) -> None:
    result = measure(
        model, BackendSpec.other(write(WRAPPER)), BackendSpec.own("fp32"), images=(IMAGE, IMAGE[:30]), batch=2
    )
    other, own = result.backends
    assert result.reference == "other"
    assert (other.precision, other.compiled) == (None, None)
    assert other.file is not None
    assert other.file.endswith("other.py")
    assert own.agreement is not None
    assert own.agreement.equal
    assert own.agreement.raw_errors == dict.fromkeys(RAW_NAMES, 0.0)
    assert own.agreement.matched == own.agreement.detections == own.agreement.reference_detections
    assert own.agreement.detections >= 6


@pytest.mark.parametrize(
    "method",
    [
        "def masks(self, *a): return [(b + 5, s, l, m) for b, s, l, m in super().masks(*a)]",
        "def masks(self, *a): return [(b, s * 0.99, l, m) for b, s, l, m in super().masks(*a)]",
        "def masks(self, *a): return [(b, s, l + 1, m) for b, s, l, m in super().masks(*a)]",
        "def masks(self, *a): return [(b, s, l, ~m) for b, s, l, m in super().masks(*a)]",
        "def masks(self, *a): return [(b[1:], s[1:], l[1:], m[1:]) for b, s, l, m in super().masks(*a)]",
        "def raw_outputs(self, raw): return {k: v * 1.001 for k, v in super().raw_outputs(raw).items()}",
    ],
)
def test_another_implementation_with_other_results_is_reported(
    model: Yolact, write: Callable[..., Path], method: str
) -> None:
    text = WRAPPER.replace("    pass\n", f"    {method}\n")
    assert not agreement_of_ours_with(model, write(text)).equal


def test_preprocess_receives_what_read_returns(model: Yolact, write: Callable[..., Path]) -> None:
    text = WRAPPER.replace(
        "    pass\n",
        "    def read(self, image): return image[..., ::-1].copy()\n"
        "    def preprocess(self, images): return super().preprocess([image[..., ::-1] for image in images])\n",
    )
    assert agreement_of_ours_with(model, write(text)).equal


def test_raw_outputs_are_optional(model: Yolact, write: Callable[..., Path]) -> None:
    found = agreement_of_ours_with(model, write(STUB))
    assert found.raw_errors is None
    assert not found.equal


def test_the_exported_network_is_measured_in_another_runtime(model: Yolact) -> None:
    runtimes = [BackendSpec.in_runtime("onnxruntime"), BackendSpec.in_runtime("onnxruntime", "fp16")]
    result = measure(model, BackendSpec.own("fp32"), *runtimes, images=(IMAGE, IMAGE[:30]), batch=2)
    own, exported, half = result.backends
    assert (exported.name, exported.precision, exported.file) == ("onnxruntime fp32", "fp32", None)
    assert exported.milliseconds.network > 0
    assert exported.agreement is not None
    assert exported.agreement.raw_errors is None
    assert exported.agreement.equal
    assert exported.agreement.matched == exported.agreement.reference_detections >= 6
    assert own.detections == exported.detections
    assert (half.name, half.precision) == ("onnxruntime fp16", "fp16")
    assert half.agreement is not None
    assert half.agreement.matched > 0
    assert 0 < half.agreement.score_difference < 0.05  # rounded to 11 bits


def test_a_network_that_cannot_be_exported_is_an_error_or_is_left_out() -> None:
    def export(spec: BackendSpec) -> BackendSpec:
        if spec.export_precision == "fp16":
            raise ExportError("/tmp/x.onnx: not written, because its outputs differ")
        return spec

    specs = [BackendSpec.own("fp32"), BackendSpec.in_runtime("onnxruntime", "fp16"), BackendSpec.in_runtime("openvino")]
    with pytest.raises(ExportError, match="not written"):
        list(inference._exportable(specs, export, None))
    left_out: list[str] = []
    assert list(inference._exportable(specs, export, left_out.append)) == [specs[0], specs[2]]
    assert left_out == ["onnxruntime fp16: left out: not written, because its outputs differ"]


def test_cpu_time_leaves_out_waiting(model: Yolact, write: Callable[..., Path], tmp_path: Path) -> None:
    text = STUB.replace("return inputs", "import time; time.sleep(0.02); return inputs")
    spec = BackendSpec.other(write(text))
    assert loaded(model, spec, tmp_path).turn(0)[STAGES.index("network")] >= 20
    arguments = {"weights": "made up", "device": CPU, "rounds": 1, "memory": False}
    result = inference.measure(model, CLASSES, [IMAGE], [spec], PUBLISHED_DETECTION, cpu_time=True, **arguments)  # type: ignore[arg-type]
    assert result.settings.cpu_time
    assert result.backends[0].milliseconds.network < 15


# --- files that do not follow the protocol ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function load; docs/benchmarks.md has the protocol"),
        ("load = 3", "has no function load"),
        ("import not_there_at_all", r"cannot be imported: ModuleNotFoundError: .*not_there_at_all.*other\.py:1\)"),
        ("def load(:", "cannot be imported: SyntaxError"),
        ("def load(weights): ...", "load failed: TypeError: .*unexpected keyword"),
        ("def load(**_):\n    raise KeyError('conv')", r"load failed: KeyError: 'conv' \(.*other\.py:2\)"),
        ("def load(**_): ...", "no method preprocess, network, nms, masks"),
        (STUB.replace("def nms", "def suppress"), "no method nms; docs"),
        (STUB.replace("return raw", "return 1 / 0"), r"ZeroDivisionError: .*other\.py:7\)"),
        (STUB + "Backend.read = lambda self, image: image.missing\n", "AttributeError: .*missing"),
        (STUB.replace("for size in sizes", "for size in sizes * 2"), "masks must return a list of 1 images"),
        (STUB.replace("np.zeros(1), ", ""), r"masks must return \(boxes, scores, labels, masks\)"),
        (STUB.replace("*size", "7, 7"), r"a tensor \(1, 40, 60\), found \(1, 7, 7\), for an image with 1 scores"),
        (STUB.replace("np.zeros(1), ", "np.zeros(2), "), r"a tensor \(1,\), found \(2,\)"),
        (STUB.replace("(1, 4)", "(1, 5)"), r"a tensor \(1, 4\), found \(1, 5\)"),
        (
            STUB + "Backend.raw_outputs = lambda self, raw: {'loc': 1}\n",
            "raw_outputs must return a dict with boxes,",
        ),
    ],
)
def test_a_file_that_does_not_follow_the_protocol_is_rejected_with_its_name(
    model: Yolact, write: Callable[..., Path], tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        loaded(model, BackendSpec.other(write(text)), tmp_path).outcome()
    assert "other.py" in str(caught.value)


def test_a_file_that_is_missing_or_not_python_is_rejected(model: Yolact, write: Callable[..., Path]) -> None:
    with pytest.raises(SettingsError, match=r"--against nowhere\.py: no such file"):
        measure(model, BackendSpec.other(Path("nowhere.py")))
    with pytest.raises(SettingsError, match=r"--against .*other\.txt: not a Python file; its name must end in \.py"):
        measure(model, BackendSpec.other(write("load = 1", "other.txt")))


def test_images_without_detections_may_come_as_any_empty_tensors(
    model: Yolact, write: Callable[..., Path], tmp_path: Path
) -> None:
    text = STUB.replace("(np.zeros((1, 4)), np.ones(1), np.zeros(1), np.ones((1, *size)))", "[np.zeros(0)] * 4")
    [found] = loaded(model, BackendSpec.other(write(text)), tmp_path).outcome().found
    assert len(found.scores) == 0


def test_a_batch_that_is_too_large_for_the_gpu_says_so(model: Yolact, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(inference, "_take_turns", fail)
    with pytest.raises(SettingsError, match=r"try a smaller --batch \(now 3\)"):
        measure(model, BackendSpec.own("fp32"), batch=3)


# --- agreement ------------------------------------------------------------------------------------------------------

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]])


def found(
    boxes: Tensor = BOXES, scores: tuple[float, ...] = (0.9, 0.8, 0.7), labels: tuple[int, ...] = (0, 1, 0)
) -> Found:
    """Detections whose masks fill their boxes; the image has 100 x 200 pixels."""
    masks = torch.zeros(len(boxes), 100, 200, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return Found(boxes, torch.tensor(scores), torch.tensor(labels), masks)


def agree(one: Found, other: Found, *, integer_boxes: bool = False) -> Agreement:
    return compare([one], [other], None, None, integer_boxes=integer_boxes)


def test_the_order_of_detections_does_not_matter() -> None:
    backwards = found(BOXES.flip(0), (0.7, 0.8, 0.9), (0, 1, 0))
    assert agree(found(), backwards) == Agreement(None, 3, 3, 3, 0, 0, 0, 0, agreement.TOLERANCE, equal=True)


def test_boxes_may_differ_only_by_rounding() -> None:
    """1e-4 of the longer side, 200 pixels; truncated boxes by one pixel more."""
    assert agree(found(BOXES + 0.019), found()).equal
    moved = agree(found(BOXES + 0.03), found())
    assert moved.box_difference == pytest.approx(0.03, abs=1e-5)
    assert not moved.equal
    assert not agree(found(BOXES + torch.tensor([0, 0, 0, 1.0])), found()).equal
    truncated = dataclasses.replace(found(), boxes=BOXES + torch.tensor([0, 0, 0, 1.0]))
    assert agree(truncated, found(), integer_boxes=True).equal
    assert not agree(truncated, found()).equal


def test_scores_labels_and_numbers_of_detections_must_be_equal() -> None:
    assert agree(found(scores=(0.9, 0.80005, 0.7)), found()).equal
    off = agree(found(scores=(0.9, 0.805, 0.7)), found())
    assert not off.equal
    assert off.score_difference == pytest.approx(0.005, abs=1e-6)
    relabelled = agree(found(labels=(0, 0, 0)), found())
    assert (relabelled.matched, relabelled.unmatched, relabelled.equal) == (2, 2, False)
    fewer = agree(found(BOXES[1:], (0.8, 0.7), (1, 0)), found())
    assert (fewer.detections, fewer.reference_detections, fewer.unmatched, fewer.equal) == (2, 3, 1, False)


def test_a_detection_is_paired_only_once() -> None:
    doubled = found(torch.cat([BOXES, BOXES[:1]]), (0.9, 0.8, 0.7, 0.9), (0, 1, 0, 0))
    result = agree(doubled, found())
    assert (result.matched, result.unmatched, result.equal) == (3, 1, False)


def test_detections_at_the_end_of_the_list_may_differ() -> None:
    """Rounding decides which of several equally low ones pass."""
    shifted = torch.cat([BOXES[:2], torch.tensor([[50.0, 50, 60, 60]])])
    assert agree(found(shifted), found()).equal
    assert not agree(found(shifted, (0.9, 0.7, 0.8)), found(scores=(0.9, 0.7, 0.8))).equal


def test_boxes_without_area_are_paired_too() -> None:
    lines = torch.tensor([[5.0, 5, 5, 9], [5, 5, 5, 9]])
    assert agree(found(lines, (0.9, 0.8), (0, 0)), found(lines, (0.9, 0.8), (0, 0))).equal


def test_wrong_mask_pixels_are_counted_against_the_masks_pixels() -> None:
    """3 masks of 100 pixels; 6 pixels differ."""
    other = found()
    other.masks[0, 0, :4] = False
    other.masks[1, 50, :2] = True
    result = agree(other, found())
    assert result.mask_difference == pytest.approx(6 / 300)
    assert not result.equal


def test_raw_outputs_are_compared_relative_to_the_greatest_value() -> None:
    reference = {"boxes": torch.tensor([1.0, -4.0]), "prototypes": torch.zeros(2), "other": torch.ones(2)}
    raw = {"boxes": torch.tensor([1.002, -4.0]), "prototypes": torch.zeros(2), "other": torch.ones(3)}
    result = compare([found()], [found()], raw, reference, integer_boxes=False)
    assert result.raw_errors is not None
    assert result.raw_errors["boxes"] == pytest.approx(0.0005, rel=1e-3)
    assert result.raw_errors["prototypes"] == 0
    assert result.raw_errors["other"] is None
    assert not result.equal
    raw = {"boxes": torch.tensor([float("nan"), -4.0])}
    assert compare([], [], raw, {"boxes": raw["boxes"]}, integer_boxes=False).raw_errors == {"boxes": None}
    raw = {"boxes": torch.tensor([1.0001, -4.0])}
    assert compare([], [], raw, {"boxes": reference["boxes"]}, integer_boxes=False).equal


def test_two_empty_results_are_equal() -> None:
    nothing = found(torch.zeros(0, 4), (), ())
    assert agree(nothing, nothing).equal
    assert not agree(found(), nothing).equal


# --- random weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objects", [3, 10])
def test_random_weights_find_the_requested_number_of_objects(objects: int) -> None:
    network = calibrated_network(CONFIG, len(CLASSES), IMAGE, objects)
    predictor = Predictor(network, CLASSES)
    outputs = predictor.network(predictor.preprocess([torch.from_numpy(IMAGE).permute(2, 0, 1)]))
    [candidates] = detect(outputs, DEFAULT_DETECTION, CONFIG.image_size)
    assert abs(len(candidates.scores) - objects) <= 1
    left, top, right, bottom = candidates.boxes.clamp(0, 1).unbind(1)
    assert float(((right - left) * (bottom - top)).mean()) == pytest.approx(BOX_SHARE, rel=0.7)
    assert not network.training


def test_random_weights_depend_only_on_the_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = (calibrated_network(CONFIG, 3, IMAGE, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])
    assert torch.equal(torch.get_rng_state(), state)


# --- evaluation work ------------------------------------------------------------------------------------------------


def test_evaluation_work_is_masks_and_run_lengths() -> None:
    result = evaluation.measure(device=CPU, rounds=2)
    assert (result.height, result.width, result.detections, result.rounds) == (375, 500, 100, 2)
    assert result.masks > 0
    assert result.rle > 0
    assert result.total > 0


def test_synthetic_candidates_are_inside_the_image_and_have_cocos_sizes() -> None:
    sides = []
    for seed in range(20):
        candidates, prototypes = evaluation.make_scene(seed, CPU)
        assert candidates.boxes.shape == (100, 4)
        assert prototypes.shape == (138, 138, 32)
        assert candidates.boxes.min() >= 0
        assert candidates.boxes.max() <= 1
        assert (candidates.boxes[:, :2] < candidates.boxes[:, 2:]).all()
        width, height = ((candidates.boxes[:, 2:] - candidates.boxes[:, :2]) * torch.tensor([500, 375])).unbind(1)
        sides.append((width * height).sqrt())
    side = torch.cat(sides)
    assert float((side <= 32).float().mean()) == pytest.approx(0.41, abs=0.05)
    assert float((side > 96).float().mean()) == pytest.approx(0.25, abs=0.05)


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot reset the count")
def test_the_peak_of_resident_memory_can_be_reset() -> None:
    size = 200 * 2**20
    restart_peak_resident()
    before = peak_resident()
    np.ones(size, np.uint8)
    risen = peak_resident()
    assert risen - before > 0.9 * size
    restart_peak_resident()
    assert peak_resident() < risen - 0.9 * size


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot reset the count")
def test_memory_of_inference_is_measured_in_a_separate_process(model: Yolact, write: Callable[..., Path]) -> None:
    np.ones(500 * 2**20, np.uint8)  # of this process: must not count
    text = STUB.replace("return inputs", "np.ones(300 * 2**20, np.uint8); return inputs")
    [result] = measure(model, BackendSpec.other(write(text)), rounds=1, with_memory=True).backends
    assert result.memory is not None
    assert result.memory.kind == "resident"
    assert 250 < result.memory.work - result.memory.loading < 350


@pytest.mark.parametrize(("device", "expected"), [("cpu", (20.0, 7.0)), ("cuda", (10.0, 9.0))])
def test_resident_memory_is_the_median_of_processes(
    device: str, expected: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = iter(memory.PeakMemory("resident", loading, work) for loading, work in ((10, 9), (30, 7), (20, 5)))
    monkeypatch.setattr(memory, "_in_new_process", lambda *_: next(peaks))
    found = memory.measure_memory("a", None, torch.device(device), 1, processes=3)  # type: ignore[arg-type]
    assert (found.loading, found.work) == expected


@pytest.mark.parametrize(
    ("with_memory", "message"),
    [
        (True, "other: the process that measures its memory was killed, .*; --no-memory skips this"),
        (False, "other: its process was killed, perhaps because memory ran out"),
    ],
)
def test_a_backend_whose_process_dies_is_named(
    model: Yolact, write: Callable[..., Path], with_memory: bool, message: str
) -> None:
    dies = write("import os, signal\ndef load(**_): os.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(SettingsError, match=message):
        measure(model, BackendSpec.other(dies), rounds=1, with_memory=with_memory)


# --- images ---------------------------------------------------------------------------------------------------------


def test_without_paths_an_image_is_generated() -> None:
    [image] = read_images([])
    assert image.shape == (375, 500, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10


def test_a_missing_image_is_named() -> None:
    with pytest.raises(DataError, match=r"nowhere\.jpg"):
        read_images([Path("nowhere.jpg")])
