"""`yolact predict`: from sources and a model to files, and what happens to bad input."""

from __future__ import annotations

import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner, Result

from tests.small_networks import tiny_config
from yolact import video
from yolact.inference.predictor import Predictor
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.results.pictures import Pictures
from yolact.settings import DEFAULT_DETECTION
from yolact.video import VideoWriter
from yolact_cli.main import app

try:
    import av
except ImportError:
    av = None

needs_pyav = pytest.mark.skipif(av is None, reason="PyAV is not installed (extra video)")

pytestmark = pytest.mark.usefixtures("one_thread")

LOW = ("--score-threshold", "0.4", "--max-detections", "5")
"""The random weights score every anchor near 0.5."""


def noise(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("model")
    save_model(Yolact(tiny_config(), 2), ["cat", "dog"], folder)
    return folder


Predict = Callable[..., Result]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Predict:
    """Run the command in an empty folder with the model in ``models``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(model)
    return lambda *arguments, **options: CliRunner().invoke(app, ["predict", *map(str, arguments)], **options)


def read(path: Path | str) -> Any:
    return json.loads(Path(path).read_text())


def test_images_become_pictures_and_coco_results_of_the_predictor(predict: Predict, model: Path) -> None:
    save(Path("in/a.png"), 1)
    save(Path("in/sub/b.png"), 2)
    result = predict("in", *LOW)
    assert result.exit_code == 0, result.output
    found = sorted(path.relative_to("predictions").as_posix() for path in Path("predictions").rglob("*.*"))
    assert found == ["detections.json", "images.json", "pictures/a.jpg", "pictures/b.jpg", "predict.json"]
    predictor = Predictor.load(model, score_threshold=0.4, max_detections=5)
    expected = [row for k in (1, 2) for row in predictor.predict(noise(k)).to_coco(k)]
    assert len(expected) == 10
    assert read("predictions/detections.json") == expected
    summary = read("predictions/predict.json")
    assert (summary["images"], summary["objects"], summary["problems"]) == (2, 10, [])
    assert summary["detect"]["score_threshold"] == 0.4
    assert [entry["file_name"] for entry in summary["inputs"]] == ["a.png", "sub/b.png"]
    assert "images/s" in result.stdout


def test_all_formats_at_once(predict: Predict) -> None:
    save(Path("a.png"))
    assert predict("a.png", "--save", "pictures,coco,instances,polygons,cutouts,voc,yolo", *LOW).exit_code == 0
    folder = Path("predictions")
    for name in ("instances.json", "polygons.json", "voc/SegmentationClass/a.png", "yolo/labels/a.txt", "cutouts"):
        assert (folder / name).exists(), name


def test_a_damaged_image_is_named_and_passed_over_with_exit_code_4(predict: Predict) -> None:
    whole = save(Path("in/a.png"))
    Path("in/cut.png").write_bytes(whole.read_bytes()[:500])
    Path("in/text.jpg").write_text("no image")
    result = predict("in", *LOW)
    assert result.exit_code == 4
    assert "skipped: in/cut.png: cannot be read as an image" in result.stderr
    assert "2 problems, named above and in" in result.stderr
    summary = read("predictions/predict.json")
    assert [problem["source"] for problem in summary["problems"]] == ["in/cut.png", "in/text.jpg"]
    assert [image["file_name"] for image in read("predictions/images.json")["images"]] == ["a.png"]


def test_two_inputs_of_one_name_have_results_of_their_own(predict: Predict) -> None:
    save(Path("x/a.png"), 1)
    save(Path("y/A.png"), 2)
    assert predict("x/a.png", "y/A.png", *LOW).exit_code == 0
    assert sorted(path.name for path in Path("predictions/pictures").iterdir()) == ["A-2.jpg", "a.jpg"]


def test_classes_are_chosen_by_name(predict: Predict) -> None:
    save(Path("a.png"))
    assert predict("a.png", "--classes", "dog", "--score-threshold", "0.3").exit_code == 0
    assert {row["category_id"] for row in read("predictions/detections.json")} == {2}
    result = predict("a.png", "--classes", "dog, horse")
    assert result.exit_code == 1
    assert "the model has no class 'horse'; it has cat, dog" in result.stderr


def test_the_kind_of_nms_decides_what_overlaps(predict: Predict) -> None:
    save(Path("a.png"))
    found, overlaps = {}, {}
    for kind in ("fast", "cross_class", "traditional"):
        options = ("--nms-iou", "0.1", "--score-threshold", "0.3", "--max-detections", "300", "--save", "coco")
        assert predict("a.png", "--nms", kind, *options).exit_code == 0
        assert read("predictions/predict.json")["detect"]["nms"] == kind
        rows = read("predictions/detections.json")
        found[kind] = {(row["category_id"], *row["bbox"]) for row in rows}
        boxes = [row["bbox"] for row in rows]
        overlap = coco_mask.iou(boxes, boxes, [0] * len(boxes))
        labels = np.array([row["category_id"] for row in rows])
        overlaps[kind] = overlap[labels[:, None] != labels].max()
    # Fast NMS lets suppressed boxes suppress; across classes, a box loses to those of the other class too.
    assert found["cross_class"] < found["fast"] < found["traditional"]
    assert overlaps["cross_class"] < 0.15 < 0.9 < overlaps["fast"]


def test_the_precision_rounds_the_scores(predict: Predict) -> None:
    save(Path("a.png"))
    scores = {}
    for precision in ("fp32", "bf16"):
        assert predict("a.png", "--device", "cpu", "--precision", precision, *LOW).exit_code == 0
        assert read("predictions/predict.json")["precision"] == precision
        scores[precision] = np.array([row["score"] for row in read("predictions/detections.json")])
    difference = np.abs(scores["bf16"] - scores["fp32"])
    assert len(difference) == 5
    assert 0 < difference.max() < 2 * 2**-8  # bfloat16 has 8 significant bits


def test_standard_input_is_read(predict: Predict) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(3)).save(file, "PNG")
    result = predict("-", *LOW, input=file.getvalue())
    assert result.exit_code == 0, result.output
    assert Path("predictions/pictures/stdin.jpg").is_file()


def test_a_registered_version_is_fetched_and_has_settings_of_its_own(
    predict: Predict, model: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    from mlflow import MlflowClient  # takes seconds

    from tests.components.registry_versions import add_model

    store = f"sqlite:///{shutil.copy(empty_store, Path('mlflow.db').absolute())}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    own = DEFAULT_DETECTION.replace(nms="cross_class", nms_iou=0.1)
    client = MlflowClient(store)
    add_model(client, "pets", model, DEFAULT_DETECTION)
    assert add_model(client, "pets", model, own) == 2
    client.set_registered_model_alias("pets", "champion", "2")
    Path("models").unlink()
    save(Path("a.png"))
    result = predict("a.png", "--model", "models:/pets@champion", "--score-threshold", "0.3")
    assert result.exit_code == 0, result.output
    summary = read("predictions/predict.json")
    assert (summary["model"], summary["classes"]) == ("models:/pets/2", ["cat", "dog"])
    config = own.replace(score_threshold=0.3)
    assert summary["detect"] == config.model_dump()
    assert read("predictions/detections.json") == Predictor.load(model, config).predict(noise(0)).to_coco(1) != []
    result = predict("a.png", "--model", "models:/pets@candidate")
    assert result.exit_code == 1
    assert "pets" in result.stderr
    assert "candidate" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.png"], "gone.png: no such file or folder"),
        (["a.png", "--model", "nothing"], "nothing: no model is there. Train one"),
        (["a.png", "--save", "pictures,box"], "--save: no format 'box'"),
        (["a.png", "--nms", "soft"], "nms: "),
        (["a.png", "--device", "gpu"], "device 'gpu' is unknown"),
        (["a.png", "--precision", "int8"], "precision 'int8' is unknown"),
        (["a.png", "--device", "cpu", "--precision", "fp16"], "precision 'fp16' needs a GPU"),
        (["a.png", "-o", "mine"], "mine: holds files that yolact predict did not write"),
        (["a.png", "-o", "a.png"], "a.png: is a file; name a folder by -o"),
        (["a.png", "-o", "."], ".: is the folder you are in, or one above it; name another one by -o"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    predict: Predict, arguments: list[str], message: str
) -> None:
    save(Path("a.png"))
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("text")
    result = predict(*arguments)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert not Path("predictions").exists()
    assert Path("mine/thesis.txt").read_text() == "text"


def test_earlier_results_are_replaced_as_a_whole(predict: Predict) -> None:
    save(Path("a.png"))
    save(Path("b.png"))
    assert predict("a.png", *LOW).exit_code == 0
    assert predict(".", *LOW).exit_code == 0  # does not find the pictures of the first
    assert predict("b.png", *LOW).exit_code == 0
    assert [path.name for path in Path("predictions/pictures").iterdir()] == ["b.jpg"]
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("change", ["added", "edited", "removed"])
def test_results_that_a_user_corrected_are_not_replaced(predict: Predict, change: str) -> None:
    save(Path("a.png"))
    assert predict("a.png", "--save", "voc", *LOW).exit_code == 0
    annotation = Path("predictions/voc/Annotations/a.xml")
    if change == "added":
        save(Path("predictions/voc/JPEGImages/a.png"))
    elif change == "edited":
        annotation.write_text(annotation.read_text().replace("cat", "dog"))
    else:
        annotation.unlink()
    before = sorted(Path("predictions").rglob("*"))
    result = predict("a.png", *LOW)
    assert result.exit_code == 1
    assert "predictions: files were added, changed or removed since yolact predict wrote it" in result.stderr
    assert sorted(Path("predictions").rglob("*")) == before


def test_a_glob_leaves_earlier_results_out(predict: Predict) -> None:
    save(Path("a.png"))
    for _ in range(2):
        assert predict("**/*.[jp][pn]g", *LOW).exit_code == 0
        assert read("predictions/predict.json")["images"] == 1


def test_an_empty_folder_in_a_list_costs_itself(predict: Predict) -> None:
    save(Path("a.png"))
    Path("empty").mkdir()
    Path("list.txt").write_text("empty\na.png\n" + "x" * 5000)
    result = predict("list.txt", *LOW)
    assert (result.exit_code, read("predictions/predict.json")["images"]) == (4, 1)
    assert len(result.stderr) < 2000


def test_a_failure_on_the_way_leaves_the_earlier_results(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    save(Path("a.png"))
    assert predict("a.png", *LOW).exit_code == 0
    before = read("predictions/predict.json")
    monkeypatch.setattr(Predictor, "postprocess", lambda *arguments: 1 / 0)
    assert isinstance(predict("a.png", *LOW).exception, ZeroDivisionError)
    assert read("predictions/predict.json") == before
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "models", "predictions"]


def test_paths_are_those_of_the_folder_where_the_command_is_started(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        Path(name).touch()
    save(Path("sub/in/a.png"))
    monkeypatch.chdir("sub")
    assert predict("in", "-o", "out", *LOW).exit_code == 0
    assert Path("sub/out/pictures/a.jpg").is_file()


@pytest.fixture
def signals() -> Iterator[None]:
    """A signal changes what the next ones do until the process ends, which is that of all tests."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def press_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
    writer: type[Pictures | VideoWriter],
    after: int,
    sent: signal.Signals = signal.SIGINT,
) -> None:
    """Send the signal after so many results of a writer."""
    add: Callable[..., None] = writer.add
    calls = iter(range(1, 1000))

    def add_and_press(*arguments: Any) -> None:
        add(*arguments)
        if next(calls) == after:
            signal.raise_signal(sent)

    monkeypatch.setattr(writer, "add", add_and_press)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_complete_the_results_so_far(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    for number in range(100):
        save(Path(f"in/{number:03}.png"), number)
    press_ctrl_c(monkeypatch, Pictures, after=3, sent=sent)
    result = predict("in", "--batch-size", 2, *LOW)
    assert result.exit_code == 130, result.output
    assert "their results are complete" in result.stderr
    summary = read("predictions/predict.json")
    assert summary["stopped"]
    assert 3 <= summary["images"] < 30
    assert len(read("predictions/images.json")["images"]) == summary["images"]
    assert len(list(Path("predictions/pictures").iterdir())) == summary["images"]


# Videos ----------------------------------------------------------------------------------------------------------


def save_clip(path: Path, frames: int = 6) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(noise(number, 48, 80), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))


