"""Ingest from every kind of source: the same set gives the same bytes, and failures leave nothing half-done."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from dvc.api import DVCFileSystem
from fsspec.callbacks import Callback

from components.ingest.step import run as run_step
from components.source import watch
from tests.servers.servers import KEY, SECRET, CuttingProxy, FileServer, free_port, s3_server, serving
from yolact.errors import DataError, WeightsError
from yolact.formats import voc
from yolact.formats.sample import generate_sample
from yolact.settings import SampleConfig
from yolact_ops.lineage import lineage
from yolact_ops.settings.params import Params, load_params
from yolact_ops.sources import dvc_path, local, raw, tracked, web
from yolact_ops.sources.tracked import fetch_tracked
from yolact_ops.transfer import disk, download, storage
from yolact_ops.transfer.download import DownloadError, ServerUnavailableError


@pytest.fixture(scope="module")
def voc_set(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A folder with VOCdevkit/VOC2012: real images if they are available in the checkout, otherwise generated ones."""
    folder = tmp_path_factory.mktemp("set")
    real = repository.parent / "shared" / "voc-mini" / "VOCdevkit"
    if real.is_dir():
        shutil.copytree(real, folder / "VOCdevkit", copy_function=shutil.copyfile)
    else:
        few = SampleConfig(seed=0, train_images=12, val_images=6, min_size=96, max_size=128, max_objects=3)
        generate_sample(folder, few)
    return folder


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images in VOC's format, few enough to add to DVC in every test."""
    folder = tmp_path_factory.mktemp("small")
    few = SampleConfig(seed=0, train_images=16, val_images=8, min_size=96, max_size=128, max_objects=3)
    generate_sample(folder, few)
    return folder


@pytest.fixture(scope="module")
def archives(voc_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set as set.tar, set.tar.gz (inside its own folder) and set.zip."""
    folder = tmp_path_factory.mktemp("archives")
    for name, mode, inside in (("set.tar", "w", "VOCdevkit"), ("set.tar.gz", "w:gz", "download/set/VOCdevkit")):
        with tarfile.open(folder / name, mode) as tar:  # type: ignore[call-overload]
            tar.add(voc_set / "VOCdevkit", inside)
    with zipfile.ZipFile(folder / "set.zip", "w") as file:
        for path in sorted(voc_set.rglob("*")):
            file.write(path, path.relative_to(voc_set))
    return folder


@pytest.fixture(scope="module")
def s3(voc_set: Path, archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    shutil.copytree(voc_set, folder / "bucket" / "set")
    shutil.copyfile(archives / "set.tar", folder / "bucket" / "set.tar")
    with s3_server(folder) as address:
        yield address


@pytest.fixture
def ingest(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, bytes]]:
    """Runs the step on a source; returns the contents of ``data/raw``."""
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.0)
    base = load_params(repository / "conf" / "base.yaml")

    def call(source: str) -> dict[str, bytes]:
        run_step(with_source(base, source), raw_dir=tmp_path / "data/raw", downloads_dir=tmp_path / "data/downloads")
        return contents(tmp_path / "data/raw")

    return call


@pytest.fixture
def keys(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def with_source(params: Params, source: str) -> Params:
    return params.model_copy(update={"data": params.data.model_copy(update={"source": source})})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.usefixtures("keys")
def test_every_kind_of_source_gives_the_same_bytes(ingest: Callable, voc_set: Path, archives: Path) -> None:
    wanted = ingest(str(voc_set))
    assert any(name.startswith("VOCdevkit/VOC2012/JPEGImages/") for name in wanted)
    assert wanted == {name: data for name, data in contents(voc_set).items() if name.startswith("VOCdevkit/VOC2012/")}
    for name in ("set.tar", "set.tar.gz", "set.zip"):
        assert ingest(str(archives / name)) == wanted
    for address in ("s3://bucket/set", "s3://bucket/set.tar"):
        assert ingest(address) == wanted
    with serving(FileServer((archives / "set.tar").read_bytes())) as server:
        assert ingest(server.url) == wanted


@pytest.mark.usefixtures("keys")
def test_an_s3_source_with_an_interrupted_connection_is_fetched_completely_and_only_once(
    ingest: Callable, archives: Path, s3: str, voc_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (archives / "set.tar").stat().st_size
    monkeypatch.setattr(storage, "PART_SIZE", size // 8)
    proxy = CuttingProxy(s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    proxy.cuts_at = [size // 2]
    assert ingest("s3://bucket/set.tar") == ingest(str(voc_set))
    assert proxy.cuts_at == []
    before = proxy.passed
    ingest("s3://bucket/set.tar")
    assert proxy.passed - before < 10_000
    proxy.close()


@pytest.mark.usefixtures("keys")
def test_a_failed_fetch_leaves_the_old_data(ingest: Callable, voc_set: Path, tmp_path: Path) -> None:
    before = ingest(str(voc_set))
    for source in ("s3://nowhere/set", "s3://bucket/nothing", "http://127.0.0.1:9/set.tar"):
        with pytest.raises(DownloadError, match=source.rpartition("/")[0]):
            ingest(source)
        assert contents(tmp_path / "data/raw") == before
    with serving(FileServer(b"<!DOCTYPE html>sign in")) as server, pytest.raises(DataError, match="neither a tar"):
        ingest(server.url)
    assert contents(tmp_path / "data/raw") == before
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["downloads", "raw"]


HOSTILE = {
    "up.tar": (("../../escaped.jpg", tarfile.REGTYPE, ""), r"leaves the folder by '\.\.'.*unpack it yourself"),
    "absolute.tar": (("/escaped.jpg", tarfile.REGTYPE, ""), r"is an absolute path.*unpack it yourself"),
    "link.tar": (
        ("image.jpg", tarfile.SYMTYPE, "../../../escaped.jpg"),
        r"leads out of the folder.*unpack it yourself",
    ),
    "device.tar": (("image.jpg", tarfile.CHRTYPE, ""), r"is not a file, folder or link.*unpack it yourself"),
}
"""Name, kind and link of an archive's last entry, and the error message."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_with_a_complete_set_leaves_the_old_data_and_nothing_else(
    ingest: Callable, small_set: Path, tmp_path: Path, name: str
) -> None:
    before = ingest(str(small_set))
    (entry, kind, link), message = HOSTILE[name]
    with tarfile.open(tmp_path / name, "w") as tar:
        tar.add(small_set / "VOCdevkit", "VOCdevkit")
        last = tarfile.TarInfo(entry)
        last.type, last.linkname = kind, link
        tar.addfile(last)
    with pytest.raises(DataError, match=message):
        ingest(str(tmp_path / name))
    assert contents(tmp_path / "data/raw") == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["raw"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["data", name])


