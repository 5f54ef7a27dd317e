"""Coverage-guided fuzzing of the readers whose random damage `test_fuzzing` tests.

    pip install atheris
    python -m tests.yolact.fuzz annotations|images|masks|params|weights FOLDER -max_total_time=600

atheris is no dependency of this project. It keeps each input that reaches new code in FOLDER, where it begins with the
contents that the tests damage, and takes the options of libFuzzer. An input that a reader neither reads nor refuses
with its own error is written to ``crash-*`` in the working folder: it belongs in a test.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["yolact", "yolact_ops", "defusedxml", "xml", "ruamel"]):
    from tests.yolact import test_fuzzing as readers


def main() -> None:
    """Fuzz the reader that the command line names."""
    name, corpus = sys.argv[1], Path(sys.argv[2])
    folder = Path(tempfile.mkdtemp(prefix="yolact-fuzz-"))

    def masks(data: bytes) -> None:
        for read in (readers.read_mask, readers.read_numbers, readers.read_object):
            readers.check_mask(folder, data, read)

    contents, check = {
        "annotations": ([readers.ANNOTATION], lambda data: readers.check_annotation(folder, data)),
        "images": ([readers.encoded(kind) for kind in readers.IMAGE_KINDS], readers.check_image),
        "masks": ([readers.png(mode) for mode in readers.MASK_MODES], masks),
        "params": ([readers.PARAMS], lambda data: readers.check_params(folder, data)),
        "weights": (
            [readers.weights(kind) for kind in readers.WEIGHTS_KINDS],
            lambda data: readers.check_weights(folder, data),
        ),
    }[name]
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        (corpus / f"start-{number}").write_bytes(content)
    atheris.Setup([sys.argv[0], str(corpus), *sys.argv[3:]], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
