"""Read and write videos with PyAV (FFmpeg), an optional library: the extra ``video``.

Its wheels contain GPL libraries (x264, x265), so neither the library nor the container image requires it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from yolact.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
"""Suffixes of video files that are read, in any case."""

ENCODERS = {"libx264": {"preset": "veryfast", "crf": "20"}, "mpeg4": {"qscale": "3"}}
"""FFmpeg's encoders with their options, the preferred first; a build without GPL libraries has no libx264."""

FINEST_TIMES = {"mpeg4": 65535}
"""Parts of a second in which an encoder can state times, at most (MPEG-4 part 2: 16 bits)."""

CAMERA: dict[str, Any] = {"format": "v4l2"}
"""Arguments with which `av.open` opens a camera: Video4Linux."""

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
"""First bytes of a Matroska or WebM file, and of the element that holds its content (RFC 8794, RFC 9559)."""

HEADER_BYTES = 4096
"""Bytes at the start of such a file within which its content begins; usually after fewer than 100."""

BT709 = 1
"""Colour matrix, primaries and transfer of HD video (ITU-T H.273, tables 2 to 4)."""

LIMITED_RANGE = 1
"""FFmpeg's AVCOL_RANGE_MPEG: luma from 16 to 235."""

SQUARE = Fraction(1)
"""Width over height of a square pixel."""


class VideoFileError(DataError):
    """A video or a camera cannot be opened."""


@dataclass(frozen=True)
class Frame:
    """A frame of a video, upright."""

    number: int
    """From 1, in the order of presentation; a decoded frame that is damaged keeps its number, and is left out."""
    pts: int
    """Time of presentation, in the video's time base; grows from frame to frame."""
    pixels: Tensor
    """(3, H, W) uint8 RGB."""


