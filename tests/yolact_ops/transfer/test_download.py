"""Files over HTTP, from servers that disconnect, lie and refuse."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.servers.servers import FileServer, free_port, serving
from yolact.errors import EX_UNAVAILABLE, DataError
from yolact_ops.transfer import disk, download
from yolact_ops.transfer.download import DownloadError, KnownFile, ServerUnavailableError, ask_version, fetch_file

CONTENT = np.random.default_rng(0).bytes(3_000_000)
OTHER = np.random.default_rng(1).bytes(2_000_000)
KNOWN = KnownFile(len(CONTENT), hashlib.md5(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.0)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer(CONTENT)) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "voc.tar"


def hidden(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path.name.startswith("."))


def test_a_file_is_fetched_once(server: FileServer, target: Path) -> None:
    assert fetch_file([server.url], target)
    assert target.read_bytes() == CONTENT
    assert hidden(target) == []
    assert "hidden" not in (target.parent / "voc.tar.json").read_text()
    assert not fetch_file([server.url], target)
    assert not fetch_file([server.url], target)
    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 3  # asked, not fetched
    fetch_file([server.url], target, KNOWN)
    assert len(server.requests) == 3  # with a known checksum, not even asked


def test_a_changed_file_is_fetched_again(server: FileServer, target: Path) -> None:
    fetch_file([server.url], target)
    server.content, server.etag = OTHER, '"two"'
    assert fetch_file([server.url], target)
    assert target.read_bytes() == OTHER


def test_a_file_that_was_removed_or_cut_short_is_fetched_again(server: FileServer, target: Path) -> None:
    fetch_file([server.url], target, KNOWN)
    target.write_bytes(CONTENT[:-1])
    assert fetch_file([server.url], target, KNOWN)
    target.unlink()
    assert fetch_file([server.url], target, KNOWN)
    assert target.read_bytes() == CONTENT


def test_interrupted_connections_resume_where_they_ended(server: FileServer, target: Path) -> None:
    server.cut_after = [1_000_000, 500_000, 1]
    fetch_file([server.url], target)
    assert target.read_bytes() == CONTENT
    assert server.requests == ["", "bytes=1000000-", "bytes=1500000-", "bytes=1500001-"]
    assert server.sent == len(CONTENT)


def test_a_later_run_resumes_from_the_received_bytes(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut_after = [2_000_000]

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download.time, "sleep", killed)
        fetch_file([server.url], target)
    assert not target.exists()
    fetch_file([server.url], target)
    assert target.read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_a_kill_before_the_first_new_byte_leaves_none_of_the_old_ones(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    server.cut_after = [1_000_000]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download.time, "sleep", killed)
        fetch_file([server.url], target)
    server.content, server.etag = OTHER, '"two"'
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "_append", killed)
        fetch_file([server.url], target)
    fetch_file([server.url], target)
    assert target.read_bytes() == OTHER


def test_a_file_that_changed_in_between_is_not_patched_together(server: FileServer, target: Path) -> None:
    server.cut_after = [1_000_000]
    first = download._transfer
    calls = []

    def changing(*arguments: object) -> object:
        if calls:
            server.content, server.etag = OTHER, '"two"'
        calls.append(None)
        return first(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "_transfer", changing)
        fetch_file([server.url], target)
    assert len(calls) == 2
    assert target.read_bytes() == OTHER


@pytest.mark.parametrize("how", ["no ranges", "no etag"])
def test_without_ranges_or_validators_it_starts_over(server: FileServer, target: Path, how: str) -> None:
    server.ranges = how != "no ranges"
    server.etag = "" if how == "no etag" else server.etag
    server.cut_after = [1_000_000]
    fetch_file([server.url], target)
    assert target.read_bytes() == CONTENT
    assert server.sent == 1_000_000 + len(CONTENT)


def test_a_temporary_failure_of_the_server_is_retried(server: FileServer, target: Path) -> None:
    server.statuses = [500, 503]
    fetch_file([server.url], target)
    assert target.read_bytes() == CONTENT


def test_a_server_that_keeps_failing_is_given_up_and_received_bytes_are_kept(server: FileServer, target: Path) -> None:
    server.cut_after = [1_000_000, 0, 0, 0, 0, 0]
    with pytest.raises(
        ServerUnavailableError, match=r"set/voc\.tar: .*tried 5 times in a row.*1,000,000 received bytes"
    ):
        fetch_file([server.url], target)
    assert not target.exists()
    fetch_file([server.url], target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "fix"), [(404, "no such file"), (403, "permissions"), (401, "netrc")])
def test_a_refusal_is_reported_at_once_without_the_secret_part_of_the_address(
    server: FileServer, target: Path, status: int, fix: str
) -> None:
    server.statuses = [status]
    with pytest.raises(DownloadError, match=fix) as caught:
        fetch_file([server.url], target)
    assert "hidden" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert len(server.requests) == 1
    assert not target.exists()


def test_an_unavailable_server_is_named(target: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}/voc.tar"
    with pytest.raises(ServerUnavailableError, match=r"127\.0\.0\.1.*refuses connections"):
        fetch_file([away], target)
    assert not target.exists()
    with pytest.raises(ServerUnavailableError, match=r"127\.0\.0\.1.*refuses connections"):
        ask_version(away)


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_is_asked_for_the_version_once(server: FileServer, status: int) -> None:
    server.statuses = [status]
    with pytest.raises(DownloadError) as caught:
        ask_version(server.url)
    assert str(caught.value).count("http://") == 1
    assert caught.value.exit_code == (EX_UNAVAILABLE if status == 503 else 1)


def test_of_several_addresses_one_that_is_away_counts(server: FileServer, target: Path) -> None:
    server.statuses = [404]
    with pytest.raises(ServerUnavailableError, match=r"(?s)404.*refuses connections"):
        fetch_file([server.url, f"http://127.0.0.1:{free_port()}/voc.tar"], target)


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(server: FileServer, target: Path) -> None:
    wrong = KnownFile(len(CONTENT), "0" * 32)
    with pytest.raises(DownloadError, match=rf"3,000,000 bytes with md5 {KNOWN.md5}, expected .* {'0' * 32}"):
        fetch_file([server.url], target, wrong)
    assert not target.exists()
    assert not (target.parent / ".voc.tar.part").exists()


def test_a_wrong_length_is_detected(server: FileServer, target: Path) -> None:
    server.claimed = len(CONTENT) + 10
    server.etag = ""
    with pytest.raises(DownloadError, match=r"ended after 3,000,000 of 3,000,010 bytes"):
        fetch_file([server.url], target)
    assert not target.exists()


def test_the_next_mirror_resumes_where_the_first_one_broke_off(server: FileServer, target: Path) -> None:
    with serving(FileServer(CONTENT, cut_after=[1_000_000, 0, 0, 0, 0, 0], etag='"elsewhere"')) as first:
        fetch_file([first.url, server.url], target, KNOWN)
    assert target.read_bytes() == CONTENT
    assert server.requests == ["bytes=1000000-"]


def test_a_mirror_with_another_file_is_skipped(server: FileServer, target: Path) -> None:
    with serving(FileServer(OTHER)) as wrong:
        fetch_file([wrong.url, server.url], target, KNOWN)
    assert target.read_bytes() == CONTENT


def test_a_full_disk_is_detected_before_the_first_byte(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=disk.SPARE + len(CONTENT) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"needs 3,000,000 bytes, but the disk has"):
        fetch_file([server.url], target)
    assert not target.exists()
    assert not (target.parent / ".voc.tar.part").exists()
