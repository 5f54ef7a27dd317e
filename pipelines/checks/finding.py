"""What a check of a cluster has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum


class Level(StrEnum):
    """How good a finding is."""

    OK = "ok"
    WARNING = "warning"
    """Runs work, but not all that they could do."""
    FAILURE = "failure"
    """Runs cannot work."""
    UNKNOWN = "not known"
    """A right is missing, or only a run can tell."""


@dataclass(frozen=True)
class Finding:
    """One line of a check."""

    level: Level
    what: str
    """What was examined: ``secret yolact-s3``."""
    text: str
    mend: str = ""
    """What to do, with a command; empty if nothing."""

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.level:9}  {self.what}: {self.text}"
        if self.mend:
            yield f"{'':9}    {self.mend}"

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


def count_levels(found: Sequence[Finding]) -> str:
    """How many findings there are of each level: ``12 ok, 2 warnings``."""
    levels = Counter(one.level for one in found)
    names = {Level.WARNING: "warnings", Level.FAILURE: "failures"}
    return ", ".join(
        f"{levels[level]} {names.get(level, level) if levels[level] > 1 else level}" for level in Level if levels[level]
    )