def test_the_published_archive_is_taken_from_a_mirror_and_checked(
    repository: Path, tmp_path: Path, archives: Path, voc_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (archives / "set.tar").read_bytes()
    known = download.KnownFile(len(data), hashlib.md5(data).hexdigest())
    monkeypatch.setattr(web, "VOC2012_FILE", known)
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.0)
    with serving(FileServer(data)) as good, serving(FileServer(b"an error page")) as bad:
        params = with_source(load_params(repository / "conf" / "base.yaml"), "voc2012")
        mirrors = params.data.mirrors.model_copy(update={"voc2012": [bad.url, good.url]})
        params = params.model_copy(update={"data": params.data.model_copy(update={"mirrors": mirrors})})
        for _ in range(2):
            run_step(params, raw_dir=tmp_path / "raw", downloads_dir=tmp_path / "downloads")
        assert len(good.requests) == 1
    assert contents(tmp_path / "raw") == contents(voc_set)


def test_an_address_with_a_checksum_gives_that_file_or_none(ingest: Callable, archives: Path, voc_set: Path) -> None:
    data = (archives / "set.tar").read_bytes()
    right, wrong = hashlib.sha256(data).hexdigest(), "0" * 64
    with serving(FileServer(data)) as server:
        assert ingest(f"{server.url}#sha256={right.upper()}") == contents(voc_set)
        with pytest.raises(DownloadError, match=f"has the SHA-256 {right}, but data.source says {wrong}") as caught:
            ingest(f"{server.url}#sha256={wrong}")
        assert "hidden" not in str(caught.value)
        with pytest.raises(DataError, match=r"the checksum 'abc' is not a SHA-256 \(64 hex digits\)"):
            ingest(f"{server.url}#sha256=abc")
    with_checksum = web.Web("name", ["http://127.0.0.1:9/set.tar"], sha256=right)
    assert with_checksum.state() != web.Web("name", with_checksum.urls, sha256=wrong).state()  # no server is asked


