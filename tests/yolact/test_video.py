"""Videos: times, orientation, colours, sizes and damaged places, with clips that FFmpeg writes here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact import video
from yolact.errors import DataError
from yolact.video import VideoFileError, VideoReader, VideoWriter, missing_bytes, require_pyav, turned

try:
    import av
except ImportError:
    av = None

needs_pyav = pytest.mark.skipif(av is None, reason="PyAV is not installed (extra video)")

WIDTH, HEIGHT = 96, 64
RED, GREEN, BLUE, WHITE = (200, 40, 40), (30, 180, 60), (40, 60, 210), (235, 235, 235)


def quarters() -> np.ndarray:
    """(64, 96, 3) uint8: red and green above blue and white."""
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture[:32, :48], picture[:32, 48:], picture[32:, :48], picture[32:, 48:] = RED, GREEN, BLUE, WHITE
    return picture


def colors(pixels: np.ndarray) -> list[list[int]]:
    """Colours amid the four quarters of (H, W, 3), row by row."""
    height, width = pixels.shape[:2]
    return [pixels[height * y // 4, width * x // 4].astype(int).tolist() for y in (1, 3) for x in (1, 3)]


def clip(
    path: Path,
    times: Sequence[int],
    rotation: float | None = None,
    *,
    aspect: Fraction = Fraction(1),
    options: dict[str, str] | None = None,
) -> Path:
    """A video with frames at these times, in 1/1000 s; ``options`` are those of FFmpeg's writer of the format."""
    with av.open(str(path), "w", container_options=options or {}) as container:
        stream = container.add_stream("mpeg4", rate=25, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for time in times:
            frame = av.VideoFrame.from_ndarray(quarters(), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def copied(source: Path, target: Path) -> None:
    """Read a video and write its frames."""
    reader = VideoReader(source)
    with closing(VideoWriter(target, reader)) as writer:
        for frame in reader:
            writer.add(frame.pixels.permute(1, 2, 0).numpy(), frame.pts)


def stated(path: Path) -> tuple[list[float], Any]:
    """Times of the frames in seconds, and the first decoded frame, as FFmpeg gives them."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [round(frame.time, 4) for frame in frames], frames[0]


@needs_pyav
@pytest.mark.parametrize("times", [[0, 40, 80, 120], [0, 33, 240, 250, 1000]])
def test_a_copy_has_the_times_of_the_frames_also_at_a_variable_rate(tmp_path: Path, times: list[int]) -> None:
    copied(clip(tmp_path / "a.mp4", times), tmp_path / "b.mp4")
    assert stated(tmp_path / "b.mp4")[0] == [time / 1000 for time in times]


@needs_pyav
def test_without_x264_a_copy_has_the_times_also_of_a_transport_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "ENCODERS", {"mpeg4": video.ENCODERS["mpeg4"]})
    source = clip(tmp_path / "a.ts", range(0, 2000, 40))
    assert VideoReader(source).time_base == Fraction(1, 90_000)
    copied(source, tmp_path / "b.mp4")
    times = stated(tmp_path / "b.mp4")[0]
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)


@needs_pyav
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_frames_are_upright_and_a_copy_says_no_rotation(tmp_path: Path, rotation: int) -> None:
    source = clip(tmp_path / "a.mov", [0, 40], rotation)
    turns = round(stated(source)[1].rotation / 90)  # FFmpeg's own reading, counter-clockwise
    [first, _] = VideoReader(source)
    upright = first.pixels.permute(1, 2, 0).numpy()
    assert upright.shape[:2] == ((HEIGHT, WIDTH) if rotation % 180 == 0 else (WIDTH, HEIGHT))
    assert np.abs(np.array(colors(upright)) - colors(np.rot90(quarters(), turns))).max() < 12
    copied(source, tmp_path / "b.mp4")
    _, frame = stated(tmp_path / "b.mp4")
    assert (frame.rotation, frame.width, frame.height) == (0, *upright.shape[1::-1])


def test_a_phones_matrix_turns_clockwise_and_mirrors_flip() -> None:
    pixels = np.arange(6).reshape(2, 3, 1)
    one = 1 << 16

    def matrix(a: int, b: int, c: int, d: int) -> np.ndarray:
        return np.array([a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30], dtype=np.int32)

    assert turned(pixels, matrix(0, 1, -1, 0))[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]  # (0, 0) to the right top
    assert turned(pixels, matrix(-1, 0, 0, 1))[..., 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert turned(pixels, matrix(1, 0, 0, -1))[..., 0].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert turned(pixels, matrix(0, 1, 1, 0))[..., 0].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert turned(pixels, np.full(9, one, dtype=np.int32)) is pixels


@needs_pyav
def test_a_copy_keeps_colours_odd_sizes_and_the_shape_of_pixels(tmp_path: Path) -> None:
    source = VideoReader(clip(tmp_path / "a.mp4", [0, 40], aspect=Fraction(4, 3)))
    with closing(VideoWriter(tmp_path / "b.mp4", source)) as writer:
        for frame in source:
            writer.add(quarters()[:63, :95], frame.pts)
    _, frame = stated(tmp_path / "b.mp4")
    assert (frame.width, frame.height) == (96, 64)
    assert np.abs(np.array(colors(frame.to_ndarray(format="rgb24"))) - colors(quarters())).max() < 8
    assert VideoReader(tmp_path / "b.mp4").rate == 25
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


@needs_pyav
def test_a_damaged_place_is_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4", range(0, 1200, 40))
    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][15]
    data = bytearray(source.read_bytes())
    data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    source.write_bytes(data)
    problems: list[str] = []
    frames = list(VideoReader(source, on_problem=problems.append))
    assert len(problems) == 1
    assert "frame 1" in problems[0]
    assert 25 <= len(frames) <= 29
    assert [frame.pts for frame in frames] == sorted({frame.pts for frame in frames})


@needs_pyav
@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv"])
def test_the_number_of_frames_is_known_before_they_are_read(tmp_path: Path, suffix: str) -> None:
    """The time left follows from it; Matroska only states a duration."""
    assert VideoReader(clip(tmp_path / f"a.{suffix}", range(0, 1200, 40))).frame_count == 30


@needs_pyav
@pytest.mark.parametrize(
    ("suffix", "options"),
    [("mkv", {}), ("mp4", {"movflags": "faststart"}), ("mov", {"movflags": "faststart"})],
    ids=["mkv", "mp4", "mov"],
)
def test_a_file_that_is_cut_between_two_frames_is_reported(
    tmp_path: Path, suffix: str, options: dict[str, str]
) -> None:
    path = clip(tmp_path / f"a.{suffix}", range(0, 1200, 40), options=options)
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        cut = [packet for packet in container.demux(video=0) if packet.size][20].pos
    problems: list[str] = []
    assert len(list(VideoReader(path, on_problem=problems.append))) == 30
    assert problems == []
    path.write_bytes(whole[:cut])
    assert len(list(VideoReader(path, on_problem=problems.append))) == 20
    assert problems == [f"ends after frame 20: the file lacks its last {len(whole) - cut} bytes"]
    path.write_bytes(whole[:-1])
    assert missing_bytes(path) == 1
    path.write_bytes(whole + bytes(100))
    assert missing_bytes(path) == 0


@needs_pyav
@pytest.mark.parametrize(
    ("suffix", "options"), [("mkv", {"live": "1"}), ("mp4", {"movflags": "frag_keyframe"}), ("mp4", {}), ("avi", {})]
)
def test_a_whole_file_that_states_no_size_or_ends_in_something_else_lacks_nothing(
    tmp_path: Path, suffix: str, options: dict[str, str]
) -> None:
    assert missing_bytes(clip(tmp_path / f"a.{suffix}", [0, 40], options=options)) == 0


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        (b"", 0),
        (b"\x1a\x45\xdf\xa3", 0),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67", 0),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x00\x01", 0),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xff" + bytes(9), 0),  # unknown
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x8a" + bytes(9), 1),  # 10, in one byte
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x40\x0a" + bytes(9), 1),  # in two
        (b"\0\0\0\x08free\0\0\0\x12mdat" + bytes(9), 1),
        (b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x1a" + bytes(9), 1),  # a long size
        (b"\0\0\0\0mdat" + bytes(9), 0),  # to the end of the file
        (b"\0\0\0\x09free", 0),
    ],
)
def test_the_size_that_a_file_states_is_read_by_the_standards(tmp_path: Path, content: bytes, missing: int) -> None:
    (tmp_path / "a").write_bytes(content)
    assert missing_bytes(tmp_path / "a") == missing


@needs_pyav
@pytest.mark.parametrize("content", [b"", b"text, not video", None])
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoFileError, match=r"a\.mp4: cannot be opened as a video"):
        VideoReader(path)


@needs_pyav
def test_a_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(VideoFileError, match="/dev/video63: cannot be opened as a video"):
        VideoReader(Path("/dev/video63"), live=True)


def test_without_pyav_the_message_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"PyAV: pip install 'yolact-pipeline\[video\]'"):
        require_pyav()
