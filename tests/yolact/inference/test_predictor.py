"""From images to detections in each image's own frame."""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from tests.small_networks import tiny_config
from tests.yolact.networks import trained_like
from yolact.devices import choose_device
from yolact.errors import DataError, SettingsError, WeightsError
from yolact.images import ImageInput, read_image
from yolact.inference.detections import Detections
from yolact.inference.predictor import Predictor
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION, PUBLISHED_DETECTION
from yolact.structures import RawOutputs
from yolact.transforms import Normalization

CLASSES = ["circle", "square", "triangle"]

pytestmark = pytest.mark.usefixtures("one_thread")


def random_model(**changes: object) -> Yolact:
    """Random weights, with class scores spread out to give detections a clear order."""
    torch.manual_seed(2)
    model = Yolact(tiny_config(**changes), len(CLASSES)).eval()
    with torch.no_grad():
        model.prediction_layers[0].conf_layer.weight.mul_(8)
    return model


@pytest.fixture(scope="module")
def model() -> Yolact:
    return random_model()


@pytest.fixture(scope="module")
def predictor(model: Yolact) -> Predictor:
    return Predictor(model, CLASSES)


@pytest.fixture
def model_dir(model: Yolact, tmp_path: Path) -> Path:
    save_model(model, CLASSES, tmp_path / "model")
    return tmp_path / "model"


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


IMAGES = [image(40, 60, 1), image(64, 64, 2), image(90, 30, 3)]


def assert_same(first: Detections, second: Detections, tolerance: float = 0.0) -> None:
    assert first.labels.tolist() == second.labels.tolist()
    torch.testing.assert_close(first.boxes, second.boxes, atol=tolerance, rtol=0)
    torch.testing.assert_close(first.scores, second.scores, atol=tolerance, rtol=0)
    torch.testing.assert_close(first.mask_scores, second.mask_scores, atol=tolerance, rtol=0)
    assert first.masks.shape == second.masks.shape
    assert (first.masks != second.masks).float().mean() <= tolerance


# --- batches ----------------------------------------------------------------------------------------------------


def test_images_of_a_batch_give_the_same_detections_as_alone(predictor: Predictor) -> None:
    together = predictor.predict(IMAGES)
    assert len(together) == 3
    for found, image in zip(together, IMAGES, strict=True):
        assert len(found) > 5
        assert_same(found, predictor.predict(image), tolerance=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_batch_size_does_not_change_results(model: Yolact, predictor: Predictor, batch_size: int) -> None:
    split = Predictor(model, CLASSES, batch_size=batch_size)
    for first, second in zip(split.predict([*IMAGES, *IMAGES]), predictor.predict([*IMAGES, *IMAGES]), strict=True):
        assert_same(first, second, tolerance=1e-3)


def test_detections_are_inside_their_own_image(predictor: Predictor) -> None:
    for found, image in zip(predictor.predict(IMAGES), IMAGES, strict=True):
        height, width = image.shape[:2]
        assert found.masks.shape == (len(found), height, width)
        assert found.masks.dtype == torch.bool
        assert found.boxes.shape == (len(found), 4)
        assert found.boxes.min() >= 0
        assert (found.boxes[:, 2] <= width).all()
        assert (found.boxes[:, 3] <= height).all()
        assert (found.boxes[:, :2] < found.boxes[:, 2:]).all()
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert (found.scores > DEFAULT_DETECTION.score_threshold).all()
        assert torch.equal(found.mask_scores, found.scores)
        assert set(found.labels.tolist()) <= {0, 1, 2}
        assert found.class_names == tuple(CLASSES)
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        assert not found.boxes.requires_grad


def test_predicting_twice_gives_the_same(predictor: Predictor) -> None:
    for first, second in zip(predictor.predict(IMAGES), predictor.predict(IMAGES), strict=True):
        assert_same(first, second)


def test_no_images_no_detections(predictor: Predictor) -> None:
    assert predictor.predict([]) == []
    assert predictor.predict(torch.zeros(0, 3, 8, 8, dtype=torch.uint8)) == []


def test_detections_may_be_changed_by_the_caller(predictor: Predictor) -> None:
    found = predictor.predict(IMAGES[0])
    before = found.boxes.clone()
    found.boxes *= 2
    assert torch.equal(found.boxes, before * 2)
    assert torch.equal(predictor.predict(IMAGES[0]).boxes, before)


# --- the forms of an image ----------------------------------------------------------------------------------------


def saved(image: np.ndarray, path: Path, **options: Any) -> Path:
    Image.fromarray(image).save(path, **options)
    return path


def negatively_strided(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])[:, ::-1]


