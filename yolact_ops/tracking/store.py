"""Reaching the MLflow store: its address, a client that has answered, and what its errors mean.

MLflow is imported when it is first needed, with its usage telemetry, links and progress bars switched off
unless the environment says otherwise.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.errors import YolactError
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
"""What MLflow is told unless the environment already says something else."""

_FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A server that is away is reported after seconds; later calls have MLflow's own patience (minutes)."""


class TrackingError(YolactError):
    """The tracking store cannot be reached, refuses, or lacks what it should have; names its URI."""


class StoreAwayError(TrackingError):
    """The tracking or artifact store cannot be reached, or has trouble of its own that may pass."""


class Trouble(Enum):
    """What an error of the store means for what was to be sent."""

    AWAY = "away"
    """Not there, overloaded or broken: later it may work."""
    REFUSES = "refuses"
    """It answers, but not to us: login, rights, run or bucket are not as they must be, which people can mend."""
    INVALID = "invalid"
    """It will never take what it was given."""


def trouble_of(error: BaseException) -> Trouble:
    """What an error of the tracking or artifact store means; unknown ones count as refusals."""
    status = _http_status(error)
    if status is not None:
        if status in (408, 429) or status >= 500:
            return Trouble.AWAY
        return Trouble.INVALID if status in (400, 409, 413, 422) else Trouble.REFUSES
    from botocore.exceptions import BotoCoreError
    from requests import RequestException  # type: ignore[import-untyped]
    from sqlalchemy.exc import DBAPIError

    return (
        Trouble.AWAY if isinstance(error, RequestException | BotoCoreError | DBAPIError | OSError) else Trouble.REFUSES
    )


def _http_status(error: BaseException) -> int | None:
    """The HTTP status behind an error, or the one that MLflow's or S3's code stands for; None where there is none."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import ClientError
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    if isinstance(error, HTTPError) and error.response is not None:
        return int(error.response.status_code)
    if isinstance(error, ClientError):
        # S3 says 400 also to a key that it does not know, or to a clock that is wrong: never that of a file.
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
        return 403 if status < 500 else status
    if isinstance(error, Boto3Error):  # wraps the error of the request
        inner = error.__cause__ or error.__context__
        return 500 if inner is None else _http_status(inner)
    return None


def reason_of(error: BaseException) -> str:
    """The first line of an error, without credentials."""
    return (redact(str(error)).strip().partition("\n")[0] or type(error).__name__)[:500]


def store_errors() -> tuple[type[Exception], ...]:
    """What the tracking store, its database driver and the artifact store may raise."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, RequestException, Boto3Error, BotoCoreError, ClientError, ImportError)


@contextmanager
def reported(doing: str) -> Iterator[None]:
    """Turn what the tracking or artifact store raises into a `TrackingError` that names the way out.

    Raises:
        StoreAwayError: the store cannot be reached.
        TrackingError: it refuses.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, store_errors()):
            raise
        is_away = trouble_of(error) is Trouble.AWAY
        raise (StoreAwayError if is_away else TrackingError)(
            f"could not {doing} at {shown_uri()}: {reason_of(error)}\n"
            "Check that the MLflow server runs and that MLFLOW_TRACKING_URI is right (with a login, also "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN), or unset "
            "MLFLOW_TRACKING_URI to track in the file mlflow.db here."
        ) from error


def tracking_uri() -> str:
    """Address of the tracking store, credentials included.

    The default has the absolute path: MLflow keeps one store per address, wherever the process goes.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


def shown_uri() -> str:
    """Address of the tracking store for files and messages: no credentials, no path of this machine by default."""
    return without_credentials(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI)


def connect() -> MlflowClient:
    """A client of the tracking store that has answered once.

    Raises:
        StoreAwayError: the store does not answer within seconds.
        TrackingError: it refuses.
    """
    client = new_client()
    with reported("reach the tracking store"), default_environment(_FIRST_CONTACT):
        client.search_experiments(max_results=1)
    return client


def new_client() -> MlflowClient:
    """A client of the tracking store that was not tried yet.

    Raises:
        TrackingError: the address is none, or the store's file cannot be written.
    """
    quiet_mlflow()
    _check_default_store()
    with reported("reach the tracking store"):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=tracking_uri())


def _check_default_store() -> None:
    """Refuse a store file that cannot be written before SQLAlchemy retries for a minute and blames the query."""
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
    """Switch MLflow's telemetry, links, progress bars and routine log lines off, where not set by the user."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@contextmanager
def default_environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, and take them away again at the end."""
    missing = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
