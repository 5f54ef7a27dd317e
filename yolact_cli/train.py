"""`yolact train`: from a folder of annotated images to a registered model, in one command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from yolact.errors import DataError
from yolact.models.weight_sources import check_weight_sources
from yolact_cli import presets
from yolact_cli.data import named_source
from yolact_cli.summary import print_summary
from yolact_ops.commands.errors import require_module
from yolact_ops.settings.presets import choose

STAGES = "dvc.yaml"


def run(source: str, preset: str, overrides: Sequence[str]) -> int:
    """Write a preset with a source of data to ``params.yaml``, run all steps that this changes, and show the results.

    Args:
        source: a value of ``data.source``.
        preset: name of a preset, or several joined by ``+``.
        overrides: ``KEY=VALUE`` each.

    Returns:
        DVC's exit code.

    Raises:
        DataError: a folder or file of that name does not exist, or the working folder is no checkout.
        ModuleNotFoundError: DVC is not installed.
        SettingsError, WeightsError: the preset or an override is wrong, or the weights to start from do not exist, see
            `check_weight_sources`; ``params.yaml`` is unchanged.
    """
    named = named_source(source)
    if not Path(STAGES).is_file():
        raise DataError(
            f"{STAGES}: no such file. `yolact train` runs the pipeline of a checkout: clone the repository and start "
            'the command there. To train with the installed package alone, see "In Python" in docs/training.md.'
        )
    require_module("dvc")
    overrides = [f"data.source={json.dumps(named, ensure_ascii=False)}", *overrides]
    check_weight_sources(choose(preset, overrides=overrides).model)
    presets.use(preset, overrides)
    sys.stdout.flush()
    code = subprocess.run([sys.executable, "-m", "dvc", "repro"], check=False).returncode
    if code == 0:
        print_summary()
    return code
