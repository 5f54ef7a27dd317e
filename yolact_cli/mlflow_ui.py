"""`yolact mlflow`: MLflow's web interface, with the address of the last run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

AS_TRAINING = "workflowType=machine_learning"
"""Makes MLflow 3.17 show its pages for training; without it a link opens those for language models."""


def serve(port: int, root: Path = Path()) -> int:
    """Print the address of the last run and, unless the runs are on a server, start MLflow's web interface.

    It starts without a run too, ready for the first one; MLflow creates ``mlflow.db`` if it is missing.

    Args:
        port: port of the local server.
        root: folder of ``mlflow.db`` and ``models/run.json``.

    Returns:
        MLflow's exit code.

    Raises:
        DataError: ``models/run.json`` is not the record of a run.
        ModuleNotFoundError: MLflow is not installed.
    """
    from yolact_ops.commands.errors import require_module
    from yolact_ops.tracking.run_record import RUN_FILE, RunRecord

    path = root / "models" / RUN_FILE
    record = RunRecord.read(path) if path.exists() else None
    page = f"/#/experiments/{record.experiment_id}/runs/{record.run_id}?{AS_TRAINING}" if record else ""
    store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    if store.startswith("http"):
        last = f"The last one: {record.tracking_uri}{page}" if record else "This folder has none yet."
        print(f"The runs are on the server in MLFLOW_TRACKING_URI. {last}")
        return 0
    require_module("mlflow")
    what = "The last run" if record else "MLflow (this folder has no run yet)"
    print(f"{what}: http://127.0.0.1:{port}{page}\n(stop MLflow with Ctrl-C)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", str(port)]
    return subprocess.run(command, cwd=root, check=False).returncode
