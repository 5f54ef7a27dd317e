"""MLflow's pages, opened on the last run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

AS_TRAINING = "workflowType=machine_learning"
"""Makes MLflow 3.17 show its pages for training; a link without it opens those for language models."""


def serve(port: int, root: Path = Path()) -> int:
    """Say where the last run is to be seen and, unless a server has the runs, start MLflow's pages there.

    Args:
        port: of the local pages.
        root: folder of ``mlflow.db`` and ``models/run.json``.

    Returns:
        The exit status of MLflow.

    Raises:
        DataError: no run was made here yet.
    """
    from components.common.tracking import RunRecord

    record = RunRecord.read(root / "models" / "run.json")
    store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    page = f"/#/experiments/{record.experiment_id}/runs/{record.run_id}?{AS_TRAINING}"
    if store.startswith("http"):
        print(f"The runs are on the server that MLFLOW_TRACKING_URI names. The last one: {record.tracking_uri}{page}")
        return 0
    print(f"The last run: http://127.0.0.1:{port}{page}\n(end MLflow with Ctrl-C)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", str(port)]
    return subprocess.run(command, cwd=root, check=False).returncode