@needs_pyav
def test_a_video_becomes_a_video_and_its_frames_are_images_of_the_results(predict: Predict) -> None:
    save_clip(Path("clip.mp4"))
    save(Path("clip_000002.png"))
    result = predict("clip_000002.png", "clip.mp4", "--save", "pictures,coco,yolo", *LOW)
    assert result.exit_code == 0, result.output
    with av.open("predictions/videos/clip.mp4") as container:
        times = [frame.time for frame in container.decode(video=0)]
        assert (container.streams.video[0].width, container.streams.video[0].height) == (80, 48)
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    images = read("predictions/images.json")["images"]
    assert [image["file_name"] for image in images] == ["clip_000002.png", *(f"clip.mp4#{k}" for k in range(1, 7))]
    labels = sorted(path.name for path in Path("predictions/yolo/labels").iterdir())
    assert labels == sorted(["clip_000002.txt", "clip_000002-2.txt", *(f"clip_{k:06}.txt" for k in (1, 3, 4, 5, 6))])
    assert {row["image_id"] for row in read("predictions/detections.json")} == set(range(1, 8))
    assert "6 frames at" in result.stdout
    assert "it has 10" in result.stdout


@needs_pyav
def test_a_damaged_video_is_passed_over(predict: Predict) -> None:
    save_clip(Path("in.mp4"))
    Path("cut.mp4").write_bytes(Path("in.mp4").read_bytes()[:400])
    result = predict("cut.mp4", "in.mp4", *LOW)
    assert result.exit_code == 4
    assert "skipped: cut.mp4: cannot be opened as a video" in result.stderr
    assert [path.name for path in Path("predictions/videos").iterdir()] == ["in.mp4"]


