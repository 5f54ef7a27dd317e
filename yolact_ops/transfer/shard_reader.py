"""Read shards straight from S3, by ranges, with a bounded cache on the local disk.

Training reads images in random order, and all of them once an epoch. So the unit is one image; what is cached stays,
until the limit, because replacing it would only lower the share of hits; and the images of the next batches are fetched
while the present one is decoded.

A request for 57 kB takes boto3 1.5 ms of CPU time, one to a signed address 0.2 with Python's own HTTP client; decoding
a JPEG of that size takes 0.9. So a shard's address is signed once for many ranges, and boto3 itself makes a request
only after a failure, or through a proxy.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import ssl
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies
from urllib3.exceptions import HTTPError

from yolact.data.shards import Part
from yolact_ops.transfer.download import FIRST_PAUSE, MAX_TRIES
from yolact_ops.transfer.storage import THREADS, BrokenBodyError, S3Address, download_error, make_client

log = logging.getLogger(__name__)

SIGNED_FOR, SIGNED_AGAIN_AFTER = 3600, 1800
"""Seconds that a signed address is valid, and after which it is signed again."""

TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""

MOST_AHEAD = 1024
"""Parts that are fetched ahead and not yet read; older ones are forgotten, as those of an epoch that was stopped."""


class S3Shards:
    """A `yolact.data.shards.ShardReader` of an S3 server; processes that are forked later share its cache.

    Args:
        address: ``s3://bucket/prefix``, the prefix of the shards.
        cache: folder for images; created if necessary, and kept for the next run.
        limit: maximum of the cache's size, bytes; 0: no cache. Other readers of the folder do not count.
    """

    def __init__(self, address: str, cache: Path, limit: int) -> None:
        self._address = S3Address.parse(address)
        self._cache = cache
        self._limit = limit
        self._used = multiprocessing.Value("q", _size_of(cache) if limit else 0)
        self._own: _Connection | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_own": None}

    def read(self, part: Part) -> bytes:
        """The bytes of a part.

        Raises:
            DownloadError: the server cannot be reached, or refuses.
        """
        connection = self._connection()
        ahead = connection.ahead.pop(part, None)
        return ahead.result() if ahead is not None else self._get(connection, part)

    def fetch_ahead(self, parts: Iterable[Part]) -> None:
        """Begin to fetch parts that will be read soon; does not wait."""
        connection = self._connection()
        for part in parts:
            if part not in connection.ahead:
                connection.ahead[part] = connection.pool.submit(self._get, connection, part)
        while len(connection.ahead) > MOST_AHEAD:
            connection.ahead.pop(next(iter(connection.ahead))).cancel()

    def location(self, shard: str) -> str:
        """The address of a shard."""
        return str(self._address_of(shard))

    def _address_of(self, shard: str) -> S3Address:
        prefix = self._address.key
        return S3Address(self._address.bucket, f"{prefix}/{shard}" if prefix else shard)

    def _connection(self) -> _Connection:
        """This process's connection: sockets and threads of another one are of no use after a fork."""
        if self._own is None or self._own.process != os.getpid():
            self._own = _Connection()
        return self._own

    def _get(self, connection: _Connection, part: Part) -> bytes:
        path = self._cached_path(part)
        if self._limit:
            try:
                data = path.read_bytes()
            except OSError:
                data = b""
            if part.is_in(data):
                return data
        data = connection.fetch(self._address_of(part.shard), part)
        if self._limit and part.is_in(data):
            self._keep(path, data)
        return data

    def _cached_path(self, part: Part) -> Path:
        name = hashlib.sha256(repr((str(self._address), *part)).encode()).hexdigest()[:32]
        return self._cache / name[:2] / name

    def _keep(self, path: Path, data: bytes) -> None:
        with self._used.get_lock():
            if self._used.value + len(data) > self._limit:
                return
            self._used.value += len(data)
        try:  # neither renamed nor flushed: a file that is not whole has another checksum, and is fetched again
            try:
                file = path.open("wb", buffering=0)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = path.open("wb", buffering=0)
            with file:
                file.write(data)
        except OSError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            log.warning("%s: %s: images from %s are not cached any more", self._cache, error, self._address)
            with self._used.get_lock():
                self._used.value = self._limit


