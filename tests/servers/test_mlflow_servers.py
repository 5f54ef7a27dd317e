"""Tracking on a real server: MLflow on PostgreSQL with artifacts on S3."""

from __future__ import annotations

from pathlib import Path

import psycopg2
from mlflow import MlflowClient

from tests.servers.mlflow_servers import BUCKET, MlflowServer, PostgresServer, S3Server, s3_keys
from yolact_ops.settings.params import Params
from yolact_ops.tracking.runs import start_run


def test_metrics_are_in_postgresql_and_files_in_the_bucket(
    params: Params, on_server: MlflowServer, postgres: PostgresServer, s3: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text("page")
    with start_run(params, tmp_path / "run.json") as tracker:
        tracker.log_metrics({"loss": 0.1}, step=7)
        tracker.log_artifact(tmp_path / "page.html", "reports")
    with psycopg2.connect(postgres.address) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT step, value FROM metrics WHERE run_uuid = %s AND key = 'loss'", (tracker.run_id,))
        assert cursor.fetchall() == [(7, 0.1)]
    connection.close()
    (key,) = [key for key in s3_keys(s3, "artifacts/") if tracker.run_id in key]
    assert key.endswith(f"{tracker.run_id}/artifacts/reports/page.html")
    assert (s3.folder / BUCKET / key).read_text() == "page"
    assert MlflowClient(on_server.address).get_run(tracker.run_id).info.status == "FINISHED"
