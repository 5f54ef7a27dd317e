"""What child processes do in the tests of concurrent promotions; the environment names the server."""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from components.promote import promotion
from yolact_ops.registry import champion
from yolact_ops.registry.lock import hold
from yolact_ops.registry.versions import RegisteredModel
from yolact_ops.settings.params import load_params


def promote_version(params_file: str, name: str, version: int) -> tuple[str, int | None]:
    """Promote; return the status and the previous champion."""
    request = promotion.Request(version=version, name=name)
    outcome = promotion.promote(load_params(params_file), request, eval_data_dir=Path("nowhere"))
    return outcome.status, outcome.previous


def promote_and_die(params_file: str, name: str, version: int, moment: str, lifetime: float) -> None:
    """Promote, and be killed ``before`` or ``after`` the alias moves; the lock expires after ``lifetime`` seconds."""
    move = RegisteredModel.set_alias

    def killed(model: RegisteredModel, *arguments: Any) -> None:
        if moment == "after":
            move(model, *arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    RegisteredModel.set_alias = killed  # type: ignore[method-assign]
    champion.hold = functools.partial(hold, lifetime=lifetime)  # type: ignore[attr-defined]
    promote_version(params_file, name, version)


if __name__ == "__main__":
    promote_and_die(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