class _Opened(threading.local):
    """The connections of each thread."""

    def __init__(self) -> None:
        self.by_server: dict[str, HTTPConnection] = {}


class _Connection:
    """Requests of one process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.ahead: dict[Part, Future[bytes]] = {}
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="shards")
        self._client = make_client()
        self._signer = make_client("s3v4")  # boto3 signs addresses in an older form, which not every server accepts
        endpoint = str(self._client.meta.endpoint_url)
        self._is_direct = urlsplit(endpoint).scheme not in get_environ_proxies(endpoint)
        self._tls: ssl.SSLContext | None = None
        if endpoint.startswith("https:"):
            self._tls = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True))
        self._opened = _Opened()
        self._signed: dict[S3Address, tuple[SplitResult, float]] = {}
        self._lock = threading.Lock()

    def fetch(self, address: S3Address, part: Part) -> bytes:
        """Request a part of a shard.

        Raises:
            DownloadError: see `S3Shards.read`.
        """
        span = f"bytes={part.offset}-{part.offset + part.length - 1}"
        try:
            if self._is_direct and (data := self._request_signed(address, span)) is not None:
                return data
            for failed in range(1, MAX_TRIES):
                try:
                    return self._request(address, span)
                except (*BrokenBodyError, HTTPClientError) as error:
                    log.warning("%s: %s; retrying", address, type(error).__name__)
                    time.sleep(FIRST_PAUSE * 2 ** (failed - 1))
            return self._request(address, span)
        except (ClientError, BotoCoreError, HTTPError, OSError) as error:
            raise download_error(error, address, self._client) from None

    def _request_signed(self, address: S3Address, span: str) -> bytes | None:
        """The range by a signed address; None if it is refused or the connection breaks: `_request` finds out why."""
        url = self._url_of(address)
        connection = self._connection_to(url)
        try:
            connection.request("GET", f"{url.path}?{url.query}", headers={"Range": span})
            response = connection.getresponse()
            data = response.read()
        except (OSError, HTTPException):
            connection.close()  # the next request opens it again
            return None
        # Not by the status alone: rclone answers 200 instead of 206. A cut connection may look like the end.
        is_range = response.status < 300 and "Content-Range" in response.headers
        is_whole = len(data) == int(response.headers.get("Content-Length", -1))
        return data if is_range and is_whole else None

    def _connection_to(self, url: SplitResult) -> HTTPConnection:
        """This thread's connection to the server of an address."""
        if url.netloc not in self._opened.by_server:
            host, port = str(url.hostname), url.port
            self._opened.by_server[url.netloc] = (
                HTTPConnection(host, port, timeout=TIMEOUT)
                if self._tls is None
                else HTTPSConnection(host, port, timeout=TIMEOUT, context=self._tls)
            )
        return self._opened.by_server[url.netloc]

    def _request(self, address: S3Address, span: str) -> bytes:
        answer = self._client.get_object(Bucket=address.bucket, Key=address.key, Range=span)
        data: bytes = answer["Body"].read()
        return data

    def _url_of(self, address: S3Address) -> SplitResult:
        with self._lock:
            signed = self._signed.get(address)
            if signed is None or time.monotonic() - signed[1] > SIGNED_AGAIN_AFTER:
                place = {"Bucket": address.bucket, "Key": address.key}
                url = self._signer.generate_presigned_url("get_object", place, ExpiresIn=SIGNED_FOR)
                signed = self._signed[address] = urlsplit(url), time.monotonic()
            return signed[0]


def _size_of(folder: Path) -> int:
    """Bytes of the files below a folder, which need not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
