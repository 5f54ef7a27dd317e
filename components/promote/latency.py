"""How long a version takes for a image, measured here and now.

One image at a time (the version's input example, a real validation image), from decoded pixels to boxes and masks in
the image's frame, on ``runtime.device`` of the machine that promotes. The median of `ROUNDS` runs after `WARM_UP`. It
says something about another machine only as far as that is alike; promote where, or as, you serve.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from components.promote.gate import Latency
from yolact.inference.machine import describe_machine
from yolact.inference.timing import Laps, median
from yolact_ops.registry.packaged_model import PackagedModel

WARM_UP = 3
ROUNDS = 20


def measure_latency(model: PackagedModel, device: str) -> Latency:
    """The median time for the input example.

    Args:
        model: the version's files.
        device: as ``runtime.device``.

    Raises:
        RegistryError: the version has no input example.
        SettingsError: the device is not there.
    """
    predictor = model.predictor(device, batch_size=1)
    image = np.array(Image.open(io.BytesIO(model.example())).convert("RGB"))
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
