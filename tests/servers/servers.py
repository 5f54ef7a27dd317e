"""Servers that fail on purpose, and a real S3 server, for the tests of downloads."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from yolact_bench.studies.s3_server import KEY, SECRET, NoServerError, ServerError
from yolact_bench.studies.s3_server import free_port as free_port
from yolact_bench.studies.s3_server import s3_server as serve_s3


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of an HTTP server on this machine, which runs in a thread until the block ends."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@dataclass
class FileServer:
    """One file over HTTP with ranges; a test sets what fails."""

    content: bytes
    etag: str = '"one"'
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    """For each coming response with a body: bytes after which the connection is cut; none left: not cut."""
    statuses: list[int] = field(default_factory=list)
    """For each coming request: a status to return instead; none left: a normal response."""
    claimed: int | None = None
    """A wrong Content-Length to send."""
    login: str = ""
    """``USER:PASSWORD`` that requests must have."""
    requests: list[str] = field(default_factory=list)
    """The Range header of each request so far, or an empty text."""
    sent: int = 0
    """Bytes of bodies."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/set/voc.tar?token=hidden"


@contextmanager
def serving(server: FileServer) -> Iterator[FileServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            server.requests.append(wanted)
            login = base64.b64encode(server.login.encode()).decode()
            if server.login and self.headers.get("Authorization") != f"Basic {login}":
                self._answer(401, b"", {"WWW-Authenticate": "Basic"})
                return
            if server.statuses:
                self._answer(server.statuses.pop(0), b"no", {})
                return
            size = len(server.content)
            start = 0
            headers = {"ETag": server.etag} if server.etag else {}
            if wanted and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= size:
                    self._answer(416, b"", {"Content-Range": f"bytes */{size}"})
                    return
                headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            self._answer(206 if "Content-Range" in headers else 200, server.content[start:], headers)

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            length = server.claimed if server.claimed is not None and status == 200 else len(body)
            for name, value in {"Content-Length": str(length), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            cut = server.cut_after.pop(0) if server.cut_after and status < 300 else len(body)
            try:
                self.wfile.write(body[:cut])
                server.sent += len(body[:cut])
            except ConnectionError:  # a reader that only asked for the headers
                return
            if cut < len(body) or length != len(body):
                self.close_connection = True

    with listening(Handler) as server.port:
        yield server


@contextmanager
def s3_server(folder: Path, *options: str) -> Iterator[str]:
    """See `yolact_bench.studies.s3_server.s3_server`.

    Skips where there is no rclone; an rclone that is there but does not serve fails the test.
    """
    with ExitStack() as stack:
        try:
            address = stack.enter_context(serve_s3(folder, *options))
        except NoServerError as error:
            pytest.skip(str(error))
        except ServerError as error:
            pytest.fail(str(error))
        yield address


def use_s3(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have boto3 ask the server at this address, with its keys and no settings of the user's."""
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


class CuttingProxy:
    """Passes TCP connections on to a server, until a number of bytes has come back; then it may cut them all.

    It may also answer in the server's place, or hold back what the server says.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self.passed = 0
        """Bytes from the server so far."""
        self.cuts_at: list[int] = []
        """Values of ``passed`` at which the connection that reaches it is cut, in rising order."""
        self.dead_after: int | None = None
        """Value of ``passed`` from which on every connection is cut: the server is gone."""
        self.dead_when: Callable[[], bool] | None = None
        """What is asked before anything is passed on; once it says so, the server is gone."""
        self.status: int | None = None
        """HTTP status that the server answers with: connections are cut, and new ones not passed on."""
        self.delay = 0.0
        """Seconds for which each piece of what the server says is held back."""
        threading.Thread(target=self._accept, daemon=True).start()

    def fail(self, fault: str, after: int = 0) -> None:
        """Have the network fail when so many more bytes have come back from the server.

        Args:
            fault: ``cut``; ``503``: the status of each answer; ``slow``: each answer comes two seconds later.
            after: bytes.
        """
        start = self.passed

        def begun() -> bool:
            if self.passed - start < after:
                return False
            self.status = 503 if fault == "503" else None
            self.delay = 2.0 if fault == "slow" else 0.0
            return fault == "cut"

        self.dead_when = begun

    def heal(self) -> None:
        """End what `fail` began."""
        self.dead_when, self.status, self.delay = None, None, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the accept that waits, whose number the next socket gets
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_dead():
                near.close()
                continue
            if self.status is not None:
                threading.Thread(target=self._answer, args=(near, self.status), daemon=True).start()
                continue
            far = socket.create_connection(self._target)
            for source, sink, count in ((near, far, self._may_go_on), (far, near, self._count)):
                threading.Thread(target=self._pump, args=(source, sink, count), daemon=True).start()

    def _is_dead(self) -> bool:
        if self.dead_when is not None and self.dead_when():
            return True
        return self.dead_after is not None and self.passed >= self.dead_after

    def _may_go_on(self, _: int) -> bool:
        """Whether the connection may."""
        with self._lock:
            return not self._is_dead() and self.status is None

    def _count(self, size: int) -> bool:
        """Whether the connection may go on."""
        time.sleep(self.delay)
        with self._lock:
            self.passed += size
            if self.cuts_at and self.passed >= self.cuts_at[0]:
                self.cuts_at.pop(0)
                return False
            return not self._is_dead()

    @staticmethod
    def _answer(near: socket.socket, status: int) -> None:
        with suppress(OSError), near:
            near.recv(1 << 16)
            near.sendall(f"HTTP/1.1 {status} Planned\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, count: Callable[[int], bool]) -> None:
        with suppress(OSError):
            while (data := source.recv(1 << 16)) and count(len(data)):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