def test_sbd_and_coco_are_recognized_by_content(ingest: Callable, tmp_path: Path) -> None:
    sbd = write(
        tmp_path / "sbd",
        *(
            f"benchmark_RELEASE/dataset/{name}"
            for name in ("img/a.jpg", "inst/a.mat", "cls/a.mat", "train.txt", "val.txt", "notes.m")
        ),
    )
    write(sbd, "benchmark_RELEASE/code/run.m")
    found = {
        f"benchmark_RELEASE/dataset/{name}" for name in ("img/a.jpg", "inst/a.mat", "cls/a.mat", "train.txt", "val.txt")
    }
    assert ingest(str(sbd)).keys() == found
    assert ingest(str(sbd / "benchmark_RELEASE/dataset")).keys() == found

    (sbd / "benchmark_RELEASE/dataset/inst/a.mat").rename(sbd / "benchmark_RELEASE/dataset/inst/A.MAT")
    assert "benchmark_RELEASE/dataset/inst/A.MAT" in ingest(str(sbd))

    coco = write(tmp_path / "coco", "wrapper/train/a.jpg", "wrapper/.DS_Store", "wrapper/train/._a.jpg")
    write(coco, "wrapper/annotations/train.json", content=b'{"images": [], "annotations": []}')
    assert ingest(str(coco)).keys() == {"train/a.jpg", "annotations/train.json"}


def test_coco_files_may_be_in_a_folder_with_vocs_name(ingest: Callable, tmp_path: Path) -> None:
    coco = write(tmp_path / "coco", "images/a.jpg")
    write(coco, "Annotations/train.json", content=b'{"images": [], "annotations": []}')
    assert ingest(str(coco)).keys() == {"images/a.jpg", "Annotations/train.json"}


@pytest.mark.parametrize("place", ["coco/annotations", "VOCdevkit/VOC2012", "VOCdevkit"])
def test_a_folder_with_both_voc_and_coco_is_refused_and_so_is_one_with_sbd_and_coco(
    ingest: Callable, tmp_path: Path, place: str
) -> None:
    both = write(tmp_path / "both", *(f"VOCdevkit/VOC2012/{name}/a.x" for name in voc.NEEDED))
    before = ingest(str(both))
    write(both, f"{place}/train.json", content=b'{"images": [], "annotations": []}')
    with pytest.raises(
        DataError, match=r"(?s)more than one data set:\n.*VOC2012\n.*train\.json\n.*data\.annotations=\[train\.json\]"
    ):
        ingest(str(both))
    shutil.rmtree(both / "VOCdevkit/VOC2012/SegmentationObject")
    write(both, "VOCdevkit/inst/a.mat", f"{place}/train.json", content=b'{"images": [], "annotations": []}')
    with pytest.raises(DataError, match=r"(?s)more than one data set:\n.*VOCdevkit\n.*train\.json\n"):
        ingest(str(both))
    assert contents(tmp_path / "data/raw") == before


def test_sbd_without_images_uses_those_of_a_voc_folder_next_to_it(ingest: Callable, tmp_path: Path) -> None:
    folder = write(tmp_path / "both", "dataset/inst/a.mat", "dataset/train.txt")
    with pytest.raises(DataError, match="annotations without images"):
        ingest(str(folder))
    write(folder, "VOCdevkit/VOC2012/JPEGImages/a.jpg")
    assert ingest(str(folder)).keys() == {
        "benchmark_RELEASE/dataset/inst/a.mat",
        "benchmark_RELEASE/dataset/train.txt",
        "VOCdevkit/VOC2012/JPEGImages/a.jpg",
    }


