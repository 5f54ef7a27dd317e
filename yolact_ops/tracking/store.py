"""The MLflow store: its address, a connected client, and the classes of its errors.

MLflow is imported when first needed, with telemetry, links and progress bars off unless the environment says otherwise.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.errors import EX_UNAVAILABLE, YolactError
from yolact_ops.lineage.redaction import redact, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Defaults of MLflow's environment variables."""

_FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""An unavailable server is reported within seconds; later calls keep MLflow's own timeouts (minutes)."""


class TrackingError(YolactError):
    """The tracking store is unavailable, refuses, or lacks something; the message names its URI."""


class StoreUnavailableError(TrackingError):
    """The tracking or artifact store cannot be reached, or has a problem that may be temporary."""

    exit_code = EX_UNAVAILABLE


class Failure(Enum):
    """Why the store did not accept an entry."""

    UNAVAILABLE = "unavailable"
    """Unreachable, overloaded or broken: a retry may succeed."""
    REFUSED = "refused"
    """Authentication or permission failure, or the run or the bucket is missing: the user can fix it."""
    INVALID = "invalid"
    """The entry itself is invalid: a retry is useless."""


def failure_of(error: BaseException) -> Failure:
    """Classify an error of the tracking or artifact store; unknown errors count as refusals."""
    from botocore.exceptions import BotoCoreError, ClientError
    from requests.exceptions import (  # type: ignore[import-untyped]
        InvalidSchema,
        InvalidURL,
        MissingSchema,
        RequestException,
        SSLError,
    )
    from sqlalchemy.exc import DBAPIError

    from yolact_ops.s3_errors import request_may_pass, unwrapped

    error = unwrapped(error)
    if isinstance(error, ClientError | BotoCoreError):
        # Never invalid: S3 answers 400 to an unknown key or a wrong clock, not because of the file.
        return Failure.UNAVAILABLE if request_may_pass(error) else Failure.REFUSED
    status = _http_status(error)
    if status is not None:
        if status in (408, 429) or status >= 500:
            return Failure.UNAVAILABLE
        return Failure.INVALID if status in (400, 409, 413, 422) else Failure.REFUSED
    if isinstance(error, SSLError | InvalidSchema | InvalidURL | MissingSchema):
        return Failure.REFUSED
    unavailable = isinstance(error, RequestException | DBAPIError | OSError)
    return Failure.UNAVAILABLE if unavailable else Failure.REFUSED


def _http_status(error: BaseException) -> int | None:
    """HTTP status of an error, or the one equivalent to MLflow's error code; None if there is none."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import HTTPError

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    if isinstance(error, HTTPError) and error.response is not None:
        return int(error.response.status_code)
    return None


def reason_of(error: BaseException) -> str:
    """The first line of an error, without credentials; of a database's error what its driver says."""
    from sqlalchemy.exc import DBAPIError

    for wrapped in (error, error.__cause__):
        if isinstance(wrapped, DBAPIError) and wrapped.orig is not None:
            error = wrapped.orig
            break
    return (redact(str(error)).strip().partition("\n")[0] or type(error).__name__)[:500]


def store_errors() -> tuple[type[Exception], ...]:
    """Exceptions of the tracking store, its database driver and the artifact store."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, RequestException, Boto3Error, BotoCoreError, ClientError, ImportError)


@contextmanager
def reported(doing: str) -> Iterator[None]:
    """Turn errors of the tracking or artifact store into a `TrackingError` that says how to fix it.

    Raises:
        StoreUnavailableError: the store is unavailable.
        TrackingError: it refuses.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, store_errors()):
            raise
        is_unavailable = failure_of(error) is Failure.UNAVAILABLE
        raise (StoreUnavailableError if is_unavailable else TrackingError)(
            f"could not {doing} at {shown_uri()}: {reason_of(error)}\n{_advice()}"
        ) from error


def _advice() -> str:
    """What to check if the store fails."""
    if (uri := tracking_uri()).startswith("sqlite:"):
        return f"Check that {uri.removeprefix('sqlite:///')} can be read and written and that its disk has room."
    return (
        "Check that the MLflow server runs and that MLFLOW_TRACKING_URI is right (with a login, also "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN), or unset "
        "MLFLOW_TRACKING_URI to track in the file mlflow.db here."
    )


def tracking_uri() -> str:
    """Address of the tracking store, including credentials.

    The default has an absolute path: MLflow keeps one store per address even if the working folder changes.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


def shown_uri() -> str:
    """Address of the tracking store for files and messages: no credentials, and a relative path by default."""
    return without_credentials(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI)


def connect() -> MlflowClient:
    """A client of the tracking store, after a first successful request.

    Raises:
        StoreUnavailableError: the store does not answer within seconds.
        TrackingError: it refuses.
    """
    with _one_at_a_time():
        client = new_client()
        with reported("reach the tracking store"), default_environment(_FIRST_CONTACT):
            client.search_experiments(max_results=1)
    return client


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one process at a time connect to a SQLite file: several that create its tables at once would fail."""
    path = _sqlite_file(tracking_uri())
    if path is None or not os.access(path.parent, os.W_OK):
        yield
        return
    from filelock import FileLock

    quiet_mlflow()
    with reported("reach the tracking store"):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # takes seconds, in which others need not wait

    lock = path.with_name(f"{path.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # filelock notices in the processes that wait


def _sqlite_file(address: str) -> Path | None:
    """The file of a SQLite store; None for other stores."""
    if not address.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url

    with reported("reach the tracking store"):
        path = make_url(address).database
    return Path(path) if path and path != ":memory:" else None


def new_client() -> MlflowClient:
    """A client of the tracking store, before any request.

    Raises:
        TrackingError: the address is invalid, or the store's file cannot be written.
    """
    quiet_mlflow()
    _check_default_store()
    with reported("reach the tracking store"):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=tracking_uri())


def _check_default_store() -> None:
    """Refuse a read-only store file here: SQLAlchemy would retry for a minute and blame the query."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return
    store = Path("mlflow.db").resolve()
    blocked = next((p for p in (store.parent, store) if p.exists() and not os.access(p, os.W_OK)), None)
    if blocked is not None:
        raise TrackingError(
            f"{blocked}: cannot be written, so runs cannot be tracked in mlflow.db here. Give yourself write "
            "permission, or set MLFLOW_TRACKING_URI to an MLflow server."
        )


def quiet_mlflow() -> None:
    """Switch off MLflow's telemetry, links, progress bars and routine log lines, unless set by the user."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of errors that it raises too
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@contextmanager
def default_environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are unset, and unset them at the end."""
    missing = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
