"""Connection to a Kubeflow Pipelines server: addresses, credentials, time-outs, retries, clear errors.

Requests use the SDK's generated client (``kfp_server_api``), not the ``kfp.Client`` built on it. ``kfp.Client`` waits
for a response without a time-out, retries a refused health check for 25 seconds and logs a traceback each time, keeps a
namespace in a file in the home folder, cannot name a pipeline's first version, and ignores the caching option when it
runs an uploaded version.
"""

from __future__ import annotations

import functools
import json
import shlex
import subprocess
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import kfp_server_api
import urllib3
from kfp.client.token_credentials_base import read_token_from_file
from kfp_server_api import ApiException
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from yolact.errors import YolactError

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""

ANSWER_TIMEOUT = 60.0
"""Seconds to wait for the start of a response."""

RETRIES = 3
"""Retries of a failed request."""

BACKOFF = 0.5
"""Seconds before the second retry (the first is immediate); each later wait is twice as long."""

BUSY = (429, 500, 502, 503, 504)
"""HTTP status codes after which the same request may succeed."""

NOT_CARRIED_OUT = (429,)
"""HTTP status codes that the server, or a proxy before it, returns without having worked on the request."""

FINISHED = (*NOT_CARRIED_OUT, 500, 503)
"""HTTP status codes that the server itself returns when it is done with a request, in part or as a whole. The other
codes of `BUSY` come from a proxy that timed out: the server may still be working."""

TOKEN_SECONDS = 300.0
"""Age at which a command's token is replaced: half of the shortest life that Kubernetes gives a token."""

TOKEN_COMMAND_TIMEOUT = 60.0
"""Seconds that a command may take to print a token."""

MESSAGE_LENGTH = 600
"""Maximum number of characters shown of a server's own message."""

IN_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod finds its namespace."""

T = TypeVar("T")


class ClusterError(YolactError, RuntimeError):
    """The server is unreachable, refuses, or does not have what was requested."""

    def __init__(self, message: str, *, status: int | None = None, may_be_done: bool = False) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status code of the response; None if there was none."""
        self.may_be_done = may_be_done
        """The server may have carried out the request anyway."""


@dataclass(frozen=True)
class Connection:
    """The server's address and the caller's credentials."""

    host: str
    """Address of the API, without ``/apis/v2beta1``."""
    namespace: str | None = None
    """Kubernetes namespace; required by a multi-user server."""
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    """File with a token, read for each request, so an expired token can be replaced while a command waits."""
    token_command: str | None = None
    """Command that prints a token; run again when its last token is `TOKEN_SECONDS` old."""
    cookie: str | None = field(default=None, repr=False)
    """A browser's session, ``NAME=VALUE``, for a server behind a login page."""
    ca_cert: Path | None = None
    """Certificates to trust, PEM, instead of Mozilla's list."""
    ui_host: str | None = None
    """Address of the web interface if it is not ``host``."""

    @property
    def url(self) -> str:
        """The host with a scheme (``https`` if none was given) and without a slash at the end."""
        host = self.host.strip()
        return (host if "://" in host else f"https://{host}").rstrip("/")

    @property
    def renews_tokens(self) -> bool:
        """Whether a token that has expired is replaced by a new one."""
        return not self.token and bool(self.token_file or self.token_command)

    @property
    def ui_url(self) -> str:
        """Address of the web interface."""
        return (self.ui_host or self.url).strip().rstrip("/")

    def run_address(self, run_id: str) -> str:
        """Address of a run in the web interface."""
        return f"{self.ui_url}/#/runs/details/{run_id}"


