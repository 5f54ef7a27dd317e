"""Post-training quantisation of ONNX files to int8 by onnxruntime, in the form that it recommends: static, QDQ.

Weights are int8 per output channel, activations 8 bits per tensor, with the range that calibration images cause. What
the convolutions of the heads put out stays float32, and so does all that follows: softmax, box decoding.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from yolact.images import ImageInput
from yolact.inference.export_format import INPUT_NAME, input_batches
from yolact.inference.runtimes import require
from yolact.settings import ModelConfig

if TYPE_CHECKING:
    import onnx

CALIBRATION_IMAGES = 100
"""Maximum number of images that ranges are measured with, taken evenly from those given."""


OPERATORS = ["Conv", "Relu", "Clip", "Add", "MaxPool", "Resize"]
"""What is quantised: convolutions, and what lies between them; its int8 form saves converting to float32 and back."""


def calibration_batches(images: Sequence[ImageInput], config: ModelConfig, batch: int | None) -> Iterator[Tensor]:
    """Inputs to calibrate with, (batch, 3, S, S), or (1, 3, S, S) for a file with any batch size."""
    count = min(len(images), CALIBRATION_IMAGES)
    chosen = [images[number * len(images) // count] for number in range(count)]
    return input_batches(chosen, config, batch or 1)


def quantized(proto: onnx.ModelProto, batches: Iterator[Tensor], *, symmetric: bool) -> onnx.ModelProto:
    """Quantise the convolutions of an exported network, and what lies between them.

    Args:
        proto: in float32.
        batches: inputs to calibrate with.
        symmetric: for TensorRT: signed activations with zero point 0, all 8 bits of the weights, which stay float32 in
            the file behind a pair of operators, and biases not quantised. Otherwise for CPUs: unsigned activations, and
            7 bits of the weights, because without VNNI instructions sums of products of 8 bits saturate.

    Raises:
        ExportError: onnxruntime is missing.
    """
    onnx_library, library = require("onnx"), require("onnxruntime.quantization")
    with tempfile.TemporaryDirectory(prefix="yolact-int8-") as folder:
        given, path = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        given.write_bytes(proto.SerializeToString())
        logger = logging.getLogger()
        logger.disabled, before = True, logger.disabled  # it warns that shapes were not inferred; the exporter has them
        try:
            library.quantize_static(
                given,
                path,
                _Reader(batches),
                quant_format=library.QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                nodes_to_exclude=_outside(proto),
                per_channel=True,
                reduce_range=not symmetric,
                activation_type=library.QuantType.QInt8 if symmetric else library.QuantType.QUInt8,
                weight_type=library.QuantType.QInt8,
                extra_options={
                    "ActivationSymmetric": symmetric,
                    "AddQDQPairToWeight": symmetric,
                    "QuantizeBias": not symmetric,
                },
            )
        finally:
            logger.disabled = before
        found: onnx.ModelProto = onnx_library.load(path)
    del found.metadata_props[:]  # onnxruntime's notes about its own work
    return found


class _Reader:
    """Batches as onnxruntime's calibration reads them."""

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch.numpy()}


def _outside(proto: onnx.ModelProto) -> list[str]:
    """Names of the last convolutions and of the nodes after them, which stay float32."""
    producers = {output: node for node in proto.graph.node for output in node.output}
    found: dict[str, None] = {}
    open_ends = [output.name for output in proto.graph.output]
    while open_ends:
        node = producers.get(open_ends.pop())
        if node is None or node.name in found:
            continue
        found[node.name] = None
        if node.op_type != "Conv":
            open_ends += node.input
    return list(found)