def test_an_archive_in_no_known_format_is_named_by_its_own_name(ingest: Callable, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as file:
        file.writestr("notes.txt", "x")
    with pytest.raises(DataError, match=r"notes\.zip: has no .* in a known format\. It has: notes\.txt"):
        ingest(str(tmp_path / "notes.zip"))
    assert not (tmp_path / "data/raw").exists()


# dvc:


def team_call(root: Path, *command: str) -> str:
    """Run a git or DVC command in a repository, and return its output."""
    identity = {f"GIT_{who}_{what}": "t@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=root, env=environment | identity, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def team_template(tmp_path_factory: pytest.TempPathFactory, small_set: Path) -> Path:
    root = tmp_path_factory.mktemp("team")
    team_call(root, "git", "init", "-q", "-b", "main")
    team_call(root, "dvc", "init", "-q")
    shutil.copytree(small_set, root / "images")
    for tag in ("v1", "v2"):
        team_call(root, "dvc", "add", "-q", "images")
        team_call(root, "git", "add", "-A")
        team_call(root, "git", "commit", "-qm", tag)
        team_call(root, "git", "tag", tag)
        next((root / "images/VOCdevkit/VOC2012/JPEGImages").iterdir()).unlink()
    return root


@pytest.fixture
def team_repository(team_template: Path, tmp_path: Path) -> Path:
    """A git repository whose DVC cache has the set at the tag v1, and one image less at v2."""
    shutil.copytree(team_template, tmp_path / "team", symlinks=True)
    return tmp_path / "team"


def test_a_path_that_dvc_tracks_is_taken_at_its_revision(
    ingest: Callable, team_repository: Path, small_set: Path, tmp_path: Path
) -> None:
    first = ingest(f"dvc:{team_repository}#images@v1")
    assert first == contents(small_set)
    assert len(ingest(f"dvc:{team_repository}#images@main")) == len(first) - 1
    shutil.rmtree(team_repository / ".dvc" / "cache")
    assert ingest(f"dvc:{team_repository}#images@v1") == first  # it was fetched before
    with pytest.raises(DownloadError, match=r"no branch, tag or commit 'v3'"):
        ingest(f"dvc:{team_repository}#images@v3")
    with pytest.raises(DownloadError, match=r"dvc:.*#nothing@v1: .*Check the path and the revision") as absent:
        ingest(f"dvc:{team_repository}#nothing@v1")
    with pytest.raises(DownloadError, match="git cannot read the repository") as nowhere:
        ingest(f"dvc:{tmp_path}/nowhere#images@v1")
    assert absent.value.exit_code == nowhere.value.exit_code == 1
    with pytest.raises(ServerUnavailableError, match="git cannot read the repository"):
        ingest(f"dvc:http://127.0.0.1:{free_port()}/set.git#images@v1")
    assert contents(tmp_path / "data/raw") == first


def test_only_damaged_or_lost_files_of_a_fetched_dvc_source_are_fetched_again(
    ingest: Callable, team_repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"dvc:{team_repository}#images@v1"
    first = ingest(address)
    images = sorted((tmp_path / "data/downloads").rglob("content/**/*.jpg"))
    inodes = {path: path.stat().st_ino for path in images[2:]}
    images[0].write_bytes(images[0].read_bytes()[::-1])  # as many bytes as before
    images[1].unlink()
    (images[2].parent / "stray.jpg").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert ingest(address) == first
    assert "they are fetched again" in caplog.text
    assert {path: path.stat().st_ino for path in inodes} == inodes
    (record,) = (tmp_path / "data/downloads").rglob("commit.json")
    for damage in ('"0123"', "{", '{"commit": 1}'):
        images[0].write_bytes(b"damaged")
        record.write_text(damage)
        assert ingest(address) == first
    shutil.rmtree(team_repository / ".dvc" / "cache")
    assert ingest(address) == first
    images[0].unlink()
    with pytest.raises(DownloadError, match="fetched files are kept"):
        ingest(address)
    assert contents(tmp_path / "data/raw") == first


@pytest.fixture
def remote_repository(team_repository: Path, tmp_path: Path, s3: str) -> CuttingProxy:
    """The team's repository with its data only on an S3 server, behind a proxy that can cut the connection."""
    proxy = CuttingProxy(s3)
    for command in (
        ["dvc", "remote", "add", "-q", "--default", "bucket", f"s3://bucket/{tmp_path.name}"],
        ["dvc", "remote", "modify", "bucket", "endpointurl", proxy.url],
        ["dvc", "push", "-q", "--all-tags"],
        ["git", "commit", "-qam", "remote"],
        ["git", "tag", "v3"],
    ):
        team_call(team_repository, *command)
    shutil.rmtree(team_repository / ".dvc" / "cache")
    return proxy


@pytest.mark.usefixtures("keys")
def test_a_dvc_source_on_s3_resumes_after_its_server_was_unavailable(
    ingest: Callable,
    team_repository: Path,
    remote_repository: CuttingProxy,
    small_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # each of the library's many tries takes seconds
    monkeypatch.setattr(tracked, "MAX_TRIES", 1)
    address = f"dvc:{team_repository}#images@v3"
    total = sum(map(len, contents(small_set).values()))
    remote_repository.dead_after = remote_repository.passed + total // 2
    with pytest.raises(DownloadError, match=r"dvc:.*#images@v3: .*fetched files are kept"):
        ingest(address)
    assert not (tmp_path / "data/raw").exists()
    arrived = {path: path.stat().st_ino for path in (tmp_path / "data/downloads").rglob("images/**/*.*")}
    assert 0 < len(arrived) < len(contents(small_set)) - 1

    remote_repository.dead_after = None
    found = ingest(address)
    assert found.items() < contents(small_set).items()  # v2 has one image less
    assert len(found) == len(contents(small_set)) - 1
    assert {path: path.stat().st_ino for path in arrived} == arrived  # not fetched again
    before = remote_repository.passed
    ingest(address)
    assert remote_repository.passed == before
    remote_repository.close()


class _Bar:
    """The progress shown of a transfer."""

    def __init__(self, total: int | None, **settings: object) -> None:
        self.total, self.shown = total, 0
        _Bar.last = self

    last: _Bar

    def update(self, count: int) -> None:
        self.shown += count

    def close(self) -> None:
        pass


def test_a_failing_storage_is_retried_with_growing_pauses_and_the_bar_shows_bytes(
    ingest: Callable, team_repository: Path, small_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, pauses, fetch = {1: 2, 5: 1}, [], DVCFileSystem.get_file
    calls: list[str] = []

    def unsteady(self: DVCFileSystem, name: str, target: str, callback: Callback) -> None:
        if name not in calls:
            calls.append(name)
        place = calls.index(name)
        if failing.get(place, 0):
            failing[place] -= 1
            callback.relative_update(100)  # some of it had arrived
            raise ConnectionResetError("the storage went away")
        fetch(self, name, target, callback=callback)

    monkeypatch.setattr(DVCFileSystem, "get_file", unsteady)
    monkeypatch.setattr(tracked, "THREADS", 1)
    monkeypatch.setattr(tracked, "tqdm", _Bar)
    monkeypatch.setattr(tracked, "time", SimpleNamespace(sleep=pauses.append))  # other threads sleep too
    assert ingest(f"dvc:{team_repository}#images@v1") == contents(small_set)
    assert pauses == [0.5, 1.0, 0.5]
    assert _Bar.last.total == _Bar.last.shown == sum(map(len, contents(small_set).values()))


@pytest.mark.parametrize(
    ("error", "tries"), [(FileNotFoundError("gone"), 1), (OSError(28, "No space left"), 1), (TimeoutError("slow"), 5)]
)
def test_permanent_failures_are_not_retried(
    ingest: Callable, team_repository: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, tries: int
) -> None:
    calls = []

    def failing(self: DVCFileSystem, name: str, target: str, callback: Callback) -> None:
        calls.append(name)
        raise error

    monkeypatch.setattr(DVCFileSystem, "get_file", failing)
    monkeypatch.setattr(tracked, "THREADS", 1)
    monkeypatch.setattr(tracked, "FIRST_PAUSE", 0.0)
    with pytest.raises(DownloadError, match=r"dvc:.*#images@v1: .*fetched files are kept"):
        ingest(f"dvc:{team_repository}#images@v1")
    assert max(calls.count(name) for name in calls) == tries


def test_a_dvc_source_that_will_not_fit_is_refused_before_it_is_fetched(
    ingest: Callable, team_repository: Path, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "SPARE", 1 << 60)
    total = sum(map(len, contents(small_set).values()))
    with pytest.raises(DataError, match=rf"fetching dvc:.*#images@v1 needs {total:,} bytes, but the disk has"):
        ingest(f"dvc:{team_repository}#images@v1")
    assert contents(tmp_path / "data") == {}


def test_files_of_a_dvc_source_that_arrive_damaged_or_leave_the_folder_are_refused(
    team_repository: Path, tmp_path: Path, small_set: Path
) -> None:
    head = team_call(team_repository, "git", "rev-parse", "v1").strip()
    objects = sorted((team_repository / ".dvc/cache/files/md5").rglob("*"))
    image = next(path for path in objects if path.is_file() and path.read_bytes().startswith(b"\xff\xd8"))
    image.chmod(0o644)
    image.write_bytes(image.read_bytes()[::-1])
    with pytest.raises(DataError, match="the received file has the md5"):
        fetch_tracked(str(team_repository), "images", head, tmp_path / "out", "images")

    listing = next(path for path in objects if path.suffix == ".dir")
    entries = json.loads(listing.read_text())
    entries[0]["relpath"] = "..\\\\escaped.jpg"
    hostile = json.dumps(entries).encode()
    digest = hashlib.md5(hostile).hexdigest()
    place = listing.parents[1] / digest[:2] / f"{digest[2:]}.dir"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(hostile)
    tracked = yaml.safe_load((team_repository / "images.dvc").read_text())
    tracked["outs"][0]["md5"] = f"{digest}.dir"
    (team_repository / "images.dvc").write_text(yaml.safe_dump(tracked))
    team_call(team_repository, "git", "commit", "-qam", "hostile")
    head = team_call(team_repository, "git", "rev-parse", "HEAD").strip()
    with pytest.raises(DataError, match=r"has a backslash\. The repository is refused"):
        fetch_tracked(str(team_repository), "images", head, tmp_path / "out", "images")
    assert not list(tmp_path.rglob("escaped.jpg"))


def test_a_single_file_and_a_file_that_git_tracks_are_taken(
    team_repository: Path, archives: Path, tmp_path: Path
) -> None:
    shutil.copyfile(archives / "set.zip", team_repository / "set.zip")
    team_call(team_repository, "dvc", "add", "-q", "set.zip")
    (team_repository / "notes").mkdir()
    (team_repository / "notes/plain.txt").write_text("by git")
    team_call(team_repository, "git", "add", "-A")
    team_call(team_repository, "git", "commit", "-qm", "file")
    commit = team_call(team_repository, "git", "rev-parse", "HEAD").strip()
    fetch_tracked(str(team_repository), "set.zip", commit, tmp_path / "out", "set")
    assert contents(tmp_path / "out") == {"set.zip": (archives / "set.zip").read_bytes()}
    fetch_tracked(str(team_repository), "notes", commit, tmp_path / "out", "notes")
    assert contents(tmp_path / "out") == {"notes/plain.txt": b"by git"}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exec sleep 60", r"did not answer in 0\.2 s\. Check the address"),
        ('echo "prompt $GIT_TERMINAL_PROMPT" >&2; exit 128', r"git cannot read the repository: prompt 0\."),
        (None, r"git cannot be run .*Install it"),
    ],
)
def test_git_neither_prompts_nor_waits_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, message: str
) -> None:
    if script is not None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "git").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / "git").chmod(0o755)
    system = os.environ["PATH"] if script else ""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{system}")
    if script and "sleep" in script:
        monkeypatch.setattr(dvc_path, "GIT_TIMEOUT", 0.2)
    with pytest.raises(DownloadError, match=message):
        dvc_path.DvcPath("https://host/team.git", "images", "v1").state()