class Api(kfp_server_api.ApiClient):
    """The generated client with time-outs, retries and checked responses; raises only `ClusterError`.

    Only ``GET`` is retried (failed connections are retried for all requests, because nothing was sent). Redirects are
    not followed: their targets are login pages, and they would turn a ``POST`` into a ``GET``.
    """

    def __init__(self, connection: Connection, retries: int | None = None) -> None:
        """Prepare the client; sends nothing yet. ``retries`` is `RETRIES` if None."""
        self.connection = connection
        retries = RETRIES if retries is None else retries
        super().__init__(_configuration(connection, retries), cookie=connection.cookie)

    def request(self, method: str, url: str, **kwargs: Any) -> Any:
        """See `kfp_server_api.ApiClient.request`, whose callers always name its first parameters."""
        kwargs["_request_timeout"] = kwargs.get("_request_timeout") or (CONNECT_TIMEOUT, ANSWER_TIMEOUT)
        try:
            answer = super().request(method, url, **kwargs)
        except ApiException as error:
            raise self._refusal(error, method, url) from error
        except (HTTPError, LocationValueError) as error:
            raise self._no_answer(error, method) from error
        kind = answer.getheader("content-type") or ""
        if "html" in kind:
            raise ClusterError(
                f"{self.connection.url} answers with a web page, not with the API of Kubeflow Pipelines: a login page, "
                "or the address lacks a path. Kubeflow's own address ends in /pipeline; "
                f"behind a login, give a token or a cookie. {_how_to_get_a_token(self.connection)}"
            )
        return answer

    def get_text(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """The response to a request that the generated client has no method for.

        Raises:
            ClusterError: as all methods.
        """
        self.call_api(path, "GET", {}, list((query or {}).items()), {}, auth_settings=["Bearer"])
        return str(self.last_response.data)

    def _refusal(self, error: ApiException, method: str, url: str) -> ClusterError:
        """The server's response as an error that says what to do."""
        status = int(error.status or 0)
        if status == 401 and isinstance(self.configuration.refresh_api_key_hook, _TokenCommand):
            self.configuration.refresh_api_key_hook.forget()
        if status == 0:  # the generated client's own words for a TLS failure
            return ClusterError(_explain_tls(self.connection, str(error.reason)))
        said = self._hide_secrets(_server_message(error))
        advice = _advice(status, self.connection, is_health="/healthz" in url)
        what = f"{self.connection.url} answers {status} {error.reason or ''}".rstrip()
        return ClusterError(
            ". ".join(part.rstrip(".") for part in (f"{what}{f': {said}' if said else ''}", advice) if part) + ".",
            status=status,
            may_be_done=method != "GET" and status >= 500,
        )

    def _no_answer(self, error: Exception, method: str) -> ClusterError:
        """A failed connection as an error that says what to do."""
        cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        never_sent = (SSLError, NewConnectionError, ConnectTimeoutError, ProxyError, LocationValueError)
        return ClusterError(
            self._hide_secrets(_explain_connection(self.connection, cause)),
            may_be_done=method != "GET" and not isinstance(cause, never_sent),
        )

    def _hide_secrets(self, text: str) -> str:
        for secret in (self.connection.token, self.connection.cookie, self.configuration.api_key.get("authorization")):
            if secret:
                text = text.replace(secret, "***")
        return text


def create(make: Callable[[], T], find: Callable[[], T | None], *, repeat_after: Container[int | None] = FINISHED) -> T:
    """Create an object on the server exactly once, even if a response gets lost.

    If the request may have been carried out, or the name is taken (409), look whether the object exists. Send the
    request again only after the statuses in ``repeat_after``; otherwise look several times and then raise the error.

    Args:
        make: sends the request.
        find: looks for the object; returns None if it does not exist.
        repeat_after: HTTP status codes. `FINISHED` suits objects whose name the server allows only once;
            `NOT_CARRIED_OUT` those that a second request would create a second time.

    Raises:
        ClusterError: the request was refused, had no response, or failed `RETRIES` times. With ``may_be_done`` set, the
            object may exist although it was not found.
    """
    failure: ClusterError | None = None
    for attempt in range(RETRIES + 1):
        if failure is None or failure.status in repeat_after:
            try:
                return make()
            except ClusterError as error:
                if not error.may_be_done and error.status not in (409, *NOT_CARRIED_OUT):
                    raise
                failure = error
        try:
            found = find()
        except ClusterError:  # the server is still in trouble: the first failure says more
            found = None
        if found is not None:
            return found
        if failure.status == 409 or attempt == RETRIES:
            break
        time.sleep(BACKOFF * 2**attempt)
    assert failure is not None
    if not failure.may_be_done or failure.status in repeat_after:
        raise failure
    raise ClusterError(
        f"{failure} It may have been created anyway: check before you try again.",
        status=failure.status,
        may_be_done=True,
    ) from failure


def find_namespace(connection: Connection) -> str | None:
    """The given namespace, or that of the pod in which this runs."""
    if connection.namespace:
        return connection.namespace
    try:
        return IN_POD_NAMESPACE.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _configuration(connection: Connection, retries: int) -> kfp_server_api.Configuration:
    configuration = kfp_server_api.Configuration(host=connection.url)
    configuration.retries = urllib3.Retry(
        total=retries,
        redirect=0,
        raise_on_redirect=False,
        status_forcelist=BUSY,
        raise_on_status=False,
        allowed_methods={"GET"},
        backoff_factor=BACKOFF,
        respect_retry_after_header=False,
    )
    if connection.ca_cert:
        configuration.ssl_ca_cert = str(connection.ca_cert)
    if connection.token:
        configuration.api_key["authorization"] = connection.token
    elif connection.token_file:
        configuration.api_key["authorization"] = "read from the file before each request"
        configuration.refresh_api_key_hook = functools.partial(_read_token, connection.token_file)
    elif connection.token_command:
        configuration.api_key["authorization"] = "printed by the command"
        configuration.refresh_api_key_hook = _token_command(connection.token_command)
    configuration.api_key_prefix["authorization"] = "Bearer"
    return configuration


def _read_token(file: Path, configuration: kfp_server_api.Configuration) -> None:
    try:
        configuration.api_key["authorization"] = read_token_from_file(str(file))
    except OSError as error:
        raise ClusterError(f"--token-file {file}: {error.strerror or error}") from error


class _TokenCommand:
    """Runs the command that prints a token, if its last token is too old."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._program = command.split(maxsplit=1)[0] if command.strip() else ""  # what follows may hold a password
        self._renew_at = 0.0

    def forget(self) -> None:
        """Run the command before the next request: the server refused the token."""
        self._renew_at = 0.0

    def __call__(self, configuration: kfp_server_api.Configuration) -> None:
        if time.monotonic() < self._renew_at:
            return
        try:
            done = subprocess.run(
                shlex.split(self._command), capture_output=True, text=True, timeout=TOKEN_COMMAND_TIMEOUT, check=False
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise ClusterError(f"--token-command {self._program} ...: {error}") from error
        token = done.stdout.strip()
        if done.returncode or not token:
            said = done.stderr.strip().splitlines()[-1:] or ["printed nothing"]
            raise ClusterError(f"--token-command {self._program} ...: exit code {done.returncode}: {said[0]}")
        configuration.api_key["authorization"] = token
        self._renew_at = time.monotonic() + TOKEN_SECONDS


_token_command = functools.cache(_TokenCommand)
"""One for all clients of a process, so that they share its token."""


def _server_message(error: ApiException) -> str:
    """The server's message in the body of an error response, on one line, at most `MESSAGE_LENGTH` long."""
    body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        answer = json.loads(body)
        text = next(str(answer[key]) for key in ("message", "error_message", "error") if answer.get(key))
    except (ValueError, AttributeError, StopIteration):
        text = "" if "<html" in body.lower() else body
    text = " ".join(text.split())
    return text if len(text) <= MESSAGE_LENGTH else f"{text[:MESSAGE_LENGTH]} ..."


def _advice(status: int, connection: Connection, *, is_health: bool) -> str:
    """What to do about an HTTP status code; empty if there is only the server's own message."""
    if 300 <= status < 400:
        return f"It redirects to another page, probably a login page. {_how_to_get_a_token(connection)}"
    if status == 401:
        given = connection.token or connection.token_file or connection.token_command or connection.cookie
        what = "The token or cookie is invalid or has expired" if given else "It requires authentication"
        return f"{what}. {_how_to_get_a_token(connection)}"
    if status == 403:
        where = f"in namespace {connection.namespace}" if connection.namespace else "there"
        return (
            f"You may not do this {where}. Choose your own --namespace, or ask its owner for the role of a contributor "
            "(kubeflow-edit)"
        )
    if status == 404 and is_health:
        return (
            "There is no API of Kubeflow Pipelines at this address. Kubeflow's own address ends in /pipeline "
            "(https://HOST/pipeline); for Kubeflow Pipelines alone give the address of its web page, without what "
            "follows #"
        )
    if status in BUSY:
        return (
            "The server has failed or is overloaded. Try again later; "
            "its log: `kubectl -n kubeflow logs deployment/ml-pipeline`"
        )
    return ""


def _how_to_get_a_token(connection: Connection) -> str:
    namespace = connection.namespace or "NAMESPACE"
    return (
        "With a token that is renewed while a command waits: --token-command "
        f"'kubectl -n {namespace} create token default-editor --audience pipelines.kubeflow.org'. Also possible: "
        "--token-file FILE, read for each request, or the token in KF_PIPELINES_TOKEN"
    )


def _explain_connection(connection: Connection, cause: Exception) -> str:
    url = connection.url
    forward = (
        "From outside the cluster: `kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80`, "
        "then --host http://127.0.0.1:8080."
    )
    if isinstance(cause, LocationValueError):
        return f"--host {connection.host}: not an address. It looks like https://HOST/pipeline. {forward}"
    if isinstance(cause, NameResolutionError):
        return f"{url}: no such host. Check the spelling, and your VPN. {forward}"
    if isinstance(cause, SSLError):
        return _explain_tls(connection, str(cause))
    if isinstance(cause, NewConnectionError):
        return f"{url}: no connection ({_reason(cause)}). Is the server, or the port forward, running? {forward}"
    if isinstance(cause, ConnectTimeoutError):
        return f"{url}: no connection in {CONNECT_TIMEOUT:g} s. Check the address, firewall and VPN. {forward}"
    if isinstance(cause, ReadTimeoutError):
        return (
            f"{url}: no answer in {ANSWER_TIMEOUT:g} s. Is the server overloaded? Its log: "
            "`kubectl -n kubeflow logs deployment/ml-pipeline`."
        )
    return f"{url}: the connection broke ({_reason(cause)}). Does the address begin with the right http:// or https://?"


def _explain_tls(connection: Connection, said: str) -> str:
    url = connection.url
    lowered = said.lower()
    if "wrong_version_number" in lowered or "record layer" in lowered or "unknown_protocol" in lowered:
        return f"{url}: does not speak TLS. Did you mean http://?"
    if "hostname mismatch" in lowered or "not valid for" in lowered or "doesn't match" in lowered:
        return f"{url}: the server's certificate is for another host name. Use the name that is in the certificate."
    if "no certificate or crl found" in lowered.replace("_", " ") or "pem lib" in lowered:
        return f"--ssl-ca-cert {connection.ca_cert}: has no certificate in PEM format (-----BEGIN CERTIFICATE-----)."
    if "has expired" in lowered:
        return f"{url}: the server's certificate has expired. Its administrator has to renew it."
    if "certificate verify failed" in lowered:
        trusted = connection.ca_cert or "Mozilla's list"
        return (
            f"{url}: the server's certificate is signed by nobody in {trusted} (self-signed, or by your organisation). "
            "Get the certificate of its authority from the administrator, and name it with --ssl-ca-cert FILE.pem."
        )
    return f"{url}: TLS failed ({said})."


def _reason(cause: Exception) -> str:
    """The operating system's message, without urllib3's wrapping."""
    inner = cause.__cause__ or cause.__context__
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror.lower()
    last = cause.args[-1] if cause.args else cause
    return str(last).rpartition(": ")[2] or type(cause).__name__
