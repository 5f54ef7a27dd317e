"""Commands as the README prints them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser


def test_dvc_takes_every_printed_source_as_one_value(repository: Path) -> None:
    """DVC gives what follows -S to Hydra's parser; # is a syntax error there, and a comma makes several experiments."""
    commands = re.findall(r"^dvc exp run .*", (repository / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    words = [word for command in commands for word in shlex.split(command, comments=True)]
    overrides = OverridesParser.create().parse_overrides([word for word in words if word.startswith("data.source=")])
    assert not any(override.is_sweep_override() for override in overrides)
    assert "dvc:REPOSITORY#PATH@REVISION" in [override.value() for override in overrides]
