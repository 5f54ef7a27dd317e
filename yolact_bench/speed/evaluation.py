"""Evaluation without the network: full-size masks of the detections of an image, and their run lengths (RLE)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.inference.machine import Machine, describe_machine
from yolact.inference.postprocess import Candidates, to_image_frame
from yolact.settings import DEFAULT_DETECTION, DetectConfig
from yolact_bench.speed.images import HEIGHT, WIDTH
from yolact_bench.speed.rounds import Rounds, time_stages

DETECTIONS = 100
PROTOTYPE_SIZE, PROTOTYPES = 138, 32
"""Prototypes of the published networks with an input of 550 pixels."""

SIZE_SHARES = ((0.41, 8, 32), (0.34, 32, 96), (0.25, 96, 375))
"""Share of the objects, and smallest and largest square root of their area in pixels: COCO's small, medium and large
objects (cocodataset.org, "Detection Evaluation")."""

NAME = "evaluation work"
WARM_UP = 3
SCENES = 5
"""Sets of candidates that the rounds use in turn."""


@dataclass(frozen=True)
class EvaluationWork:
    """Milliseconds per image, medians over the rounds."""

    machine: Machine
    height: int
    width: int
    detections: int
    rounds: int
    detection: DetectConfig
    masks: float
    """Boxes in image pixels, and each mask inside its box."""
    rle: float
    """The masks' run lengths in COCO's compressed form."""
    total: float


def measure(
    *,
    device: torch.device,
    rounds: int = 20,
    detection: DetectConfig = DEFAULT_DETECTION,
    progress: Callable[[str], None] = lambda _: None,
) -> EvaluationWork:
    """Turn 100 detections of a 500 x 375 image into boxes and RLE masks, round by round."""
    machine = describe_machine(device)
    scenes = [make_scene(seed, device) for seed in range(SCENES)]

    def run(number: int) -> list[float]:
        candidates, prototypes = scenes[number % SCENES]
        stages: list[Callable[[Any], Any]] = [
            lambda _: to_image_frame(candidates, prototypes, HEIGHT, WIDTH, detection),
            lambda detections: detections.rles(),
        ]
        return time_stages(stages, device)

    timed = Rounds({NAME: run}, progress)
    with torch.no_grad():
        timed.warm_up(WARM_UP)
        timed.measure(rounds)
    return EvaluationWork(machine, HEIGHT, WIDTH, DETECTIONS, rounds, detection, *timed.medians(NAME))


def make_scene(seed: int, device: torch.device) -> tuple[Candidates, Tensor]:
    """Synthetic detections of one image, with its prototypes (Hp, Wp, K).

    Boxes are drawn by `draw_boxes`. Prototypes are smooth random maps: masks have smooth edges, some have holes or
    several parts.
    """
    generator = torch.Generator().manual_seed(seed)
    boxes = draw_boxes(DETECTIONS, generator)
    coarse = torch.randn(1, PROTOTYPES, 18, 18, generator=generator)
    prototypes = F.interpolate(coarse, size=(PROTOTYPE_SIZE, PROTOTYPE_SIZE), mode="bicubic")[0].clamp(min=0)
    candidates = Candidates(
        boxes=boxes.to(device),
        scores=torch.rand(DETECTIONS, generator=generator).sort(descending=True).values.to(device),
        labels=torch.randint(0, 80, (DETECTIONS,), generator=generator).to(device),
        mask_coefficients=torch.randn(DETECTIONS, PROTOTYPES, generator=generator).tanh().to(device),
    )
    return candidates, prototypes.permute(1, 2, 0).contiguous().to(device)


def draw_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Draw boxes (count, 4) xyxy, relative to an image of 500 x 375.

    Sizes are log-uniform within COCO's three groups (`SIZE_SHARES`), aspect ratios log-uniform from 1/2 to 2, positions
    uniform inside the image.
    """
    shares, low, high = torch.tensor(SIZE_SHARES).T
    group = torch.multinomial(shares, count, replacement=True, generator=generator)
    side = low[group] * (high[group] / low[group]) ** torch.rand(count, generator=generator)
    ratio = 4 ** (torch.rand(count, generator=generator) - 0.5)
    image = torch.tensor([WIDTH, HEIGHT])
    sizes = torch.stack([side * ratio.sqrt(), side / ratio.sqrt()], dim=1).minimum(image)  # (N, 2) width, height
    corners = torch.rand(count, 2, generator=generator) * (image - sizes)
    return torch.cat([corners, corners + sizes], dim=1) / image.repeat(2)