@needs_pyav
@pytest.mark.parametrize(
    ("share", "reason", "left"),
    [(1, "damaged after frame 3: Invalid data found", [1, 2, 3, 4, 5]), (2, "frame 4 is damaged", [1, 2, 3, 5, 6])],
    ids=["lost", "half"],
)
def test_a_damaged_frame_is_named_and_passed_over_with_exit_code_4(
    predict: Predict, share: int, reason: str, left: list[int]
) -> None:
    clip = Path("clip.avi")
    save_clip(clip)
    with av.open(str(clip)) as container:
        [packet] = [packet for packet in container.demux(video=0) if packet.size and packet.pts == 3]
    data = bytearray(clip.read_bytes())
    lost = packet.size // share
    data[packet.pos + packet.size - lost : packet.pos + packet.size] = b"\xff" * lost
    clip.write_bytes(data)
    result = predict("clip.avi", *LOW)
    assert result.exit_code == 4, result.output
    assert f"skipped: clip.avi: {reason}" in result.stderr
    assert "1 problem, named above" in result.stderr
    [problem] = read("predictions/predict.json")["problems"]
    assert problem["reason"].startswith(reason)
    names = [image["file_name"] for image in read("predictions/images.json")["images"]]
    assert names == [f"clip.avi#{number}" for number in left]
    with av.open("predictions/videos/clip.mp4") as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.1, 0.2, 0.4, 0.5])


