"""Coverage-guided fuzzing of the readers whose random damage tests try.

    pip install atheris
    python -m tests.yolact.fuzz NAME FOLDER -max_total_time=600

NAME is one of those in `targets`. atheris is no dependency of this project. It keeps each input that reaches new code
in FOLDER, where it begins with the contents that the tests damage, and takes the options of libFuzzer. An input that a
reader neither reads nor refuses with its own error is written to ``crash-*`` in the working folder: it belongs in a
test. Only the packages in `WATCHED` count as code: decoders in C and PyTorch do not.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import atheris

WATCHED = [
    *("yolact", "yolact_ops", "serving"),
    *("defusedxml", "json", "PIL", "python_multipart", "ruamel", "tarfile", "xml", "zipfile"),
]
with atheris.instrument_imports(include=WATCHED):
    from serving.bodies import find_uploads
    from serving.errors import ApiError
    from serving.images import Memory, Share, decode, from_pixels
    from serving.metrics import Metrics
    from serving.routes import open_inference
    from tests.serving.test_fuzzing import BINARY, BODIES
    from tests.yolact import test_fuzzing as readers
    from tests.yolact.formats.test_registry import check_fuzzed, mat
    from tests.yolact_ops.transfer.test_archives import TAR_MODES, ordinary
    from yolact.errors import DataError
    from yolact_ops.transfer.archives import unpack

MAX_PIXELS = 10**6
MEMORY = Memory(10**9, Metrics())


def check_masks(folder: Path, data: bytes) -> None:
    """As VOC's class mask, as numbers, and as one object."""
    for read in (readers.read_mask, readers.read_numbers, readers.read_object):
        readers.check_mask(folder, data, read)


def check_archive(folder: Path, data: bytes) -> None:
    """Unpack; nothing but `DataError` may come out, and nothing may be written beside the folder."""
    (folder / "archive").write_bytes(data)
    with suppress(DataError):
        unpack(folder / "archive", folder / "out")
    shutil.rmtree(folder / "out", ignore_errors=True)
    assert [path.name for path in folder.iterdir()] == ["archive"]


def check_body(data: bytes) -> None:
    """Find and decode the images of a body; its first byte chooses the content type, or the binary form."""
    kinds = [*BODIES, None]
    chosen, body = kinds[data[0] % len(kinds)] if data else None, data[1:]
    with suppress(ApiError, DataError), Share(MEMORY) as share:
        if chosen is None or chosen[0] != "predict":
            length = str(len(BINARY)) if chosen is None else None
            asked = open_inference._parse(body, length)
            open_inference._options(asked)
            uploads = open_inference._uploads(asked, body, length, 32)
        else:
            uploads = find_uploads(body, chosen[1].partition(";")[0], {b"boundary": b"x"}, 32)
        for upload in uploads:
            assert upload.error is None or upload.error
            if upload.pixels is not None:
                from_pixels(upload.pixels, MAX_PIXELS, share)
            elif upload.error is None:
                decode(upload.data, MAX_PIXELS, share)


def targets(folder: Path) -> dict[str, tuple[list[bytes], Callable[[bytes], object]]]:
    """The contents that each target begins with, and its check."""
    found: dict[str, tuple[list[bytes], Callable[[bytes], object]]] = {
        "annotations": ([readers.ANNOTATION], partial(readers.check_annotation, folder)),
        "archives": ([ordinary(suffix) for suffix in (*TAR_MODES, ".zip")], partial(check_archive, folder)),
        "bodies": (
            [bytes([number]) + body for number, (_, _, body) in enumerate(BODIES)]
            + [bytes([len(BODIES)]) + BINARY.encode() + bytes(range(12))],
            check_body,
        ),
        "images": ([readers.encoded(kind) for kind in readers.IMAGE_KINDS], readers.check_image),
        "masks": ([readers.png(mode) for mode in readers.MASK_MODES], partial(check_masks, folder)),
        "matlab": ([mat(), mat(do_compression=False)], partial(check_fuzzed, folder)),
        "params": ([readers.PARAMS], partial(readers.check_params, folder)),
        "weights": ([readers.weights(kind) for kind in readers.WEIGHTS_KINDS], partial(readers.check_weights, folder)),
    }
    for name, (_, content, _) in readers.DATA_SETS.items():
        found[name] = ([content], partial(readers.check_data_set, folder, name))
    return found


def main() -> None:
    """Fuzz the reader that the command line names."""
    name, corpus = sys.argv[1], Path(sys.argv[2])
    contents, check = targets(Path(tempfile.mkdtemp(prefix="yolact-fuzz-")))[name]
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        (corpus / f"start-{number}").write_bytes(content)

    def check_one(data: bytes) -> None:  # a number would be a message to libFuzzer
        check(data)

    atheris.Setup([sys.argv[0], str(corpus), *sys.argv[3:]], check_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
