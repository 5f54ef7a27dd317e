"""Instead of a trial's training, for tests of the loop around it: a metric that is the learning rate.

What the file ``instructions`` of the sweep's folder says of a trial: ``fail``; or ``wait``, then it waits for
SIGTERM and ends as a stopped training does. `test_sweep_run` has the real one.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from pipelines.sweeps.sweep import TRIAL_VARIABLE, SweepFolder, Trial


def _stopped(number: int, frame: FrameType | None) -> None:
    sys.exit(75)


if __name__ == "__main__":
    trial = Trial.from_json(os.environ[TRIAL_VARIABLE])
    folder = SweepFolder(Path(trial.folder))
    with (folder.path / "started").open("a") as file:
        file.write(f"{trial.name} {trial.overrides[0]}\n")
    instructions = json.loads((folder.path / "instructions").read_text())
    if instructions.get(trial.name) == "fail":
        print("train failed: no such luck")
        sys.exit(1)
    if instructions.get(trial.name) == "wait":
        signal.signal(signal.SIGTERM, _stopped)
        folder.trial(trial.name).path.joinpath("waiting").touch()
        signal.pause()
    value = float(trial.overrides[0].partition("=")[2])
    folder.trial(trial.name).metrics_file.write_text(json.dumps({"mask": {"AP": value}}))