def read_only(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image.flags.writeable = False
    return image


@pytest.mark.parametrize(
    "form",
    [
        lambda image, _: torch.from_numpy(image.copy()).permute(2, 0, 1),
        lambda image, _: torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous(),
        lambda image, _: np.asfortranarray(image),
        lambda image, _: negatively_strided(image),
        lambda image, _: read_only(image),
        lambda image, folder: saved(image, folder / "image.png"),
        lambda image, folder: str(saved(image, folder / "image.png")),
        lambda image, folder: saved(image, folder / "image.png").read_bytes(),
        lambda image, _: Image.fromarray(image),
    ],
    ids=[
        *("tensor", "contiguous tensor", "Fortran order", "negative strides", "read-only", "path", "path as text"),
        *("bytes", "PIL image"),
    ],
)
def test_an_image_may_have_many_forms(
    predictor: Predictor, tmp_path: Path, form: Callable[[np.ndarray, Path], ImageInput]
) -> None:
    pixels = image(40, 60, 1)
    given = form(pixels, tmp_path)
    found = predictor.predict(given)
    assert isinstance(found, Detections)
    assert_same(found, predictor.predict(pixels))
    [listed] = predictor.predict([given])
    assert_same(listed, found)
    if isinstance(given, (np.ndarray, Tensor)):
        assert np.array_equal(read_image(given).permute(1, 2, 0).numpy(), pixels)  # and nothing was written into it


def test_several_images_give_a_list_in_their_order(predictor: Predictor) -> None:
    alone = [predictor.predict(image) for image in IMAGES]
    for sequence in (IMAGES, tuple(IMAGES), (Image.fromarray(image) for image in IMAGES)):
        found = predictor.predict(sequence)
        assert isinstance(found, list)
        for first, second in zip(found, alone, strict=True):
            assert_same(first, second, tolerance=1e-3)


def test_a_tensor_or_an_array_of_images_is_a_sequence(predictor: Predictor) -> None:
    images = np.stack([image(30, 50, 1), image(30, 50, 2)])
    expected = predictor.predict(list(images))
    for stacked in (torch.from_numpy(images).permute(0, 3, 1, 2), images):
        found = predictor.predict(stacked)
        assert isinstance(found, list)
        for first, second in zip(found, expected, strict=True):
            assert_same(first, second)
    assert len(predictor.predict(images[:1])) == 1


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_an_image_is_rotated_upright_by_its_exif_orientation(
    predictor: Predictor, tmp_path: Path, orientation: int, turns: int
) -> None:
    """EXIF 2.3, section 4.6.4: 6 means a rotation by 90 degrees clockwise, 8 counter-clockwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(image(24, 40, 5), tmp_path / "image.jpg", exif=exif)
    with Image.open(path) as stored:
        pixels = np.array(stored)
    upright = np.rot90(pixels, turns)
    found = predictor.predict(path)
    assert found.masks.shape[1:] == upright.shape[:2]
    assert_same(found, predictor.predict(upright))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("CMYK", "jpg")]
)
def test_every_image_mode_is_converted_to_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(image(6, 9)).convert(mode).save(path)
    pixels = read_image(path)
    assert pixels.shape == (3, 6, 9)
    assert pixels.dtype == torch.uint8
    with Image.open(path) as stored:
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.array(stored.convert("RGB")))


NOT_IMAGES: list[Any] = [
    np.zeros((8, 8), np.uint8),
    np.zeros((8, 8, 4), np.uint8),
    np.zeros((8, 8, 3), np.float32),
    np.zeros((0, 8, 3), np.uint8),
    np.zeros((3,), np.uint8),
    torch.zeros(8, 8, dtype=torch.uint8),
    torch.zeros(8, 8, 3, dtype=torch.uint8),
    torch.zeros(3, 8, 8),
    torch.zeros(3, 8, 0, dtype=torch.uint8),
]


@pytest.mark.parametrize("image", NOT_IMAGES, ids=lambda image: f"{type(image).__name__} {tuple(image.shape)}")
def test_an_invalid_image_is_rejected_with_its_shape_and_dtype(predictor: Predictor, image: Any) -> None:
    wanted = "tensors must be (3, H, W)" if isinstance(image, Tensor) else "images must be (H, W, 3)"
    message = re.escape(f"{wanted} uint8 RGB") + ".*" + re.escape(f"found {tuple(image.shape)} {image.dtype}")
    with pytest.raises(ValueError, match=message):
        predictor.predict([image])
    with pytest.raises(ValueError, match=message):
        predictor.predict(image)


@pytest.mark.parametrize("given", [None, 5, {"a.jpg": "b.jpg"}, [None], io.StringIO("text")])
def test_anything_else_is_rejected_with_what_is_accepted(predictor: Predictor, given: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a path, bytes or .*PIL image.*uint8 RGB tensor.*; found "):
        predictor.predict(given)


def test_a_generator_is_read_a_batch_at_a_time(model: Yolact) -> None:
    predictor, stub = stubbed(model, batch_size=2)
    batches_before = []

    def images() -> Iterator[np.ndarray]:
        for _ in range(5):
            batches_before.append(len(stub.seen))
            yield image(8, 9)

    assert len(predictor.predict(images())) == 5
    assert batches_before == [0, 0, 1, 1, 2]


def test_a_missing_image_is_named(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'none.jpg'}: no such image")):
        predictor.predict(tmp_path / "none.jpg")


def broken_pictures(folder: Path) -> list[Path]:
    text = folder / "text.jpg"
    text.write_text("no picture")
    empty = folder / "empty.png"
    empty.write_bytes(b"")
    cut = saved(image(60, 60), folder / "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:-600])
    return [text, empty, cut, folder]


def test_an_unreadable_image_is_named(predictor: Predictor, tmp_path: Path) -> None:
    for path in broken_pictures(tmp_path):
        with pytest.raises(DataError, match=re.escape(f"{path}: cannot be read as an image: ")):
            predictor.predict([path])


def test_a_16_bit_image_is_not_clipped_at_255(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=r"deep\.png: .*16 or more bits per channel; save it with 8 bits per channel"):
        predictor.predict(path)


# --- settings ---------------------------------------------------------------------------------------------------


def test_the_detection_settings_are_used(model: Yolact) -> None:
    few = Predictor(model, CLASSES, DEFAULT_DETECTION.replace(max_detections=2))
    assert len(few.predict(IMAGES[0])) == 2
    nothing = Predictor(model, CLASSES, DEFAULT_DETECTION.replace(score_threshold=1.0)).predict(IMAGES[0])
    assert len(nothing) == 0
    assert nothing.masks.shape == (0, 40, 60)
    published = Predictor(model, CLASSES, PUBLISHED_DETECTION).predict(IMAGES[0])
    assert torch.equal(published.boxes, published.boxes.trunc())


def test_detections_have_the_category_ids_of_the_model_or_count_from_1(model: Yolact, predictor: Predictor) -> None:
    assert predictor.predict(IMAGES[0]).category_ids == (1, 2, 3)
    assert Predictor(model, CLASSES, category_ids=[1, 17, 90]).predict(IMAGES[0]).category_ids == (1, 17, 90)


def test_a_loaded_predictor_finds_the_same(predictor: Predictor, model_dir: Path) -> None:
    for directory in (model_dir, str(model_dir)):
        loaded = Predictor.load(directory, device="cpu")
        assert loaded.classes == CLASSES
        assert loaded.device == torch.device("cpu")
        assert loaded.config == DEFAULT_DETECTION
        for first, second in zip(predictor.predict(IMAGES), loaded.predict(IMAGES), strict=True):
            assert_same(first, second)


def test_settings_can_be_changed_by_keyword(predictor: Predictor, model_dir: Path) -> None:
    loaded = Predictor.load(
        model_dir, device="cpu", mask_resolution=20, batch_size=3, score_threshold=0.7, nms="cross_class"
    )
    assert loaded.config == DEFAULT_DETECTION.model_copy(update={"score_threshold": 0.7, "nms": "cross_class"})
    assert loaded.batch_size == 3
    found = loaded.predict(IMAGES[0])
    assert 0 < len(found) < len(predictor.predict(IMAGES[0]))
    assert found.scores.min() > 0.3
    assert found.masks.shape[1:] == (13, 20)
    other = Predictor.load(model_dir, PUBLISHED_DETECTION, device="cpu", top_k=7)
    assert other.config == PUBLISHED_DETECTION.model_copy(update={"top_k": 7})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_treshold": 0.3}, "score_treshold: unknown key; did you mean 'score_threshold'"),
        ({"colour": "red"}, "colour: unknown key; allowed here: score_threshold, nms"),
        ({"score_threshold": 2.0}, r"score_threshold: .*less than or equal to 1.*\(found 2.0\)"),
        ({"nms": "soft"}, r"nms: .*'fast', 'cross_class' or 'traditional'.*\(found 'soft'\)"),
        ({"top_k": 0}, "top_k: .*greater than or equal to 1"),
        ({"max_detections": "many"}, "max_detections: .*integer"),
    ],
)
def test_an_invalid_change_is_named(model_dir: Path, changes: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Predictor.load(model_dir, device="cpu", **changes)


def test_loading_from_an_empty_directory_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        Predictor.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision 'int8' is unknown; choose one of fp32, bf16, fp16"),
        ({"precision": "fp16"}, "precision 'fp16' needs a GPU; on a CPU use bf16"),
        ({"mask_resolution": 0}, "mask_resolution 0: must be 'image', 'prototypes' or a number of pixels"),
        ({"mask_resolution": -3}, "mask_resolution -3: must be"),
        ({"mask_resolution": "full"}, "mask_resolution 'full': must be"),
        ({"mask_resolution": 0.5}, "mask_resolution 0.5: must be"),
        ({"batch_size": 0}, "batch_size 0: must be at least 1"),
        ({"batch_size": -1}, "batch_size -1: must be at least 1"),
    ],
)
def test_an_invalid_option_is_named(model: Yolact, model_dir: Path, options: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Predictor(model, CLASSES, **options)
    with pytest.raises(SettingsError, match=message):
        Predictor.load(model_dir, device="cpu", **options)


@pytest.mark.parametrize(
    ("resolution", "sizes"),
    [
        ("image", [(40, 60), (64, 64), (90, 30)]),
        ("prototypes", [(16, 16)] * 3),
        (30, [(20, 30), (30, 30), (30, 10)]),
        (1, [(1, 1)] * 3),
        (70, [(40, 60), (64, 64), (70, 23)]),  # never larger than the image
    ],
)
def test_masks_have_the_requested_resolution(
    model: Yolact, predictor: Predictor, resolution: Any, sizes: list[tuple[int, int]]
) -> None:
    found = Predictor(model, CLASSES, mask_resolution=resolution).predict(IMAGES)
    for mine, whole, size in zip(found, predictor.predict(IMAGES), sizes, strict=True):
        assert mine.masks.shape == (len(whole), *size)
        assert torch.equal(mine.boxes, whole.boxes)
        assert torch.equal(mine.labels, whole.labels)


def test_bfloat16_finds_nearly_the_same(model: Yolact, predictor: Predictor) -> None:
    half = Predictor(model, CLASSES, precision="bf16")
    assert half.network(torch.zeros(1, 3, 64, 64)).boxes.dtype == torch.bfloat16
    for exact, rounded in zip(predictor.predict(IMAGES), half.predict(IMAGES), strict=True):
        assert rounded.boxes.dtype == rounded.scores.dtype == torch.float32
        same_class = exact.labels[:, None] == rounded.labels
        overlap, partner = (box_iou(exact.boxes, rounded.boxes) * same_class).max(dim=1)
        assert (overlap > 0.9).float().mean() > 0.8  # NMS may choose the other one of two equals
        paired = overlap > 0.9
        torch.testing.assert_close(exact.scores[paired], rounded.scores[partner[paired]], atol=0.05, rtol=0)
        masks, others = exact.masks[paired], rounded.masks[partner[paired]]
        assert (masks != others).float().mean() < 0.05


def test_masks_are_scored_by_the_mask_rescoring_network() -> None:
    model = random_model(image_size=256, mask_rescoring=True)
    found = Predictor(model, CLASSES).predict(IMAGES[0])
    assert len(found) > 5
    quality = found.mask_scores / found.scores
    assert quality.min() >= 0
    assert len(quality.unique()) > 5
    assert model.maskiou_net is not None
    with torch.no_grad():
        for parameter in model.maskiou_net.parameters():
            parameter.zero_()
        model.maskiou_net.maskiou_net[-2].bias.copy_(torch.tensor([0.25, 0.5, 2.0]))
    fixed = Predictor(model, CLASSES).predict(IMAGES[0])
    assert torch.equal(fixed.scores, found.scores)
    factor = torch.tensor([0.25, 0.5, 2.0])[fixed.labels]
    torch.testing.assert_close(fixed.mask_scores, fixed.scores * factor)


# --- the network inside --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_not_modified(training: bool) -> None:
    model = random_model(image_size=256, mask_rescoring=True).train(training)
    before = copy.deepcopy(model.state_dict())
    Predictor(model, CLASSES, precision="bf16").predict(IMAGES[0])
    assert model.training == training
    assert all(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value)
    assert model.maskiou_net is not None


def test_later_changes_to_the_model_do_not_affect_the_predictor() -> None:
    model = random_model(image_size=256, mask_rescoring=True)
    predictor = Predictor(model, CLASSES)
    before = predictor.predict(IMAGES[0])
    assert len(before) > 5
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    assert_same(predictor.predict(IMAGES[0]), before)


class Stub:
    """A network that reports one square in the upper left quarter of any input, and records its input."""

    device = torch.device("cpu")
    maskiou_net = None

    def __init__(self, normalization: Normalization) -> None:
        self.normalization = normalization
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> RawOutputs:
        self.seen.append(images)
        batch = len(images)
        prototypes = torch.full((batch, 16, 16, 1), -10.0)
        prototypes[:, :8, :8] = 10
        return RawOutputs(
            boxes=torch.zeros(batch, 1, 4),
            class_logits=torch.tensor([[[0.0, 0, 9, 0]]]).expand(batch, 1, 4),
            mask_coefficients=torch.ones(batch, 1, 1),
            prototypes=prototypes,
            anchors=torch.tensor([[0.25, 0.25, 0.5, 0.5]]),
            semantic_logits=None,
        )


def stubbed(model: Yolact, **options: Any) -> tuple[Predictor, Stub]:
    predictor = Predictor(model, CLASSES, **options)
    stub = Stub(predictor.network.normalization)
    predictor.network = stub  # type: ignore[assignment]
    return predictor, stub


@pytest.mark.parametrize("config", [DEFAULT_DETECTION, PUBLISHED_DETECTION.replace(low_score_tail=False)])
@pytest.mark.parametrize(("height", "width"), [(32, 64), (48, 16)])
def test_masks_and_boxes_are_in_the_images_frame(model: Yolact, height: int, width: int, config: Any) -> None:
    found = stubbed(model, config=config)[0].predict(image(height, width))
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, width / 2, height / 2]]))
    expected = torch.zeros(height, width, dtype=torch.bool)
    expected[: height // 2, : width // 2] = True
    wrong = (found.masks[0] != expected).nonzero().tolist()
    assert wrong in ([], [[height // 2 - 1, width // 2 - 1]])  # enlarging bilinearly may round the one inner corner


def test_the_network_sees_normalised_squares(model: Yolact) -> None:
    """A single colour, which resizing does not change: (value - mean) / deviation of ImageNet, red first."""
    predictor, stub = stubbed(model)
    image = np.empty((20, 50, 3), dtype=np.uint8)
    image[:] = (200, 100, 50)
    predictor.predict([image, image])
    [batch] = stub.seen
    assert batch.shape == (2, 3, 64, 64)
    expected = torch.tensor([(200 - 123.68) / 58.40, (100 - 116.78) / 57.12, (50 - 103.94) / 57.38])
    torch.testing.assert_close(batch, expected[None, :, None, None].expand(2, 3, 64, 64))


def test_darknet_sees_values_from_0_to_1(model: Yolact) -> None:
    darknet = random_model(backbone="darknet53", backbone_blocks=[1, 1, 1, 1, 1])
    predictor, stub = stubbed(darknet)
    predictor.predict(np.full((20, 50, 3), 51, dtype=np.uint8))
    torch.testing.assert_close(stub.seen[0], torch.full((1, 3, 64, 64), 0.2))


def test_no_more_images_than_the_batch_size_pass_the_network_at_once(model: Yolact) -> None:
    predictor, stub = stubbed(model, batch_size=2)
    assert len(predictor.predict([image(8, 9)] * 5)) == 5
    assert [len(batch) for batch in stub.seen] == [2, 2, 1]


# --- copies, processes and forks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["basic blocks", "deformable", "wide"])
def test_copies_and_pickled_predictors_find_the_same(variant: str) -> None:
    """At 288 pixels "wide" has Winograd's convolutions; the others have fused ones."""
    model = trained_like(variant, image_size=288 if variant == "wide" else 64)
    predictor = Predictor(model, CLASSES)
    found = predictor.predict(IMAGES)
    for other in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor), predictor):
        for first, second in zip(other.predict(IMAGES), found, strict=True):
            assert_same(first, second)


