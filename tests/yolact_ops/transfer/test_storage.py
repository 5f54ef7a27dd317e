"""Files from a real S3 server, also over connections that break."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, SSLError
from botocore.stub import Stubber

from tests.servers.servers import CuttingProxy, free_port, s3_server, use_s3
from yolact.errors import DataError
from yolact_ops.transfer import storage
from yolact_ops.transfer.download import DownloadError
from yolact_ops.transfer.storage import S3Address, fetch_objects, list_objects, make_client, may_pass

LARGE = np.random.default_rng(0).bytes(1_000_000)
PART = 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "empty").mkdir()
    for name, content in {
        "set/voc.tar": LARGE,
        "set/images/a b.jpg": b"a" * 5000,
        "set/images/ünï.JPG": b"u" * 7000,
        "set/images/zero.txt": b"",
        "set/images/.DS_Store": b"junk",
        "set/images-of-others/b.jpg": b"b",
    }.items():
        path = folder / "bucket" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with s3_server(folder) as address:
        yield address


@pytest.fixture(autouse=True)
def environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, server)
    monkeypatch.setattr(storage, "PART_SIZE", PART)
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    line = CuttingProxy(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.url)
    yield line
    line.close()


def fetch(address: str, folder: Path) -> int:
    client = make_client()
    parsed = S3Address.parse(address)
    return fetch_objects(client, parsed, list_objects(client, parsed), folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PHOTOS = {"a b.jpg": b"a" * 5000, "ünï.JPG": b"u" * 7000, "zero.txt": b""}


def test_a_folder_is_fetched_once_without_siblings_of_the_same_prefix(tmp_path: Path) -> None:
    assert fetch("s3://bucket/set/images/", tmp_path / "files") == 12_000
    assert contents(tmp_path / "files") == PHOTOS
    assert fetch("s3://bucket/set/images", tmp_path / "files") == 0
    assert contents(tmp_path / "files") == PHOTOS


def test_a_large_file_comes_in_parts_and_is_fetched_once(tmp_path: Path) -> None:
    assert fetch("s3://bucket/set/voc.tar", tmp_path / "files") == len(LARGE)
    assert contents(tmp_path / "files") == {"voc.tar": LARGE}
    assert fetch("s3://bucket/set/voc.tar", tmp_path / "files") == 0


def test_only_what_is_missing_changed_or_damaged_is_fetched(tmp_path: Path) -> None:
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="changing")
    for name in ("one", "two", "three"):
        client.put_object(Bucket="changing", Key=name, Body=name.encode())
    folder = tmp_path / "files"
    assert fetch("s3://changing", folder) == 11
    time.sleep(1.1)  # the server's times have whole seconds
    client.put_object(Bucket="changing", Key="two", Body=b"TWO")
    client.delete_object(Bucket="changing", Key="three")
    client.put_object(Bucket="changing", Key="inside/four", Body=b"four")
    (folder / "one").write_bytes(b"on")
    assert fetch("s3://changing", folder) == 10
    assert contents(folder) == {"one": b"one", "two": b"TWO", "inside/four": b"four"}


def test_interrupted_connections_cost_at_most_one_part(tmp_path: Path, proxy: CuttingProxy) -> None:
    proxy.cuts_at = [150_000, 400_000, 900_000]
    assert fetch("s3://bucket/set/voc.tar", tmp_path / "files") == len(LARGE)
    assert contents(tmp_path / "files") == {"voc.tar": LARGE}
    assert proxy.cuts_at == []
    overhead = 200_000  # headers, and data in transit
    assert proxy.passed < len(LARGE) + 3 * PART + overhead


def test_after_the_server_was_unavailable_the_next_run_resumes(
    tmp_path: Path, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "THREADS", 2)
    monkeypatch.setattr(storage, "MAX_TRIES", 1)
    proxy.dead_after = 600_000
    with pytest.raises(DownloadError, match=r"s3://bucket/set/voc\.tar \(http://127.*(cannot be reached|broke)"):
        fetch("s3://bucket/set/voc.tar", tmp_path / "files")
    assert contents(tmp_path / "files") == {}
    proxy.dead_after = None
    fetched = fetch("s3://bucket/set/voc.tar", tmp_path / "files")
    assert 0 < fetched <= len(LARGE) - 3 * PART  # at least three parts were received before
    assert contents(tmp_path / "files") == {"voc.tar": LARGE}
    assert list((tmp_path / ".files.parts").iterdir()) == []


def test_bytes_damaged_on_disk_are_detected(
    tmp_path: Path, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "THREADS", 1)
    monkeypatch.setattr(storage, "MAX_TRIES", 1)
    proxy.dead_after = 600_000
    with pytest.raises(DownloadError):
        fetch("s3://bucket/set/voc.tar", tmp_path / "files")
    (part,) = (tmp_path / ".files.parts").iterdir()
    with part.open("r+b") as file:
        file.write(b"damaged")
    proxy.dead_after = None
    with pytest.raises(DownloadError, match=r"md5 .* the server states .* Run it again"):
        fetch("s3://bucket/set/voc.tar", tmp_path / "files")
    assert contents(tmp_path / "files") == {}
    assert fetch("s3://bucket/set/voc.tar", tmp_path / "files") == len(LARGE)


class _OfParts:
    """A client of the real server that reports the file as uploaded in parts: its ETag is not an MD5."""

    ETAG = '"0123456789abcdef0123456789abcdef-10"'

    def __init__(self) -> None:
        self._client = make_client()
        self.meta = self._client.meta
        (item,) = list_objects(self._client, S3Address.parse("s3://bucket/set/voc.tar"))
        self.listed = [replace(item, etag=self.ETAG)]

    def get_object(self, **request: str) -> dict:
        assert request.pop("IfMatch") == self.listed[0].etag
        return self._client.get_object(**request)

    def head_object(self, **request: str) -> dict:
        """Like rclone, which does not know the parts."""
        assert request.pop("IfMatch") == self.listed[0].etag
        return self._client.head_object(**request)

    def fetch(self, folder: Path) -> int:
        return fetch_objects(self, S3Address.parse("s3://bucket/set/voc.tar"), self.listed, folder)


class _KnowsParts(_OfParts):
    """Like Amazon's server, which reports the size of each part of the upload."""

    def __init__(self, sizes: list[int], content: bytes = LARGE) -> None:
        super().__init__()
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        digests = [md5(content[start : start + size]).digest() for start, size in zip(starts, sizes, strict=True)]
        self.sizes = sizes
        self.asked: list[int] = []
        self.listed = [replace(self.listed[0], etag=f'"{md5(b"".join(digests)).hexdigest()}-{len(sizes)}"')]

    def head_object(self, **request: Any) -> dict:
        self.asked.append(request["PartNumber"])
        return {"ContentLength": self.sizes[request["PartNumber"] - 1], "PartsCount": len(self.sizes)}


