"""Which failed requests to S3 a retry may mend: the same for downloads, checkpoints and MLflow's artifacts."""

from __future__ import annotations

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)


def request_may_pass(error: ClientError | BotoCoreError) -> bool:
    """Whether a failed request may succeed later: the server cannot be reached, breaks off or has a problem, or the
    file changed meanwhile."""
    if isinstance(error, ClientError):
        code, status = answer_of(error)
        return status is None or status >= 500 or status in (408, 409, 412, 429) or code == "RequestTimeout"
    if isinstance(error, SSLError):
        return False
    return isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError)


def unwrapped(error: BaseException) -> BaseException:
    """The error of the request, in which boto3's transfers of files wrap it."""
    inner = error.__cause__ or error.__context__
    return inner if isinstance(error, Boto3Error) and inner is not None else error


def answer_of(error: ClientError) -> tuple[str, int | None]:
    """Code of the error and HTTP status of the server's answer."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code, error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
