"""Proof that this network computes what the published one does: stored numbers against ours.

A directory of fixtures holds what the published implementation computed: weights and outputs, detections, losses and
single functions, as ``.npz`` and JSON files. `run_parity` computes each again with the project's own functions.
"""

from __future__ import annotations

from yolact_bench.parity.report import TOLERANCE, Comparison, FileReport, ParityReport
from yolact_bench.parity.runner import run_parity

__all__ = ["TOLERANCE", "Comparison", "FileReport", "ParityReport", "run_parity"]
