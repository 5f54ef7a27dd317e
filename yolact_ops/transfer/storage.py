"""Fetch files from a bucket of any S3 server: in parallel by ranges, resumed, and only once.

The server's address, keys and region are configured as for every AWS tool: ``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, ``AWS_PROFILE``, ``~/.aws``, a role.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from yolact.errors import DataError
from yolact.files import remove_others, write_text_atomic
from yolact_ops.lineage.redaction import without_credentials
from yolact_ops.s3_errors import answer_of, request_may_pass, unwrapped
from yolact_ops.transfer.archives import is_junk, safe_name
from yolact_ops.transfer.disk import BLOCK, file_digest, require_free_disk
from yolact_ops.transfer.download import FIRST_PAUSE, MAX_TRIES, DownloadError, ServerUnavailableError

log = logging.getLogger(__name__)

PART_SIZE = 16 << 20
"""Size of a range request, bytes: the most that a broken connection can lose."""

THREADS = 16
"""Number of parallel requests: small files wait for responses, not for bandwidth."""

BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""Bucket names that botocore accepts; old buckets may have capitals and '_' (Amazon S3, "Bucket naming rules")."""

ETAG_OF_MD5 = re.compile(r"[0-9a-f]{32}(-(?P<parts>[1-9][0-9]{0,4}))?")
"""ETags made from MD5s; the number is the upload's number of parts, at most 10,000."""

_KEYS_REFUSED = ("SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken")
"""Codes of answers to access keys that the server does not accept."""

BrokenBodyError = (ResponseStreamingError, IncompleteReadError, ReadTimeoutError, HTTPError, OSError)
"""Exceptions of a connection that breaks while a body is read."""


