"""Data under DVC with a remote on a real S3 server: what docs/data.md promises about data versions."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.servers.servers import KEY, SECRET, CuttingProxy, FileServer, free_port, s3_server, serving
from yolact.formats.sample import generate_sample
from yolact.settings import SampleConfig

SAMPLE = SampleConfig(seed=0, train_images=6, val_images=3, min_size=64, max_size=80, max_objects=2)


class Checkout:
    """A folder with git and DVC in which the data stages run."""

    def __init__(self, root: Path, server: str) -> None:
        self.root = root
        own_tools = Path(sys.executable).parent
        repository = Path(__file__).resolve().parents[1]
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DVC_"))}
        self.environment |= {
            "PATH": f"{own_tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(repository),
            "DVC_NO_ANALYTICS": "1",
            "AWS_ENDPOINT_URL": server,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",  # each of the library's many tries at a dead server takes seconds
        }

    def run(self, *command: str, expect: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == expect, f"{' '.join(command)}:\n{output}"
        return output

    def use_remote(self, url: str = "s3://team/dvc", endpointurl: str | None = None) -> None:
        """What the remote ``team`` is for this checkout alone."""
        server = endpointurl or self.environment["AWS_ENDPOINT_URL"]
        text = f"""['remote "team"']\n    url = {url}\n    endpointurl = {server}\n"""
        (self.root / ".dvc/config.local").write_text(text, encoding="utf-8")

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", message)

    def raw(self) -> dict[str, bytes]:
        folder = self.root / "data/raw"
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps what is in the bucket ``team``."""
    folder = tmp_path_factory.mktemp("s3") / "team"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def server(bucket: Path) -> Iterator[str]:
    with s3_server(bucket.parent) as address:
        yield address


@pytest.fixture(scope="module")
def pushed(repository: Path, server: str, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The stages `source` and `ingest` over a folder of images; versions v1 and v2 are tagged and pushed."""
    root = tmp_path_factory.mktemp("work") / "project"
    for name in ("params.yaml", "dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / name, root / name)
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    kept = {name: stages[name] for name in ("source", "ingest")}
    for stage in kept.values():
        stage["deps"] = [dep for dep in stage["deps"] if dep.startswith("data/")]  # the code is elsewhere
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": kept}), encoding="utf-8")
    settings = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    settings["data"]["source"] = "../images"
    (root / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    generate_sample(root.parent / "images", SAMPLE)

    checkout = Checkout(root, server)
    checkout.run("git", "init", "-q")
    checkout.run("dvc", "remote", "add", "--default", "team", "s3://team/dvc")
    checkout.run("dvc", "remote", "modify", "team", "endpointurl", server)
    checkout.run("dvc", "repro")
    checkout.commit("one")
    checkout.run("git", "tag", "v1")
    checkout.run("dvc", "push")
    image = next((root.parent / "images/VOCdevkit/VOC2012/JPEGImages").iterdir())
    (image.parent / "new.jpg").write_bytes(image.read_bytes())
    checkout.run("dvc", "repro")
    checkout.commit("two")
    checkout.run("git", "tag", "v2")
    checkout.run("dvc", "push")
    return checkout


@pytest.fixture
def clone(pushed: Checkout, server: str, tmp_path: Path) -> Checkout:
    """A second checkout, on a machine that has neither the images nor the cache."""
    root = tmp_path / "elsewhere" / "project"
    pushed.run("git", "clone", "-q", str(pushed.root), str(root))
    return Checkout(root, server)


def test_a_change_inside_the_source_makes_a_new_version(pushed: Checkout) -> None:
    output = pushed.run("dvc", "repro")
    assert "'ingest' didn't change" in output
    assert "VOCdevkit/VOC2012/JPEGImages/new.jpg" in pushed.raw()
    assert pushed.run("git", "status", "--porcelain") == ""


def test_a_clone_pulls_the_data_runs_nothing_and_checks_out_an_older_version(pushed: Checkout, clone: Checkout) -> None:
    clone.run("dvc", "pull")
    second = clone.raw()
    assert second == pushed.raw()
    output = clone.run("dvc", "repro")
    assert "assumed unchanged" in output
    assert "'ingest' didn't change" in output
    assert clone.run("git", "status", "--porcelain") == ""

    clone.run("git", "checkout", "-q", "v1")
    clone.run("dvc", "pull")
    assert clone.raw().keys() == second.keys() - {"VOCdevkit/VOC2012/JPEGImages/new.jpg"}


def test_other_projects_can_get_and_import_the_data(pushed: Checkout, tmp_path: Path) -> None:
    other = Checkout(tmp_path, pushed.environment["AWS_ENDPOINT_URL"])
    other.run("dvc", "get", str(pushed.root), "data/raw", "--rev", "v1", "-o", "got")
    assert len(list((tmp_path / "got").rglob("*.jpg"))) == 9
    other.run("git", "init", "-q")
    other.run("dvc", "init", "-q")
    other.run("dvc", "import", str(pushed.root), "data/raw", "--rev", "v2", "-o", "imported")
    assert len(list((tmp_path / "imported").rglob("*.jpg"))) == 10


FORBIDDEN = r"Forbidden: An error occurred \(403\) when calling the HeadObject operation"
NO_SERVER = r'Could not connect to the endpoint URL: "http://127\.0\.0\.1:\d+/team/dvc/files/md5'
NOT_CONNECTED = r"ERROR: failed to connect to s3 \(team/dvc/files/md5\) - "


def test_wrong_keys_a_missing_bucket_and_a_dead_server_are_named_and_lose_nothing(
    pushed: Checkout, clone: Checkout, server: str, tmp_path: Path
) -> None:
    """What DVC says, so that an update of it that says less is noticed; a full and an empty checkout."""
    full = Checkout(tmp_path / "full", server)
    pushed.run("git", "clone", "-q", str(pushed.root), str(full.root))
    shutil.copytree(pushed.root / ".dvc/cache", full.root / ".dvc/cache")
    full.run("dvc", "checkout")
    dead = f"http://127.0.0.1:{free_port()}"
    for secret, remote, pull, push in (
        ("wrong", {}, NOT_CONNECTED + FORBIDDEN, FORBIDDEN),
        (SECRET, {"endpointurl": dead}, NOT_CONNECTED + NO_SERVER, NO_SERVER),
        (
            SECRET,
            {"url": "s3://nowhere/dvc"},
            r"Missing cache files:\s+md5: [0-9a-f]{32}\.dir\s+ERROR: failed to pull data from the cloud",
            r"The specified bucket does not exist: An error occurred \(NoSuchBucket\)",
        ),
    ):
        for checkout in (full, clone):
            checkout.environment["AWS_SECRET_ACCESS_KEY"] = secret
            checkout.use_remote(**remote)
        assert re.search(pull, clone.run("dvc", "pull", expect=1))
        assert clone.raw() == {}
        assert re.search(push, full.run("dvc", "push", expect=255))
        assert full.raw() == pushed.raw()
    clone.use_remote()
    clone.run("dvc", "pull")
    assert clone.raw() == pushed.raw()


@pytest.fixture
def line(server: str) -> Iterator[CuttingProxy]:
    """A way to the server that can be cut."""
    proxy = CuttingProxy(server)
    yield proxy
    proxy.close()


def whole_files(folder: Path) -> set[Path]:
    """DVC's objects below it, none under a temporary name: 32 hexadecimal digits, of which two name a folder."""
    return {path for path in folder.rglob("*") if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name) and path.is_file()}


