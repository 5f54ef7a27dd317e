"""Measure the latency of a version on this machine.

One image at a time (the version's input example, a validation image), from decoded pixels to boxes and masks in image
coordinates, on ``runtime.device``. The median of `ROUNDS` runs after `WARM_UP`. Promote on a machine like the one that
serves: the value does not transfer to others.
"""

from __future__ import annotations

import io

from components.promote.gate import Latency
from yolact.images import decode_image
from yolact.inference.machine import describe_machine
from yolact.inference.timing import Laps, median
from yolact_ops.registry.packaged_model import PackagedModel

WARM_UP = 3
ROUNDS = 20


def measure_latency(model: PackagedModel, device: str) -> Latency:
    """Measure the median time for the input example.

    Args:
        model: the version's files.
        device: as ``runtime.device``.

    Raises:
        RegistryError: the version has no input example.
        SettingsError: the device is unavailable.
    """
    predictor = model.predictor(device, batch_size=1)
    image = decode_image(io.BytesIO(model.example()))  # as serving decodes it
    for _ in range(WARM_UP):
        predictor.predict(image)
    laps = Laps(predictor.device)
    times = []
    for _ in range(ROUNDS):
        predictor.predict(image)
        times.append(laps.lap())
    machine = describe_machine(predictor.device)
    place = machine.gpu or f"{machine.processor}, {machine.threads} threads"
    height, width = image.shape[:2]
    return Latency(median(times), f"median of {ROUNDS}, one image of {width}x{height} at a time, {place}")