def test_a_compiled_predictor_says_why_it_is_not_pickled(model: Yolact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolact.inference.network.check_compiler", lambda *_: None)
    monkeypatch.setattr(torch, "compile", lambda tensors, **_: tensors)
    with pytest.raises(TypeError, match="compiled network cannot be copied or pickled; load and compile it in each"):
        pickle.dumps(Predictor(model, CLASSES, compile=True))


def test_forked_processes_predict(model_dir: Path) -> None:
    """With a predictor of their parent and with their own; PyTorch alone would wait for ever."""
    program = (
        "import multiprocessing, sys\n"
        "import numpy as np\n"
        "import torch\n"
        "from yolact.inference.predictor import Predictor\n"
        "torch.set_num_threads(4)\n"
        "predictor = Predictor.load(sys.argv[1], device='cpu')\n"
        "image = np.zeros((300, 400, 3), np.uint8)\n"
        "count = len(predictor.predict(image))\n"
        "def work(own):\n"
        "    chosen = Predictor.load(sys.argv[1], device='cpu') if own else predictor\n"
        "    return len(chosen.predict(image)) == count, torch.get_num_threads()\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    print(pool.map(work, [True, False]), torch.get_num_threads())\n"
    )
    command = [sys.executable, "-c", program, str(model_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[(True, 1), (True, 1)] 4"
    assert done.stderr.count("was forked after its parent loaded a model: it computes with one CPU thread") == 1


# --- devices --------------------------------------------------------------------------------------------------------


def test_auto_selects_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_a_missing_gpu_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert choose_device("cuda") == torch.device("cuda")
    with pytest.raises(SettingsError, match="'cuda:1': this machine has 1 CUDA GPU"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="no Apple GPU"):
        choose_device("mps")
    assert choose_device("cpu") == torch.device("cpu")


def test_an_unknown_device_is_rejected(model_dir: Path) -> None:
    with pytest.raises(SettingsError, match="device 'gpu' is unknown; use auto, cpu, cuda, cuda:N or mps"):
        Predictor.load(model_dir, device="gpu")


def test_slow_libraries_are_not_imported(model_dir: Path, tmp_path: Path) -> None:
    """torchvision and PyTorch's compiler take longer to load than everything else, and about 170 MiB."""
    Image.fromarray(image(40, 60)).save(tmp_path / "image.png")
    program = (
        "import sys\n"
        "from yolact.inference.predictor import Predictor\n"
        "found = Predictor.load(sys.argv[1], device='cpu').predict(sys.argv[2])\n"
        "found.rles()\n"
        "print(*{'torchvision', 'torch._dynamo', 'sympy', 'matplotlib'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", program, str(model_dir), str(tmp_path / "image.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