# The stage `source`


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("dvc:https://me:pw@host/team.git#data/images@v2", "dvc:https://host/team.git#data/images@v2"),
        ("dvc:https://host/team.git?token=pw#data/images@v2", "dvc:https://host/team.git#data/images@v2"),
        ("dvc:ssh://git:pw@host/team.git#images@v2", "dvc:ssh://git@host/team.git#images@v2"),
        ("dvc:git@host:team.git#images@v2", "dvc:git@host:team.git#images@v2"),
        ("dvc:/home/team#images@v2", "dvc:/home/team#images@v2"),
        ("s3://bucket/set#2/a?b", "s3://bucket/set#2/a?b"),
        ("https://me:pw@host/set.tar?token=pw#x", "https://host/set.tar"),
        ("images#2", "images#2"),
    ],
)
def test_a_source_is_shown_with_everything_that_identifies_its_data_and_no_password(source: str, shown: str) -> None:
    assert lineage.shown_source(source) == shown


def test_only_changes_of_a_sources_content_are_detected(
    repository: Path, tmp_path: Path, voc_set: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, state = tmp_path / "images", tmp_path / "source.json"
    shutil.copytree(voc_set, folder)
    params = with_source(load_params(repository / "conf" / "base.yaml"), str(folder))
    watch.run(params, state_file=state)
    first = state.read_bytes()
    assert json.loads(first)["files"] == len(contents(folder))
    watch.run(params, state_file=state)
    assert state.read_bytes() == first
    image = next((folder / "VOCdevkit/VOC2012/JPEGImages").iterdir())
    image.write_bytes(image.read_bytes()[::-1])  # as many bytes as before
    watch.run(params, state_file=state)
    second = state.read_bytes()
    assert second != first
    image.unlink()
    watch.run(params, state_file=state)
    assert state.read_bytes() not in (first, second)

    third = state.read_bytes()
    shutil.rmtree(folder)  # as on another machine
    with caplog.at_level(logging.WARNING):
        watch.run(params, state_file=state)
    assert "assumed unchanged" in caplog.text
    assert state.read_bytes() == third
    with pytest.raises(DataError, match="does not exist"):
        watch.run(params, state_file=tmp_path / "new.json")


def test_weights_that_do_not_exist_are_found_by_the_first_stage_unless_a_training_from_them_is_recorded(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = with_source(load_params(repository / "conf" / "base.yaml"), "sample")
    params = base.model_copy(update={"model": base.model.model_copy(update={"backbone_weights": "nowhere.pth"})})
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "source.json"
    for lock in ({}, {"backbone_weights": "imagenet"}, {"backbone_weights": "nowhere.pth", "backbone": "resnet18"}):
        recorded = {"model": params.model.model_dump(mode="json") | lock}
        Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"train": {"params": {"params.yaml": recorded}}}}))
        if lock:
            with pytest.raises(WeightsError, match=r"model\.backbone_weights: nowhere\.pth: no such file"):
                watch.run(params, state_file=state)
        else:  # another machine may have had the file
            watch.run(params, state_file=state)
            state.unlink()
    for text in ("", "stages: {}", "stages: {train: {params: {params.yaml: {model: 3}}}}", "[", None):
        if text is None:
            Path("dvc.lock").unlink()
        else:
            Path("dvc.lock").write_text(text)
        with pytest.raises(WeightsError, match=r"nowhere\.pth: no such file"):
            watch.run(params, state_file=state)
    assert not state.exists()