@needs_pyav
def test_a_cut_file_that_ffmpeg_reads_without_an_error_is_named(predict: Predict) -> None:
    save_clip(Path("clip.mkv"))
    whole = Path("clip.mkv").read_bytes()
    assert predict("clip.mkv", *LOW).exit_code == 0
    Path("clip.mkv").write_bytes(whole[: len(whole) // 2])
    result = predict("clip.mkv", *LOW)
    assert result.exit_code == 4, result.output
    frames = read("predictions/predict.json")["inputs"][0]["frames"]
    assert 0 < frames < 6
    lost = len(whole) - len(whole) // 2
    assert f"skipped: clip.mkv: ends after frame {frames}: the file lacks its last {lost} bytes" in result.stderr


@needs_pyav
def test_a_video_that_cannot_be_encoded_is_passed_over(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "ENCODERS", {"mpeg4": {}})
    monkeypatch.setattr(video, "FINEST_TIMES", {})  # finer than the encoder takes
    save_clip(Path("fine.ts"))
    save(Path("a.png"))
    result = predict("fine.ts", "a.png", *LOW)
    assert result.exit_code == 4, result.output
    assert "skipped: fine.ts: the new video cannot be encoded by mpeg4" in result.stderr
    assert [path.name for path in Path("predictions/pictures").iterdir()] == ["a.jpg"]
    assert not list(Path("predictions").rglob("*.mp4"))


def test_without_pyav_a_video_is_refused_before_anything_is_predicted(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    Path("clip.mp4").write_bytes(b"")
    save(Path("a.png"))
    result = predict("a.png", "clip.mp4")
    assert result.exit_code == 1
    assert "pip install 'yolact-pipeline[video]'" in result.stderr
    assert not Path("predictions").exists()


# Cameras ---------------------------------------------------------------------------------------------------------


def camera(graph: str) -> dict[str, Any]:
    """What `yolact.video.CAMERA` is where FFmpeg generates the frames: a device without hardware."""
    return {"format": "lavfi", "options": {"graph": f"testsrc=size=80x48:rate=1000,{graph}"}}


FAST = "realtime,settb=1/1000,setpts=N+5000"
"""Frame N at N ms, more than can be predicted; like a camera's, its times do not begin with 0."""


@needs_pyav
@pytest.mark.usefixtures("signals")
def test_a_camera_is_predicted_until_ctrl_c_and_frames_that_come_too_fast_are_dropped(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "CAMERA", camera(FAST))
    save(Path("a.png"))
    press_ctrl_c(monkeypatch, VideoWriter, after=5)
    result = predict("a.png", "camera:0", *LOW)
    assert result.exit_code == 0, result.output
    summary = read("predictions/predict.json")
    [_, entry] = summary["inputs"]
    assert (entry["source"], entry["video_fps"]) == ("camera:0", 1000)
    assert (summary["stopped"], summary["problems"], summary["images"]) == (True, [], entry["frames"] + 1)
    names = [image["file_name"] for image in read("predictions/images.json")["images"][1:]]
    numbers = [int(name.removeprefix("camera0.mp4#")) for name in names]
    assert len(numbers) == entry["frames"] >= 5
    assert entry["dropped"] == numbers[-1] - len(numbers) > 0
    assert f"{entry['frames']} frames, {entry['dropped']} dropped at" in result.stdout
    with av.open("predictions/videos/camera0.mp4") as container:
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(np.diff(times) * 1000, np.diff(numbers), atol=1e-6)


@needs_pyav
@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("sources", "writer", "predicted"),
    [(("camera:0", "a.png"), VideoWriter, ["camera:0"]), (("a.png", "camera:0"), Pictures, ["a.png"])],
    ids=["before others", "after others"],
)
def test_ctrl_c_that_leaves_inputs_out_is_no_success_because_of_a_camera(
    predict: Predict,
    monkeypatch: pytest.MonkeyPatch,
    sources: tuple[str, str],
    writer: type[Pictures | VideoWriter],
    predicted: list[str],
) -> None:
    monkeypatch.setattr(video, "CAMERA", camera(FAST))
    save(Path("a.png"))
    press_ctrl_c(monkeypatch, writer, after=1)
    result = predict(*sources, *LOW)
    assert result.exit_code == 130, result.output
    assert [entry["source"] for entry in read("predictions/predict.json")["inputs"]] == predicted


STALLING = "settb=1/1000,setpts='if(lt(N,4),100*N,1e7)',realtime=limit=100000"
"""Four frames within 300 ms, and then none."""


@needs_pyav
def test_a_terminal_shows_rate_and_time_left_and_its_ctrl_c_ends_a_camera_that_sends_nothing(predict: Predict) -> None:
    for number in range(20):
        save(Path(f"in/{number:02}.png"), number)
    program = (
        "import fcntl, termios\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # the terminal's Ctrl-C is for this process
        "from yolact import video\n"
        f"video.CAMERA = {camera(STALLING)}\n"
        "from yolact_cli.main import app\n"
        "app()"
    )
    command = [sys.executable, "-c", program, "predict", "in", "camera:0", "--batch-size", "2", *LOW]
    screen, inside = os.openpty()
    termios.tcsetwinsize(inside, (24, 100))
    with subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, start_new_session=True) as process:
        os.close(inside)
        shown, is_pressed = "", False
        with suppress(OSError):  # the process has ended
            while select.select([screen], [], [], 120)[0]:
                shown += os.read(screen, 4096).decode()
                if not is_pressed and re.search(r"camera0: [1-4]frame", shown):
                    time.sleep(0.5)
                    is_pressed = bool(os.write(screen, b"\x03"))
        process.kill()  # does nothing to one that has ended
    os.close(screen)
    assert process.returncode == 0, shown
    assert re.search(r"\d+/20 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+image/s\]", shown), shown
    assert re.search(r"camera0: [1-4]frame \[\d\d:\d\d, +[\d.]+(frame/s|s/frame)\]", shown), shown
    summary = read("predictions/predict.json")
    assert summary["stopped"]
    assert 20 < summary["images"] <= 24
