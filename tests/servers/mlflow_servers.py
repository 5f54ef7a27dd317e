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
from typing import Any

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


@dataclass
class PostgresServer:
    """A PostgreSQL server that can be stopped and started again on its port."""

    folder: Path
    """With ``data``, and ``log.txt``."""
    programs: Path
    identity: Mapping[str, Any]
    """The user that it runs as, as arguments of `subprocess.Popen`."""
    password: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """``postgresql://...`` of the database for MLflow."""
        return f"postgresql://tester:{self.password}@127.0.0.1:{self.port}/mlflow"

    def start(self) -> None:
        """Start it and wait until it answers; a server that does not start fails the test."""
        import psycopg2

        options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), *options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **self.identity,
            )
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                self.connect().close()
            except psycopg2.OperationalError:
                time.sleep(0.1)
                continue
            return
        pytest.fail(f"PostgreSQL did not start:\n{(self.folder / 'log.txt').read_text()}")

    def connect(self) -> Any:
        """A connection that administers the server."""
        import psycopg2

        login = {"host": "127.0.0.1", "port": self.port, "user": "tester", "password": self.password}
        return psycopg2.connect(**login, dbname="postgres", connect_timeout=5)

    def stop(self) -> None:
        """End it, and with it all connections: PostgreSQL's fast shutdown. Does nothing when it does not run."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
        self.process = None


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL server with an empty database. A test that stops it must start it again.

    Skips where its programs are not installed.
    """
    with postgres_server() as server:
        yield server


@contextmanager
def postgres_server(programs: Path | None = None) -> Iterator[PostgresServer]:
    """A server of its own with an empty database; ``programs``: their folder, by default the newest installed.

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
        login = ["--username=tester", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256"]
        made = subprocess.run(
            [programs / "initdb", f"--pgdata={folder / 'data'}", *login, "--no-sync", "--locale=C.UTF-8"]
            + ["--encoding=UTF8"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            **identity,
        )
        if made.returncode:
            pytest.fail(f"initdb failed:\n{made.stderr}")
        server = PostgresServer(folder, programs, identity, secret)
        server.start()
        try:
            connection = server.connect()
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("CREATE DATABASE mlflow")
            connection.close()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mlflow_server(
    postgres: PostgresServer, s3: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    """An MLflow server on PostgreSQL that passes artifacts on to S3. A test that stops it must start it again."""
    database = postgres.address.replace("postgresql:", "postgresql+psycopg2:")  # SQLAlchemy 2.1 defaults to psycopg 3
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
