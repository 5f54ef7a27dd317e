"""Comparison with the published implementation: our results against its stored ones.

A directory of fixtures contains results of the published implementation as ``.npz`` and JSON files: weights and
outputs, detections, losses, single functions. `run_parity` recomputes all of them with the project's own functions and
compares.

`runner` finds the fixtures and their kinds, `fixture` and `stored` read them, `report` compares and collects. Checks by
kind: `network`, `detection`, `losses`, `units` (single functions) and `configurations` (without weights; `anchors`
has their settings).
"""

from __future__ import annotations

from yolact_bench.parity.report import TOLERANCE, Comparison, FileReport, ParityReport
from yolact_bench.parity.runner import run_parity

__all__ = ["TOLERANCE", "Comparison", "FileReport", "ParityReport", "run_parity"]
