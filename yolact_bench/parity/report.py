"""Comparison of tensors, and the report of all comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolact_bench.parity.fixture import Fixture

TOLERANCE = 1e-4
"""Largest relative error of a comparison that passes."""

Values = Tensor | np.ndarray | float | int | list[Any]


@dataclass(frozen=True)
class Comparison:
    """A tensor of ours against the expected one, or a check that could not run."""

    name: str
    shape: tuple[int, ...] | None
    """Shape of the expected tensor; None without one."""
    absolute_error: float | None
    """Largest absolute error; None if the two could not be compared."""
    relative_error: float | None
    """See `compare`."""
    passed: bool
    note: str = ""
    """Why it failed, or a note."""

    def to_json(self) -> dict[str, Any]:
        """One comparison as in ``yolact parity --json``."""
        return {
            "name": self.name,
            "shape": None if self.shape is None else list(self.shape),
            "absolute_error": self.absolute_error,
            "relative_error": self.relative_error,
            "passed": self.passed,
            "note": self.note,
        }


def compare(name: str, found: Values, expected: Values, *, pixels: bool = False, note: str = "") -> Comparison:
    """Compare a tensor of ours with the expected one.

    The relative error of floats is the largest absolute error divided by the largest absolute expected value (by 1 if
    that is 0). For integers and booleans, which are decisions (classes, indices, matches, boxes in whole pixels), it is
    the share of entries that differ, and must be 0. With ``pixels`` they are pixels of masks, a few of which are so
    close to a threshold that rounding decides: the share may be up to `TOLERANCE`.
    """
    ours, theirs = _tensor(found), _tensor(expected)
    shape = tuple(theirs.shape)
    if ours.shape != theirs.shape:
        return _failed(name, shape, f"our shape is {tuple(ours.shape)}", note)
    if ours.dtype != theirs.dtype:
        ours, theirs = ours.double(), theirs.double()
    differs = ours != theirs  # infinity equals infinity, NaN differs from NaN
    ours, other = ours[differs].double(), theirs[differs].double()
    for values, owner in ((other, "expected values"), (ours, "of our values")):
        if values.isnan().any():
            return _failed(name, shape, f"{int(values.isnan().sum())} {owner} are NaN", note)
    errors = (ours - other).abs()
    if errors.isinf().any():
        return _failed(name, shape, f"{int(errors.isinf().sum())} values differ by infinity", note)
    absolute = errors.max().item() if len(errors) else 0.0
    if _tensor(expected).is_floating_point():
        finite = theirs[theirs.isfinite()]
        scale = finite.abs().max().item() if len(finite) else 0.0
        relative, limit = absolute / (scale or 1.0), TOLERANCE
    else:
        relative, limit = len(errors) / max(differs.numel(), 1), TOLERANCE if pixels else 0.0
    return Comparison(name, shape, absolute, relative, passed=relative <= limit, note=note)


def _failed(name: str, shape: tuple[int, ...], reason: str, note: str) -> Comparison:
    return Comparison(name, shape, None, None, passed=False, note=f"{reason}; {note}" if note else reason)


def _tensor(values: Values) -> Tensor:
    return values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))


@dataclass
class FileReport:
    """All comparisons of one file."""

    file: str
    kind: str
    """Names of its kinds."""
    rows: list[Comparison] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Names of arrays that no check used."""

    @property
    def failures(self) -> list[Comparison]:
        """The comparisons that did not pass."""
        return [row for row in self.rows if not row.passed]

    def to_json(self) -> dict[str, Any]:
        """An entry of ``yolact parity --json``."""
        rows = [row.to_json() for row in self.rows]
        return {"file": self.file, "kind": self.kind, "rows": rows, "unused": self.unused}


@dataclass
class ParityReport:
    """Results of a directory of fixtures."""

    files: list[FileReport]
    unrecognised: list[str]
    """Files of unknown kind, with their content."""

    @property
    def comparisons(self) -> int:
        """Number of comparisons."""
        return sum(len(file.rows) for file in self.files)

    @property
    def failures(self) -> int:
        """Number of comparisons that did not pass."""
        return sum(len(file.failures) for file in self.files)

    @property
    def unused(self) -> int:
        """Number of arrays that no check used."""
        return sum(len(file.unused) for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """The output of ``yolact parity --json``."""
        return {
            "tolerance": TOLERANCE,
            "comparisons": self.comparisons,
            "failures": self.failures,
            "unused": self.unused,
            "unrecognised": self.unrecognised,
            "files": [file.to_json() for file in self.files],
        }


class Checks:
    """Collects the comparisons of one file; a check that raises counts as failed, but the others still run."""

    def __init__(self, fixture: Fixture) -> None:
        self.fixture = fixture
        self.rows: list[Comparison] = []

    def array(self, name: str, found: Values, *, note: str = "") -> None:
        """Compare with the array of this name."""
        self.value(name, found, self.fixture.tensor(name), note=note)

    def value(self, name: str, found: Values, expected: Values, *, pixels: bool = False, note: str = "") -> None:
        """Compare with an expected value that the file does not store under this name."""
        self.rows.append(compare(name, found, expected, pixels=pixels, note=note))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part of the checks: an error in it becomes a failed comparison of this name."""
        try:
            yield
        except Exception as error:  # every failure must be reported, and none may stop the other checks
            reason = str(error) or type(error).__name__
            self.rows.append(Comparison(name, None, None, None, passed=False, note=f"could not be checked: {reason}"))