@dataclass(frozen=True)
class S3Address:
    """``s3://bucket/key``; the key is that of a file or a prefix of files' keys."""

    bucket: str
    key: str
    """Without leading and trailing slashes; empty for the whole bucket."""

    @classmethod
    def parse(cls, text: str) -> S3Address:
        """Parse ``s3://bucket/key``.

        Raises:
            DataError: it has no bucket, or an invalid bucket name.
        """
        bucket, _, key = text.removeprefix("s3://").partition("/")
        if not bucket:
            raise DataError(f"{text!r} names no bucket. Write s3://bucket/folder or s3://bucket/file.tar.")
        if not (BUCKET_NAME.fullmatch(bucket) or bucket.startswith("arn:")):
            raise DataError(
                f"{text!r}: {bucket!r} is not a bucket name, which has only letters, digits, '.', '-' and '_'. "
                "Write s3://bucket/folder or s3://bucket/file.tar."
            )
        return cls(bucket, key.strip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class S3Object:
    """One file in a bucket."""

    key: str
    path: PurePosixPath
    """Path relative to the target folder."""
    size: int
    """Bytes."""
    etag: str
    """As sent by the server, with quotes."""


def make_client(signature_version: str | None = None) -> Any:
    """A client for the server that the environment names; None: boto3's own choice of the signature."""
    config = Config(
        signature_version=signature_version,
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=THREADS,
        retries={"mode": "standard", "max_attempts": MAX_TRIES},
    )
    session = boto3.Session()
    return session.client("s3", config=config, region_name=session.region_name or "us-east-1")


def list_objects(client: Any, address: S3Address) -> list[S3Object]:
    """The file with the address's key, or the files below it, by key; files added by file managers are skipped.

    Raises:
        DownloadError: the server cannot be reached or refuses, or there is no such file.
        DataError: a key cannot be a path inside a folder.
    """
    try:
        listed = list(_list(client, address))
    except (ClientError, BotoCoreError, OSError, ValueError) as error:
        raise download_error(error, address, client) from None
    folder = f"{address.key}/" if address.key else ""
    objects = []
    for entry in listed:
        key = entry["Key"]
        if key == address.key:
            return [S3Object(key, PurePosixPath(PurePosixPath(key).name), entry["Size"], entry["ETag"])]
        if not key.startswith(folder) or key.endswith("/"):  # a sibling with the same prefix, or a folder marker
            continue
        try:
            path = safe_name(key.removeprefix(folder))
        except ValueError as error:
            raise DataError(f"s3://{address.bucket}/{key}: the key {error}. Rename or remove it.") from None
        if path is not None and not is_junk(path):
            objects.append(S3Object(key, path, entry["Size"], entry["ETag"]))
    if not objects:
        raise DownloadError(
            f"{address}: there is no file of this name or below it ({_server(client)}). Check the "
            "spelling: names are case-sensitive."
        )
    return objects


def fetch_objects(client: Any, address: S3Address, objects: Sequence[S3Object], folder: Path) -> int:
    """Make ``folder`` contain these files and no others; files that it already has are not fetched again.

    Each file appears whole or not at all. After an error or a kill, finished files and finished parts of large ones
    are kept, and the next call resumes from them.

    Returns:
        Bytes fetched.

    Raises:
        DownloadError: a file cannot be fetched, or changed while it was.
        DataError: the disk is too full, or two keys are the same file here.
    """
    paths = {item.path for item in objects}
    if len(paths) < len(objects) or any(parent in paths for path in paths for parent in path.parents):
        raise DataError(f"{address}: two keys lead to one path, or one is a file and a folder. Rename or remove one.")
    folder.mkdir(parents=True, exist_ok=True)
    journal = _Journal(folder)
    missing = [item for item in objects if not journal.has(item)]
    journal.restrict_to(objects)
    _remove_others(folder, objects, missing)
    if not missing:
        return 0
    files = [_File(item, folder, journal) for item in missing]
    require_free_disk(folder, sum(file.remaining for file in files), f"downloading {address}")
    total = sum(item.size for item in missing)
    done = total - sum(file.remaining for file in files)
    bar = tqdm(desc=str(address), total=total, initial=done, unit="B", unit_scale=True, unit_divisor=1024, disable=None)
    with bar:
        _fetch_all(client, address, files, bar)
    _require_all(address, missing, journal)
    return total - done


def download_error(error: BaseException, address: S3Address, client: Any) -> DownloadError:
    """The error for a failed request; `ServerUnavailableError` if a retry may succeed."""
    kind = ServerUnavailableError if may_pass(error) else DownloadError
    return kind(explain(unwrapped(error), address, client))


def may_pass(error: BaseException) -> bool:
    """Whether a failed request may succeed later: what `request_may_pass` says, or the connection breaks off."""
    error = unwrapped(error)
    if isinstance(error, ClientError | BotoCoreError):
        return request_may_pass(error)
    if isinstance(error, FileNotFoundError | PermissionError) or is_disk_error(error):
        return False
    return isinstance(error, HTTPError | OSError)


def explain(error: BaseException, address: S3Address, client: Any) -> str:
    """Describe what failed in a request, where, and how to fix it."""
    where = f"{address} ({_server(client)})"
    match error:
        case NoCredentialsError() | PartialCredentialsError():
            return f"{where}: no access keys. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        case EndpointConnectionError() | ConnectTimeoutError() | ConnectionError():
            return f"{where}: the server cannot be reached. Is it running, and is AWS_ENDPOINT_URL right?"
        case ReadTimeoutError() | IncompleteReadError() | HTTPClientError() | HTTPError() | OSError():
            return f"{where}: the connection broke ({type(error).__name__}). Run it again: finished parts are kept."
        case ClientError():
            return f"{where}: {_explain_answer(error, address)}"
    return f"{where}: {error}. Check the address and the AWS settings."


def _explain_answer(error: ClientError, address: S3Address) -> str:
    code, status = answer_of(error)
    if code == "NoSuchBucket":
        return f"there is no bucket {address.bucket!r}. Check the name and AWS_ENDPOINT_URL."
    if code in _KEYS_REFUSED:
        return f"the server does not accept the keys ({code}). Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    said = str(error.response.get("Error", {}).get("Message", ""))
    if code == "RequestTimeTooSkewed" or "difference between the request time and" in said:  # with AccessDenied
        return "it refuses requests because this machine's clock and its own differ. Set the clock."
    if code == "AccessDenied" or status == 403:
        return "access is refused. Check the keys, and whether they may list and read this bucket (write, for shards)."
    if code in ("PreconditionFailed", "412"):
        return "the file changed while it was fetched. Run it again when nothing writes to it."
    if code in ("NoSuchKey", "404"):
        return "the file was removed after the folder was listed. Run it again."
    return f"the server answered {status} {code}. Try later, or ask who runs it."


def _server(client: Any) -> str:
    return without_credentials(str(client.meta.endpoint_url))


def _list(client: Any, address: S3Address) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=address.bucket, Prefix=address.key):
        yield from page.get("Contents", [])


