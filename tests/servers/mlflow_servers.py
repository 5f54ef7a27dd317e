"""Real servers for the tests of tracking and the registry: PostgreSQL, MLflow on it, artifacts on S3.

Each starts once a session; tests keep out of each other's way by names of their own (experiments, models).
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest

from tests.servers.servers import KEY, SECRET, free_port, s3_server

BUCKET = "mlflow"
SETTINGS = ("MLFLOW_", "AWS_")
"""Beginnings of environment variables that a server must not get from the machine."""
STORES = ("MLFLOW_TRACKING", "MLFLOW_REGISTRY", "MLFLOW_RUN", "MLFLOW_EXPERIMENT", "MLFLOW_S3", "AWS_")
"""Beginnings of environment variables that say which store and which run."""


@dataclass
class S3Server:
    """A real S3 server with one bucket, `BUCKET`."""

    address: str
    folder: Path
    """The bucket is the folder of its name in here."""

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 and MLflow need to reach it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.address,
            "MLFLOW_S3_ENDPOINT_URL": self.address,
        }


@dataclass
class MlflowServer:
    """An ``mlflow server`` that can be stopped and started again on its port."""

    folder: Path
    """Its working folder, with ``log.txt``."""
    options: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers; a server that does not start fails the test."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1", *self.options],
                cwd=self.folder,
                env=inherited | quiet | dict(self.environment),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(900):
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        self.stop()
        pytest.fail(f"mlflow server did not start:\n{(self.folder / 'log.txt').read_text()[-5000:]}")

    def stop(self) -> None:
        """Kill it with its workers, as a machine that fails; does nothing when it does not run."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self.process = None


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / BUCKET).mkdir()
    with s3_server(folder) as address:
        yield S3Server(address, folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address (``postgresql://...``) of an empty database on a real PostgreSQL server.

    Skips where its programs are not installed.
    """
    with postgres_server() as address:
        yield address


@contextmanager
def postgres_server(programs: Path | None = None) -> Iterator[str]:
    """Address of an empty database on a server of its own; ``programs``: their folder, by default the newest installed.

    Skips where its programs are not installed.
    """
    if programs is None:
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        found = str(installed[-1]) if installed else shutil.which("initdb")
        if found is None:
            pytest.skip("no PostgreSQL server: apt-get install postgresql")
        programs = Path(found).resolve().parent
    # PostgreSQL does not run as root, and its user cannot enter pytest's folders.
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        (folder / "password").write_text(secret := secrets.token_hex(8))
        if user is not None:
            for path in (folder, folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        identity = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data, port = folder / "data", free_port()
        login = ["--username=tester", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256"]
        made = subprocess.run(
            [programs / "initdb", f"--pgdata={data}", *login, "--no-sync", "--locale=C.UTF-8", "--encoding=UTF8"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            **identity,
        )
        if made.returncode:
            pytest.fail(f"initdb failed:\n{made.stderr}")
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, "-p", str(port), *options],
                cwd=folder,
                stdout=log,
                stderr=log,
                **identity,
            )
        try:
            _create_database(port, secret, process, folder / "log.txt")
            yield f"postgresql://tester:{secret}@127.0.0.1:{port}/mlflow"
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            process.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _create_database(port: int, password: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg2

    login = {"host": "127.0.0.1", "port": port, "user": "tester", "password": password, "dbname": "postgres"}
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            connection = psycopg2.connect(**login, connect_timeout=5)
        except psycopg2.OperationalError:
            time.sleep(0.1)
            continue
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE mlflow")
        connection.close()
        return
    pytest.fail(f"PostgreSQL did not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def mlflow_server(postgres: str, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server on PostgreSQL that passes artifacts on to S3. A test that stops it must start it again."""
    database = postgres.replace("postgresql:", "postgresql+psycopg2:")  # SQLAlchemy 2.1 defaults to psycopg 3
    store = ["--backend-store-uri", database, "--artifacts-destination", f"s3://{BUCKET}/artifacts"]
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), store, s3.environment)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def on_server(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """The MLflow server, and an environment in which it is the tracking server."""
    for name in [name for name in os.environ if name.startswith(STORES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.address)
    return mlflow_server


def s3_keys(s3: S3Server, prefix: str = "") -> list[str]:
    """Keys of the objects in `BUCKET` that begin so."""
    client = boto3.Session(KEY, SECRET, region_name="us-east-1").client("s3", endpoint_url=s3.address)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]