@pytest.mark.parametrize(
    ("sizes", "asked"),
    [
        ([300_000, 300_000, 300_000, 100_000], [1]),
        ([1_000_000], [1]),
        ([500_000, 500_000], [1]),
        ([250_000, 400_000, 350_000], [1, 2, 3]),
    ],
)
def test_a_file_that_was_uploaded_in_parts_is_checked_part_by_part(
    tmp_path: Path, sizes: list[int], asked: list[int]
) -> None:
    client = _KnowsParts(sizes)
    assert client.fetch(tmp_path / "files") == len(LARGE)
    assert client.asked == asked
    assert contents(tmp_path / "files") == {"voc.tar": LARGE}
    damaged = _KnowsParts(sizes, bytes([LARGE[0] ^ 1]) + LARGE[1:])  # one bit differs on the server
    with pytest.raises(DownloadError, match=rf"the received file has the ETag \w+-{len(sizes)}, the server states .*-"):
        damaged.fetch(tmp_path / "files")
    assert contents(tmp_path / "files") == {}


def test_a_server_that_does_not_know_the_parts_is_trusted(tmp_path: Path) -> None:
    client = _KnowsParts([600_000, 400_000], bytes(len(LARGE)))
    client.sizes = [600_000, 400_000, 0]  # another number than the ETag says
    assert client.fetch(tmp_path / "files") == len(LARGE)
    with Stubber(make_client()) as answers:
        client.head_object = answers.client.head_object
        answers.add_client_error("head_object", "NotImplemented", http_status_code=501)
        assert client.fetch(tmp_path / "again") == len(LARGE)


def add_parts(journal: Path) -> None:
    with journal.open("a") as file:
        for part in range(len(LARGE) // PART):
            file.write(json.dumps(["voc.tar", len(LARGE), _OfParts.ETAG, part]) + "\n")


def test_a_removed_file_that_is_fetched_again_over_an_interrupted_connection_has_no_holes(
    tmp_path: Path, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "THREADS", 2)
    monkeypatch.setattr(storage, "MAX_TRIES", 1)
    folder = tmp_path / "files"
    assert _OfParts().fetch(folder) == len(LARGE)
    add_parts(tmp_path / ".files.journal")  # as after a kill at the wrong moment
    (folder / "voc.tar").unlink()
    client = _OfParts()
    proxy.dead_after = proxy.passed + 400_000
    with pytest.raises(DownloadError, match=r"cannot be reached|broke"):
        client.fetch(folder)
    assert contents(folder) == {}
    proxy.dead_after = None
    assert 0 < _OfParts().fetch(folder) < len(LARGE)
    assert contents(folder) == {"voc.tar": LARGE}


def test_a_journal_with_all_parts_of_a_missing_file_is_not_trusted_twice(tmp_path: Path) -> None:
    client, folder = _OfParts(), tmp_path / "files"
    partial = storage._partial_path(folder, client.listed[0])
    partial.parent.mkdir()
    partial.write_bytes(bytes(len(LARGE)))
    add_parts(tmp_path / ".files.journal")
    with pytest.raises(DownloadError, match=r"s3://bucket/set/voc\.tar: the record .* was wrong.*Run it again"):
        client.fetch(folder)
    assert client.fetch(folder) == len(LARGE)
    assert contents(folder) == {"voc.tar": LARGE}


def test_a_file_that_changes_while_it_is_fetched_is_refused(tmp_path: Path) -> None:
    client = make_client()
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="moving")
    client.put_object(Bucket="moving", Key="file", Body=b"x" * 1000)
    address = S3Address.parse("s3://moving/file")
    listed = list_objects(client, address)
    client.put_object(Bucket="moving", Key="file", Body=b"y" * 1000)
    # rclone ignores the condition of the request, so the checksum has to detect it
    with pytest.raises(
        DownloadError, match=r"s3://moving/file: the received file has the md5 \w+, the server states \w+\."
    ):
        fetch_objects(client, address, listed, tmp_path / "files")
    assert contents(tmp_path / "files") == {}
    with Stubber(client) as answers:
        answers.add_client_error("get_object", "PreconditionFailed", http_status_code=412)
        with pytest.raises(
            DownloadError, match=r"s3://moving/file \(http://127.*: the file changed while it was fetched"
        ):
            fetch_objects(client, address, listed, tmp_path / "files")
    assert contents(tmp_path / "files") == {}