def test_an_interrupted_pull_resumes_and_loses_nothing(pushed: Checkout, clone: Checkout, line: CuttingProxy) -> None:
    clone.use_remote(endpointurl=line.url)
    half = len(set(pushed.raw().values())) // 2
    line.dead_when = lambda: len(whole_files(clone.root / ".dvc/cache/files")) >= half
    output = clone.run("dvc", "pull", "--jobs", "1", expect=1)
    assert "ERROR: failed to pull data from the cloud" in output
    assert clone.raw() == {}
    arrived = {path: path.stat().st_ino for path in whole_files(clone.root / ".dvc/cache/files")}
    assert half <= len(arrived) < 2 * half

    line.dead_when = None
    clone.run("dvc", "pull")
    assert clone.raw() == pushed.raw()
    assert {path: path.stat().st_ino for path in arrived} == arrived  # what had arrived was kept


def test_an_interrupted_push_resumes_and_the_remote_never_has_a_folder_without_its_files(
    pushed: Checkout, clone: Checkout, server: str, line: CuttingProxy, tmp_path: Path, bucket: Path
) -> None:
    clone.run("dvc", "pull")
    clone.use_remote("s3://team/other", line.url)
    half = len(set(pushed.raw().values())) // 2
    line.dead_when = lambda: len(whole_files(bucket / "other")) >= half
    output = clone.run("dvc", "push", "--jobs", "1", expect=1)
    assert re.search(r"ERROR: failed to push data to the cloud - \d+ files failed to upload", output)
    there = whole_files(bucket / "other")
    assert half <= len(there) < len(set(pushed.raw().values()))
    assert not any(path.suffix == ".dir" for path in there)
    assert clone.raw() == pushed.raw()

    line.dead_when = None
    clone.run("dvc", "push")
    third = Checkout(tmp_path / "third", server)
    clone.run("git", "clone", "-q", str(clone.root), str(third.root))
    third.use_remote("s3://team/other")
    third.run("dvc", "pull")
    assert third.raw() == pushed.raw()


def test_voc2012_is_described_by_its_official_address_size_and_checksum(repository: Path, tmp_path: Path) -> None:
    (file,) = (repository / "data/voc2012").glob("VOC*.dvc")
    text = file.read_text(encoding="utf-8")
    described = yaml.safe_load(text)
    address = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
    assert [dep["path"] for dep in described["deps"]] == [address]
    (out,) = described["outs"]
    assert (out["md5"], out["size"]) == ("6cd6e144f989b92b3379bac3b3de84fd", 1_999_639_040)

    # The same description of a small file: DVC fetches it, and the description stays what it was.
    root = tmp_path / "voc2012"
    shutil.copytree(file.parent, root, ignore=shutil.ignore_patterns("*.tar", "cache", "tmp"))
    content = b"not the real archive"
    with serving(FileServer(content)) as web:
        md5 = hashlib.md5(content).hexdigest()
        small = text.replace(address, web.url.partition("?")[0]).replace(out["md5"], md5)
        (root / file.name).write_text(small.replace(str(out["size"]), str(len(content))), encoding="utf-8")
        checkout = Checkout(root, "")
        checkout.run("git", "init", "-q")
        checkout.run("dvc", "update", file.name)
    assert (root / out["path"]).read_bytes() == content
    assert yaml.safe_load((root / file.name).read_text(encoding="utf-8"))["outs"][0]["md5"] == md5
