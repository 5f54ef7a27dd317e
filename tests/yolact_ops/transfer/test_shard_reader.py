"""Shards read from a real S3 server: the bytes of the images, the bound of the cache, broken connections, refusals."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.servers.certificates import make_certificate
from tests.servers.servers import CuttingProxy, free_port, s3_server, use_s3
from yolact.data.shards import Part
from yolact.errors import EX_UNAVAILABLE
from yolact_ops.transfer import shard_reader
from yolact_ops.transfer.download import DownloadError
from yolact_ops.transfer.shard_reader import S3Shards

SIZE = 40_000
IMAGES = 12
SHARD = np.random.default_rng(0).bytes(IMAGES * SIZE)
ADDRESS = "s3://bucket/set/shards"
NO_LIMIT = 10**9

PARTS = [Part("train-000000.tar", k * SIZE, SIZE, zlib.crc32(SHARD[k * SIZE : (k + 1) * SIZE])) for k in range(IMAGES)]


def content(part: Part) -> bytes:
    return SHARD[part.offset : part.offset + part.length]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    shards = folder / "bucket/set/shards"
    shards.mkdir(parents=True)
    (shards / PARTS[0].shard).write_bytes(SHARD)
    with s3_server(folder) as address:
        yield address


@pytest.fixture(autouse=True)
def environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, server)
    monkeypatch.setattr(shard_reader, "FIRST_PAUSE", 0.01)


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    """Counts the bytes that come from the server."""
    line = CuttingProxy(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.url)
    yield line
    line.close()


def cached(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_parts_have_the_bytes_of_the_shard_in_any_order(
    proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(shard_reader._Connection, "_request")  # the server accepts the signed addresses
    shards = S3Shards(ADDRESS, tmp_path, 0)
    for k in np.random.default_rng(1).permutation(IMAGES).tolist():
        assert shards.read(PARTS[k]) == content(PARTS[k])
    assert IMAGES * SIZE <= proxy.passed < IMAGES * (SIZE + 2000)  # the ranges, not the shard
    assert not list(tmp_path.iterdir())


def test_what_is_cached_is_not_fetched_again_not_even_by_the_next_run(proxy: CuttingProxy, tmp_path: Path) -> None:
    for part in PARTS:
        S3Shards(ADDRESS, tmp_path / "cache", NO_LIMIT).read(part)
    passed = proxy.passed
    shards = S3Shards(ADDRESS, tmp_path / "cache", NO_LIMIT)
    assert [shards.read(part) for part in PARTS] == list(map(content, PARTS))
    assert proxy.passed == passed


def test_the_cache_has_a_bound_that_holds_for_forked_processes_too(proxy: CuttingProxy, tmp_path: Path) -> None:
    limit = 5 * SIZE + 1
    shards = S3Shards(ADDRESS, tmp_path, limit)
    for start in (0, 1):
        if os.fork() == 0:
            os._exit(sum(shards.read(part) != content(part) for part in PARTS[start::2]))
    assert [os.wait()[1] for _ in range(2)] == [0, 0]
    assert cached(tmp_path) == 5 * SIZE
    assert [shards.read(part) for part in PARTS] == list(map(content, PARTS))
    assert cached(tmp_path) == 5 * SIZE
    again = S3Shards(ADDRESS, tmp_path, limit)
    assert [again.read(part) for part in PARTS] == list(map(content, PARTS))
    assert cached(tmp_path) == 5 * SIZE


def test_a_cached_image_that_is_damaged_is_fetched_again(proxy: CuttingProxy, tmp_path: Path) -> None:
    shards = S3Shards(ADDRESS, tmp_path, NO_LIMIT)
    shards.read(PARTS[0])
    [path] = [path for path in tmp_path.rglob("*") if path.is_file()]
    for damaged in (b"", bytes(SIZE)):
        path.write_bytes(damaged)
        assert shards.read(PARTS[0]) == content(PARTS[0])
        assert path.read_bytes() == content(PARTS[0])


def test_images_that_are_fetched_ahead_are_there_when_they_are_read(proxy: CuttingProxy, tmp_path: Path) -> None:
    shards = S3Shards(ADDRESS, tmp_path, 0)
    shards.fetch_ahead(PARTS)
    shards.fetch_ahead(PARTS)  # as the next batch of one is announced twice
    end = time.monotonic() + 60
    while proxy.passed < IMAGES * SIZE:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert [shards.read(part) for part in PARTS] == list(map(content, PARTS))
    assert proxy.passed < IMAGES * (SIZE + 2000)


def test_a_broken_connection_is_tried_again(proxy: CuttingProxy, tmp_path: Path) -> None:
    proxy.cuts_at = [SIZE // 2, 3 * SIZE]
    shards = S3Shards(ADDRESS, tmp_path, 0)
    assert [shards.read(part) for part in PARTS] == list(map(content, PARTS))
    assert proxy.cuts_at == []


def test_a_signed_address_that_has_expired_is_replaced(
    proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_reader, "SIGNED_FOR", 1)
    shards = S3Shards(ADDRESS, tmp_path, 0)
    shards.read(PARTS[0])
    time.sleep(2.1)
    assert shards.read(PARTS[1]) == content(PARTS[1])  # the server refuses the address, boto3 signs the request
    monkeypatch.setattr(shard_reader, "SIGNED_AGAIN_AFTER", 0)
    assert shards.read(PARTS[2]) == content(PARTS[2])


def test_a_server_with_a_certificate_of_its_own_is_trusted_once_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "s3/bucket/set/shards"
    shards.mkdir(parents=True)
    (shards / PARTS[0].shard).write_bytes(SHARD)
    certificate, key = make_certificate(tmp_path, "127.0.0.1")
    with s3_server(tmp_path / "s3", "--cert", str(certificate), "--key", str(key)) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address.replace("http:", "https:"))
        with pytest.raises(DownloadError, match="the server cannot be reached"):
            S3Shards(ADDRESS, tmp_path, 0).read(PARTS[0])
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        monkeypatch.delattr(shard_reader._Connection, "_request")
        encrypted = S3Shards(ADDRESS, tmp_path, 0)
        assert [encrypted.read(part) for part in PARTS] == list(map(content, PARTS))


def test_requests_go_through_a_proxy(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server)  # it takes the whole address of a request too, as a proxy does
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://10.255.255.1")
    shards = S3Shards(ADDRESS, tmp_path, 0)
    assert [shards.read(part) for part in PARTS] == list(map(content, PARTS))


@pytest.mark.parametrize(
    ("variable", "value", "address", "said", "code"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", ADDRESS, "the server does not accept the keys", 1),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:{port}", ADDRESS, "the server cannot be reached", EX_UNAVAILABLE),
        ("AWS_REGION", "us-east-1", "s3://nowhere/shards", "there is no bucket 'nowhere'", 1),
        ("AWS_REGION", "us-east-1", "s3://bucket/elsewhere", "s3://bucket/elsewhere/train-000000.tar", 1),
    ],
)
def test_a_refusal_is_explained(
    proxy: CuttingProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    address: str,
    said: str,
    code: int,
) -> None:
    monkeypatch.setenv(variable, value.format(port=free_port()))
    with pytest.raises(DownloadError, match=said) as refused:
        S3Shards(address, tmp_path, NO_LIMIT).read(PARTS[0])
    assert refused.value.exit_code == code