def test_wrong_keys_a_missing_bucket_and_a_missing_server_are_distinguished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MAX_TRIES", 1)
    with pytest.raises(DownloadError, match="there is no bucket 'nowhere'"):
        fetch("s3://nowhere/set", tmp_path / "files")
    with pytest.raises(DownloadError, match=r"s3://bucket/SET: there is no file .* or below it.*case-sensitive"):
        fetch("s3://bucket/SET", tmp_path / "files")
    with pytest.raises(DownloadError, match="no file of this name or below it"):
        fetch("s3://empty", tmp_path / "files")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(
            DownloadError, match=r"does not accept the keys \(SignatureDoesNotMatch\)\. Check AWS_"
        ) as caught:
            fetch("s3://bucket/set", tmp_path / "files")
        assert "wrong" not in str(caught.value)
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        patch.setenv("AWS_CONFIG_FILE", "/nowhere")
        with pytest.raises(DownloadError, match=r"no access keys\. Set AWS_ACCESS_KEY_ID"):
            fetch("s3://bucket/set", tmp_path / "files")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(DownloadError, match=r"cannot be reached.*AWS_ENDPOINT_URL"):
        fetch("s3://bucket/set", tmp_path / "files")
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("bucket", ["Bad_Bucket!", "a b", "ünï", "b" * 256])
def test_an_invalid_bucket_name_is_reported(bucket: str) -> None:
    with pytest.raises(DataError, match="is not a bucket name, which has only letters"):
        S3Address.parse(f"s3://{bucket}/x")
    assert S3Address.parse("s3://Old_Bucket.2/x/").bucket == "Old_Bucket.2"


class _Listing:
    """A server that lists keys that a real one never would."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.meta = self

    endpoint_url = "http://hostile"

    def get_paginator(self, name: str) -> _Listing:
        return self

    def paginate(self, **request: str) -> list[dict]:
        return [{"Contents": [{"Key": key, "Size": 1, "ETag": '"x"'} for key in self.keys]}]


@pytest.mark.parametrize("key", ["set/../../x", "set//etc/../../x", "set/a\\..\\b", "set/a\nb", "set//../x"])
def test_keys_that_leave_the_folder_are_refused(key: str) -> None:
    with pytest.raises(DataError, match="the key"):
        list_objects(_Listing("set/fine", key), S3Address.parse("s3://bucket/set"))


def test_keys_that_are_both_file_and_folder_are_refused(tmp_path: Path) -> None:
    client = _Listing("set/a", "set/a/b")
    address = S3Address.parse("s3://bucket/set")
    with pytest.raises(DataError, match="a file and a folder"):
        fetch_objects(client, address, list_objects(client, address), tmp_path / "files")


def answered(status: int, code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answered(503, "SlowDown"), True),
        (answered(500, "InternalError"), True),
        (answered(409, "OperationAborted"), True),
        (answered(412, "PreconditionFailed"), True),
        (answered(429, "TooManyRequests"), True),
        (answered(400, "RequestTimeout"), True),
        (answered(400, "InvalidBucketName"), False),
        (answered(403, "AccessDenied"), False),
        (answered(404, "NoSuchKey"), False),
        (EndpointConnectionError(endpoint_url="http://nowhere"), True),
        (NoCredentialsError(), False),
        (SSLError(endpoint_url="https://nowhere", error="certificate"), False),
        (ConnectionResetError(), True),
        (FileNotFoundError(2, "no such file", "data/raw"), False),
        (OSError(28, "no space left", "data/raw"), False),
    ],
)
def test_what_a_retry_may_mend(error: Exception, expected: bool) -> None:
    assert may_pass(error) is expected
    wrapped = S3UploadFailedError("failed")
    wrapped.__cause__ = error
    assert may_pass(wrapped) is expected