class _Journal:
    """Record of what was received, in JSON lines, in ``.FOLDER.journal`` next to the folder: files as [path, size,
    ETag], and finished parts of large ones as [path, size, ETag, part]. Lines are only appended, so a kill loses
    at most the last.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder.with_name(f".{folder.name}.journal")
        self._lock = threading.Lock()
        self._lines: set[tuple[str | int, ...]] = set()
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        for line in text.splitlines():
            try:
                self._lines.add(tuple(json.loads(line)))
            except (ValueError, TypeError):
                continue  # truncated by a kill

    def has(self, item: S3Object) -> bool:
        path = self._folder / item.path
        return self._line(item) in self._lines and path.is_file() and path.stat().st_size == item.size

    def has_part(self, item: S3Object, part: int) -> bool:
        return (*self._line(item), part) in self._lines

    def add(self, item: S3Object, part: int | None = None) -> None:
        line = self._line(item) if part is None else (*self._line(item), part)
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            self._lines.add(line)
            file.write(json.dumps(line) + "\n")

    def forget(self, item: S3Object) -> None:
        """Forget the parts of a file."""
        with self._lock:
            self._lines = {line for line in self._lines if line[:3] != self._line(item)}
            self._rewrite()

    def restrict_to(self, objects: Sequence[S3Object]) -> None:
        """Forget all other versions and files."""
        wanted = {self._line(item) for item in objects}
        self._lines = {line for line in self._lines if line[:3] in wanted}
        self._rewrite()

    def _rewrite(self) -> None:
        write_text_atomic(self._path, "".join(json.dumps(line) + "\n" for line in sorted(self._lines, key=str)))

    @staticmethod
    def _line(item: S3Object) -> tuple[str | int, ...]:
        return (str(item.path), item.size, item.etag)


class _File:
    """A file being fetched: its parts are written in any order, and the last one completes it."""

    def __init__(self, item: S3Object, folder: Path, journal: _Journal) -> None:
        self.item = item
        self._journal = journal
        self._target = folder / item.path
        self._partial = _partial_path(folder, item)
        self._lock = threading.Lock()
        count = max(-(-item.size // PART_SIZE), 1)
        kept = self._partial.exists() and self._partial.stat().st_size == item.size
        if not kept and any(journal.has_part(item, part) for part in range(count)):
            journal.forget(item)  # parts of a file that was removed in the meantime
        self._count = count
        self.parts = [part for part in range(count) if not journal.has_part(item, part)]
        self._waiting = len(self.parts)
        self._own_etag = False

    @property
    def remaining(self) -> int:
        """Bytes still to fetch."""
        return sum(self._span(part)[1] - self._span(part)[0] for part in self.parts)

    def fetch_part(self, client: Any, bucket: str, part: int, bar: tqdm) -> None:
        """Fetch one part, retrying after broken connections."""
        for failed in range(1, MAX_TRIES + 1):
            try:
                self._transfer(client, bucket, part)
                break
            except BrokenBodyError as error:  # the library itself retries until a body begins
                if failed == MAX_TRIES or is_disk_error(error):
                    raise
                log.warning("s3://%s/%s: %s; retrying", bucket, self.item.key, type(error).__name__)
                time.sleep(FIRST_PAUSE * 2 ** (failed - 1))
        start, end = self._span(part)
        bar.update(end - start)
        with self._lock:
            self._waiting -= 1
            last = self._waiting == 0
        if last:
            self._finish(client, bucket)
        else:
            self._journal.add(self.item, part)

    def _finish(self, client: Any, bucket: str) -> None:
        """Verify the file and give it its final name."""
        self._check_digest(client, bucket)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._partial, self._target)
        if self._count > 1:
            self._journal.forget(self.item)  # the record of its parts is no longer needed
        self._journal.add(self.item)

    def _span(self, part: int) -> tuple[int, int]:
        return part * PART_SIZE, min((part + 1) * PART_SIZE, self.item.size)

    def _transfer(self, client: Any, bucket: str, part: int) -> None:
        start, end = self._span(part)
        request = {"Bucket": bucket, "Key": self.item.key, "IfMatch": self.item.etag}
        if end - start < self.item.size:
            request["Range"] = f"bytes={start}-{end - 1}"
        answer = client.get_object(**request)
        self._own_etag = answer.get("ServerSideEncryption", "AES256") != "AES256"
        with answer["Body"] as body, self._opened() as file:
            file.seek(start)
            while block := body.read(min(BLOCK, max(end - file.tell(), 1))):
                if file.tell() + len(block) > end:
                    raise DownloadError(f"s3://{bucket}/{self.item.key}: the server sent more than was requested.")
                file.write(block)
            if file.tell() != end:
                raise ConnectionAbortedError(f"{file.tell() - start:,} of {end - start:,} bytes")
            file.flush()
            os.fdatasync(file.fileno())  # the journal must not record bytes that a power failure can lose

    def _opened(self) -> Any:
        with self._lock:
            if not self._partial.exists() or self._partial.stat().st_size != self.item.size:
                self._partial.parent.mkdir(parents=True, exist_ok=True)
                with self._partial.open("wb") as file:
                    file.truncate(self.item.size)
        return self._partial.open("r+b")

    def _check_digest(self, client: Any, bucket: str) -> None:
        """Compare with the ETag if it is made from MD5s: there is no encryption with a KMS key, and it is 32 hex
        digits, or these and the number of parts that the file was uploaded in (Amazon S3, "Checking object integrity").
        """
        etag = self.item.etag.strip('"')
        if self._own_etag or not (form := ETAG_OF_MD5.fullmatch(etag)):
            return
        if form["parts"] is None:
            kind, found = "md5", file_digest(self._partial, "md5")
        else:
            kind, found = "ETag", self._etag_of_parts(client, bucket, int(form["parts"]), etag) or etag
        if found == etag:
            return
        self._partial.unlink()
        self._journal.forget(self.item)
        raise DownloadError(
            f"s3://{bucket}/{self.item.key}: the received file has the {kind} {found}, the server states {etag}. It "
            "was removed. Run it again; if it happens again, the file is damaged on the server."
        )

    def _etag_of_parts(self, client: Any, bucket: str, count: int, stated: str) -> str | None:
        """The ETag that S3 would give the file; None if the server does not know the sizes of the parts."""
        first = self._uploaded_size(client, bucket, 1, count)
        if first is None:
            return None
        even = etag_of_parts(self._partial, [first] * count)
        if even == stated:  # all but the last have the same size, as uploaded by every common tool
            return even
        rest = [self._uploaded_size(client, bucket, number, count) for number in range(2, count + 1)]
        sizes = [first, *(size for size in rest if size is not None)]
        return etag_of_parts(self._partial, sizes) if len(sizes) == count and sum(sizes) == self.item.size else None

    def _uploaded_size(self, client: Any, bucket: str, number: int, count: int) -> int | None:
        """Size of part ``number`` (from 1) of the upload, bytes; None if the server does not know it."""
        request = {"Bucket": bucket, "Key": self.item.key, "IfMatch": self.item.etag, "PartNumber": number}
        try:
            answer = client.head_object(**request)
        except ClientError:
            return None
        return int(answer["ContentLength"]) if answer.get("PartsCount") == count else None


def etag_of_parts(path: Path, sizes: Sequence[int]) -> str:
    """The ETag of a file uploaded to S3 in parts: the MD5 of the parts' MD5s, and their number.

    Args:
        path: the file.
        sizes: size of each part, bytes; the last may exceed the rest of the file.
    """
    whole = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        for size in sizes:
            part, left = hashlib.md5(usedforsecurity=False), size
            while left and (block := file.read(min(BLOCK, left))):
                part.update(block)
                left -= len(block)
            whole.update(part.digest())
    return f"{whole.hexdigest()}-{len(sizes)}"


def _fetch_all(client: Any, address: S3Address, files: Sequence[_File], bar: tqdm) -> None:
    """Fetch all parts of all files in parallel; the first failure stops it, and its file is named."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
    try:
        tasks = {
            pool.submit(file.fetch_part, client, address.bucket, part, bar): file.item
            for file in files
            for part in file.parts
        }
        done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        for task in done:
            address = S3Address(address.bucket, tasks[task].key)
            task.result()
    except DataError:
        raise
    except (ClientError, BotoCoreError, HTTPError, OSError) as error:
        if is_disk_error(error):
            raise
        raise download_error(error, address, client) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _require_all(address: S3Address, missing: Sequence[S3Object], journal: _Journal) -> None:
    """Raise `DownloadError` if a file did not appear because the journal wrongly has all of its parts."""
    lost = [item for item in missing if not journal.has(item)]
    for item in lost:
        journal.forget(item)
    if lost:
        raise ServerUnavailableError(
            f"s3://{address.bucket}/{lost[0].key}: the record of received files was wrong for {len(lost)} files, "
            "and was removed. Run it again: they are fetched again."
        )


def _remove_others(folder: Path, objects: Sequence[S3Object], missing: Sequence[S3Object]) -> None:
    """Remove files of other versions from the folder, and parts of files that are not missing."""
    stale = {item.path for item in missing}
    wanted = {folder / item.path for item in objects if item.path not in stale}
    remove_others(folder, wanted)
    parts = {_partial_path(folder, item) for item in missing}
    for path in _parts_folder(folder).glob("*"):
        if path not in parts:
            path.unlink()


def _parts_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.parts")


def _partial_path(folder: Path, item: S3Object) -> Path:
    name = hashlib.sha256(f"{item.path}\n{item.size}\n{item.etag}".encode()).hexdigest()[:32]
    return _parts_folder(folder) / name


def is_disk_error(error: BaseException) -> bool:
    """Whether an OSError comes from this machine's disk, not from the network."""
    return (isinstance(error, OSError) and error.filename is not None) or getattr(error, "errno", None) == errno.ENOSPC