class VideoReader:
    """The frames of a video file or a camera, turned upright by the display matrix.

    Args:
        address: path of a file, or of a Linux camera (``/dev/video0``).
        live: whether it is a camera.
        on_problem: gets the description of each damaged place; its frames are skipped.

    Raises:
        DataError: PyAV is missing.
        VideoFileError: the file or device cannot be opened or has no video.
    """

    def __init__(self, address: Path, *, live: bool = False, on_problem: Callable[[str], None] = lambda text: None):
        av = require_pyav()
        self.live = live
        self._address = address
        self._frames_read = 0
        self._on_problem, self._damage = on_problem, av.FFmpegError
        try:
            self._container = av.open(str(address), **CAMERA if live else {})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoFileError(f"{address}: cannot be opened as a video: {_reason(error)}") from error
        if not self._container.streams.video:
            self._container.close()
            raise VideoFileError(f"{address}: has no video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.time_base: Fraction = self._stream.time_base
        """Seconds per unit of ``pts``."""
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)
        """Average number of frames per second."""
        self.pixel_aspect = SQUARE
        """Width over height of an upright pixel; known with the first frame."""
        self.frame_count = self._expected_frames()
        """Number of frames that the file states or its duration implies; None if unknown."""

    def _expected_frames(self) -> int | None:
        if self._stream.frames:
            return int(self._stream.frames)
        if self._stream.duration:
            return round(self._stream.duration * self.time_base * self.rate)
        if self._container.duration:  # all that Matroska and WebM state, in microseconds
            return round(Fraction(self._container.duration, 1_000_000) * self.rate)
        return None

    def __iter__(self) -> Iterator[Frame]:
        """Decode the frames. Closes the file at the end."""
        last, first = -1, None
        with self._container:
            for decoded in self._decoded():
                pts = decoded.pts
                if pts is None:
                    pts = (first or 0) + last + max(1, round(1 / (self.rate * self.time_base)))
                first = pts if first is None else first
                last = max(pts - first, last + 1)
                yield Frame(self._frames_read, last, self._pixels(decoded))
            missing = 0 if self.live else missing_bytes(self._address)
            if missing:
                self._on_problem(f"ends after frame {self._frames_read}: the file lacks its last {missing} bytes")

    def _decoded(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
                frames = packet.decode()
            except StopIteration:
                return
            except self._damage as error:
                self._on_problem(f"damaged after frame {self._frames_read}: {_reason(error)}")
                if isinstance(error, EOFError):
                    return
                continue
            for frame in frames:
                self._frames_read += 1
                if frame.is_corrupt:
                    self._on_problem(f"frame {self._frames_read} is damaged")
                else:
                    yield frame

    def _pixels(self, frame: Any) -> Tensor:
        pixels = frame.to_ndarray(format="rgb24")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            pixels = turned(pixels, np.frombuffer(bytes(matrix), dtype=np.int32))
        aspect = self._stream.sample_aspect_ratio or SQUARE
        self.pixel_aspect = aspect if pixels.shape[1] == frame.width else 1 / aspect
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def missing_bytes(path: Path) -> int:
    """Number of bytes that the end of a cut MP4, MOV, Matroska or WebM file lacks.

    FFmpeg takes a cut between two frames of the video for the end, in Matroska any cut. 0 for other formats and for
    files that do not state their size, as recorders write them.
    """
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(HEADER_BYTES)
        end = _matroska_end(head) if head.startswith(EBML) else _mp4_end(file, size)
    return max(0, end - size)


def _matroska_end(head: bytes) -> int:
    """Where the content ends by its own account; 0 if it has none. ``head``: the start of the file."""
    begin = head.find(SEGMENT) + len(SEGMENT)
    if begin < len(SEGMENT) or not any(head[begin : begin + 1]):
        return 0
    # A size has as many more bytes as its first one has leading zeros; one of ones is unknown (RFC 8794, section 4).
    length = 9 - head[begin].bit_length()
    unknown = (1 << 7 * length) - 1
    size = int.from_bytes(head[begin : begin + length]) & unknown
    return 0 if size == unknown else begin + length + size


def _mp4_end(file: BinaryIO, size: int) -> int:
    """Where the media data that a file of so many bytes ends in should end; 0 if it ends in something else."""
    begin = 0
    while begin + 8 <= size:
        file.seek(begin)
        header = file.read(16)
        length = int.from_bytes(header[:4])  # of a box, with this header (ISO/IEC 14496-12, section 4.2)
        if length == 1:
            length = int.from_bytes(header[8:])
        if header[4:8] == b"mdat" and begin + length > size:
            return begin + length
        if length < 8:  # 0: to the end of the file
            break
        begin += length
    return 0


def turned(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and flip stored pixels as a display matrix says; angles between right ones are ignored.

    Args:
        pixels: (H, W, 3).
        matrix: (9,) a, b, u, c, d, v, x, y, w: the pixel at (p, q) is shown at (a p + c q + x, b p + d q + y)
            (FFmpeg's libavutil/display.h; ISO/IEC 14496-12, section 8.3.2).
    """
    a, b, c, d = (int(matrix[index]) for index in (0, 1, 3, 4))
    if b == c == 0:
        across, down = a, d
    elif a == d == 0:
        pixels = pixels.transpose(1, 0, 2)
        across, down = c, b
    else:
        return pixels
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


class VideoWriter:
    """Writes an MP4 file with the times of the frames as given, so that a variable frame rate stays what it is.

    Args:
        path: file to write; complete after `close`.
        source: where the frames come from; frame rate, time base and pixel aspect are its own.
    """

    def __init__(self, path: Path, source: VideoReader) -> None:
        self._av = require_pyav()
        self._path, self._source = path, source
        self._container: Any = None
        self._stream: Any = None

    def add(self, picture: np.ndarray, pts: int) -> None:
        """Encode an (H, W, 3) uint8 RGB picture; an odd side is repeated once, as 4:2:0 video has even ones.

        Raises:
            VideoFileError: the encoder fails; there is no file then.
        """
        height, width = picture.shape[:2]
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._new_stream(*picture.shape[1::-1])
        context = self._stream.codec_context
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
            context.width, context.height, "yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE
        )
        frame.pts, frame.time_base = pts, self._source.time_base
        self._encode(frame)

    def _encode(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except self._av.FFmpegError as error:
            name, self._stream = self._stream.name, None
            self._container.close()
            self._path.unlink(missing_ok=True)
            raise VideoFileError(f"the new video cannot be encoded by {name}: {_reason(error)}") from error

    def _new_stream(self, width: int, height: int) -> Any:
        self._path.parent.mkdir(exist_ok=True)
        self._container = self._av.open(str(self._path), "w", format="mp4")
        name = next(name for name in ENCODERS if name in self._av.codecs_available)
        stream = self._container.add_stream(name, rate=self._source.rate, options=ENCODERS[name])
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = max(self._source.time_base, Fraction(1, FINEST_TIMES.get(name, 2**31 - 1)))
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        context.sample_aspect_ratio = self._source.pixel_aspect
        return stream

    def close(self) -> None:
        """Complete the file; without frames there is none."""
        if self._stream is not None:
            self._encode(None)
            self._container.close()


def require_pyav() -> Any:
    """The module ``av``.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise DataError("videos and cameras need PyAV: pip install 'yolact-pipeline[video]' (or: av)") from error


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
