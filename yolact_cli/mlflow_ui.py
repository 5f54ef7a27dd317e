"""MLflow's pages, opened on the last run if there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

AS_TRAINING = "workflowType=machine_learning"
"""Makes MLflow 3.17 show its pages for training; a link without it opens those for language models."""


def serve(port: int, root: Path = Path()) -> int:
    """Say where the last run is to be seen and, unless a server has the runs, start MLflow's pages there.

    Without a run these are a server to make runs on; MLflow makes ``mlflow.db`` where it is missing.

    Args:
        port: of the local pages.
        root: folder of ``mlflow.db`` and ``models/run.json``.

    Returns:
        The exit status of MLflow.

    Raises:
        DataError: ``models/run.json`` is not the record of a run.
    """
    from yolact_ops.tracking.run_record import RUN_FILE, RunRecord

    path = root / "models" / RUN_FILE
    record = RunRecord.read(path) if path.exists() else None
    page = f"/#/experiments/{record.experiment_id}/runs/{record.run_id}?{AS_TRAINING}" if record else ""
    store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    if store.startswith("http"):
        last = f"The last one: {record.tracking_uri}{page}" if record else "None was made here yet."
        print(f"The runs are on the server that MLFLOW_TRACKING_URI names. {last}")
        return 0
    what = "The last run" if record else "MLflow, without a run of this folder yet"
    print(f"{what}: http://127.0.0.1:{port}{page}\n(end MLflow with Ctrl-C)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", str(port)]
    return subprocess.run(command, cwd=root, check=False).returncode
