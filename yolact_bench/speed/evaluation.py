"""What evaluation does with a image besides the network: boxes and masks of the chosen detections, and their RLE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.inference.machine import Machine, describe_machine
from yolact.inference.postprocess import Candidates, to_image_frame
from yolact.inference.timing import Laps, median
from yolact.settings import DEFAULT_DETECTION, DetectConfig
from yolact_bench.speed.images import HEIGHT, WIDTH

DETECTIONS = 100
PROTOTYPE_SIZE, PROTOTYPES = 138, 32
"""Of the published network with an input of 550."""

SIZE_SHARES = ((0.41, 8, 32), (0.34, 32, 96), (0.25, 96, 375))
"""Share of the objects, and least and greatest square root of their area in pixels: COCO's small, medium and large
objects (cocodataset.org, "Detection Evaluation")."""

WARM_UP = 3
SCENES = 5
"""Different sets of candidates, taken in turn."""


@dataclass(frozen=True)
class EvaluationWork:
    """Milliseconds for a image, medians over the rounds."""

    machine: Machine
    height: int
    width: int
    detections: int
    rounds: int
    detection: DetectConfig
    masks: float
    """Boxes in the image's frame, and each mask inside its window."""
    rle: float
    """The masks' run lengths, as COCO compresses them."""
    total: float


def measure(*, device: torch.device, rounds: int = 20, detection: DetectConfig = DEFAULT_DETECTION) -> EvaluationWork:
    """Turn 100 detections of a 500 x 375 image into boxes and RLE masks, round by round."""
    machine = describe_machine(device)
    scenes = [make_scene(seed, device) for seed in range(SCENES)]
    times = []
    with torch.no_grad():
        for number in range(WARM_UP + rounds):
            candidates, prototypes = scenes[number % SCENES]
            laps = Laps(device)
            detections = to_image_frame(candidates, prototypes, HEIGHT, WIDTH, detection)
            masks = laps.lap()
            detections.rles()
            times.append((masks, laps.lap()))
    masks, rle = (median(stage) for stage in zip(*times[WARM_UP:], strict=True))
    total = median([sum(stages) for stages in times[WARM_UP:]])
    return EvaluationWork(machine, HEIGHT, WIDTH, DETECTIONS, rounds, detection, masks, rle, total)


def make_scene(seed: int, device: torch.device) -> tuple[Candidates, Tensor]:
    """Made-up detections of one image, with its prototypes (Hp, Wp, K).

    Boxes are those of `draw_boxes`. Prototypes are smooth random maps, so that masks have smooth edges and some
    have holes or several parts.
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
    """Made-up boxes (count, 4) xyxy, relative to a image of 500 x 375.

    Sizes are drawn log-uniformly within COCO's three groups (`SIZE_SHARES`), aspect ratios log-uniformly from 1/2 to
    2, places uniformly inside the image.
    """
    shares, low, high = torch.tensor(SIZE_SHARES).T
    group = torch.multinomial(shares, count, replacement=True, generator=generator)
    side = low[group] * (high[group] / low[group]) ** torch.rand(count, generator=generator)
    ratio = 4 ** (torch.rand(count, generator=generator) - 0.5)
    image = torch.tensor([WIDTH, HEIGHT])
    sizes = torch.stack([side * ratio.sqrt(), side / ratio.sqrt()], dim=1).minimum(image)  # (N, 2) width, height
    corners = torch.rand(count, 2, generator=generator) * (image - sizes)
    return torch.cat([corners, corners + sizes], dim=1) / image.repeat(2)