def test_a_change_behind_a_linked_folder_is_detected(repository: Path, tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", "a.jpg", "deep/b.jpg")
    folder = write(tmp_path / "set", "notes.txt")
    (folder / "images").symlink_to(elsewhere, target_is_directory=True)
    (folder / "self").symlink_to(folder, target_is_directory=True)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    names = {path.relative_to(folder).as_posix() for path in local.files_below(folder)}
    assert names == {"notes.txt", "images/a.jpg", "images/deep/b.jpg"}
    first = local.Local(folder).state()
    assert (first.files, first.size) == (3, 3)
    write(elsewhere, "deep/b.jpg", content=b"longer")
    assert local.Local(folder).state().fingerprint != first.fingerprint


@pytest.mark.parametrize("linked", [True, False])
def test_the_disk_space_for_linked_folders_is_counted(
    ingest: Callable, voc_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    folder = tmp_path / "VOC2012"
    shutil.copytree(voc_set / "VOCdevkit" / "VOC2012", folder)
    if linked:
        (folder / "JPEGImages").rename(tmp_path / "images")
        (folder / "JPEGImages").symlink_to(tmp_path / "images", target_is_directory=True)
    asked = []
    monkeypatch.setattr(raw, "require_free_disk", lambda folder, size, what: asked.append(size))
    copied = ingest(str(folder))
    assert asked == [sum(map(len, copied.values()))]


@pytest.mark.usefixtures("keys")
def test_a_change_at_an_address_is_detected(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_params(repository / "conf" / "base.yaml")
    state = tmp_path / "source.json"
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.0)
    with serving(FileServer(b"one")) as server:
        watch.run(with_source(base, server.url), state_file=state)
        first = state.read_text()
        assert "hidden" not in first
        server.content, server.etag = b"two", '"two"'
        watch.run(with_source(base, server.url), state_file=state)
    assert state.read_text() != first
    watch.run(with_source(base, "s3://bucket/set"), state_file=state)
    seen = state.read_text()
    storage.make_client().put_object(Bucket="bucket", Key="set/new.txt", Body=b"x")
    watch.run(with_source(base, "s3://bucket/set"), state_file=state)
    assert json.loads(state.read_text())["files"] == json.loads(seen)["files"] + 1
    storage.make_client().delete_object(Bucket="bucket", Key="set/new.txt")
