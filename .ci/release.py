"""Build what a release publishes into dist/, check it, and say what to publish. `make release` calls it.

    python .ci/release.py [--no-image]

It works on the committed state (HEAD). Needs the environment of `make install`, and Docker for the image.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from email.parser import Parser
from pathlib import Path, PurePosixPath

import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"

PRESETS = "yolact_ops/settings/conf"
"""Where the wheel has the presets (setup.py)."""
UNPACKED = ("README.md", "OWNERS", "component.yaml", "metadata.yaml")
"""Files of the packages' folders that are for readers and Kubeflow: not in the wheel."""
PRIVATE = {"tests", "data", "docs", "deploy", "models", "runs", "mlruns", ".dvc", ".git", ".venv"}
"""Folders that are in no archive."""
SDIST_FILES = {
    "pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "requirements.lock",
    "conf/base.yaml",
}  # fmt: skip
PROGRAM = "docs/training.md"
"""Its section "In Python" has the program that trains and predicts with the bare dependencies."""
NEEDS_EXTRA = {
    "yolact runs": "pipeline",
    "yolact promote": "pipeline",
    "yolact mlflow": "pipeline",
    "yolact predict s3://bucket/images --model model": "pipeline",
    "python -m pipelines compile": "pipeline",
    "yolact serve model": "serve",
    "yolact export model": "export",
}
"""Commands that the bare package cannot do, and the extra that their message must name."""
WEIGHTS_NEED_EXTRA = """
from yolact.errors import WeightsError
from yolact.models.starting_weights import load_starting_weights
from yolact.models.yolact import Yolact
from yolact_ops.settings.presets import choose

try:
    load_starting_weights(Yolact(choose("lite0-320").model, 2), ["a", "b"])
except WeightsError as error:
    print(error)
"""


class ReleaseError(Exception):
    """Something that must not be published; the message says what and why."""


# What is in the archives -------------------------------------------------------------------------------------------


def check_wheel(names: Collection[str], tracked: Collection[str]) -> None:
    """Check the files of the wheel against those that git tracks.

    Args:
        names: paths in the wheel.
        tracked: paths in the repository.

    Raises:
        ReleaseError: a file of a package or a preset is missing, or there is one that git does not track.
    """
    packages = {PurePosixPath(name).parts[0] for name in tracked if name.endswith("/__init__.py") and "/" in name}
    wanted = {
        name
        for name in tracked
        if PurePosixPath(name).parts[0] in packages - {"tests"} and PurePosixPath(name).name not in UNPACKED
    }
    wanted |= {f"{PRESETS}/{PurePosixPath(name).name}" for name in tracked if re.fullmatch(r"conf/[^/]+\.yaml", name)}
    found = {name for name in names if ".dist-info/" not in name}
    _refuse("the wheel lacks", wanted - found)
    _refuse("the wheel has files that do not belong there", found - wanted)


def check_sdist(names: Collection[str], tracked: Collection[str]) -> None:
    """Check the files of the source archive, without its top folder.

    Raises:
        ReleaseError: it lacks a file that a build needs, or has one of `PRIVATE` or one that git does not track.
    """
    _refuse("the source archive lacks", SDIST_FILES - set(names))
    made = {"PKG-INFO", "setup.cfg", "MANIFEST.in"}
    strange = {name for name in names if name not in tracked and name not in made and ".egg-info/" not in name}
    private = {name for name in names if PurePosixPath(name).parts[0] in PRIVATE}
    _refuse("the source archive has files that do not belong there", strange | private)


def check_metadata(text: str, project: dict[str, object]) -> None:
    """Check the wheel's METADATA against pyproject.toml.

    Raises:
        ReleaseError: it breaks the rules of package metadata, or differs from pyproject.toml.
    """
    try:
        metadata = Metadata.from_email(text)
    except ExceptionGroup as error:
        raise ReleaseError("\n".join(map(str, error.exceptions))) from error
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    same = {
        "name": (metadata.name, project["name"]),
        "version": (str(metadata.version), project["version"]),
        "extras": (set(metadata.provides_extra or []), set(extras)),
    }
    for what, (found, expected) in same.items():
        if found != expected:
            raise ReleaseError(f"the wheel's {what}: {found}, but pyproject.toml has {expected}")
    bare = [requirement for requirement in metadata.requires_dist or [] if requirement.marker is None]
    dependencies = project["dependencies"]
    assert isinstance(dependencies, list)
    if {str(each) for each in bare} != {str(Requirement(text)) for text in dependencies}:
        raise ReleaseError("the wheel's dependencies without extras are not those of pyproject.toml")
    if metadata.description_content_type != "text/markdown" or not Parser().parsestr(text).get_payload():
        raise ReleaseError("the wheel has no description in Markdown (README.md)")


def _refuse(what: str, names: Collection[str]) -> None:
    if names:
        shown = sorted(names)
        raise ReleaseError(f"{what}: {', '.join(shown[:20])}{', ...' if len(shown) > 20 else ''}")


# Versions ----------------------------------------------------------------------------------------------------------


def check_versions(version: str, tags: Sequence[str], citation: str, changelog: str) -> str:
    """Check that all places name the same version.

    Args:
        version: pyproject.toml's.
        tags: the tags of the commit.
        citation: content of CITATION.cff.
        changelog: content of CHANGELOG.md.

    Returns:
        What is still to do before publishing, empty if nothing.

    Raises:
        ReleaseError: a tag ``v...`` of the commit or CITATION.cff names another version, or the commit is tagged and
            the changelog has no section of its version.
    """
    released = [tag for tag in tags if re.fullmatch(r"v\d.*", tag)]
    for tag in released:
        if tag != f"v{version}":
            raise ReleaseError(f"the commit has the tag {tag}, but pyproject.toml has version {version}")
    cited = str(yaml.safe_load(citation)["version"])
    if cited != version:
        raise ReleaseError(f"CITATION.cff has version {cited}, but pyproject.toml has {version}")
    is_listed = re.search(rf"^## \[{re.escape(version)}\]", changelog, re.MULTILINE) is not None
    if released:
        if not is_listed:
            raise ReleaseError(f"the commit has the tag v{version}, but CHANGELOG.md has no section [{version}]")
        return ""
    renamed = "" if is_listed else f"in CHANGELOG.md, rename [Unreleased] to [{version}] with the date, commit, and "
    return f"the commit has no tag yet: {renamed}git tag -a v{version} -m v{version}; then `make release` again"


# The parts of a release --------------------------------------------------------------------------------------------


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None, expect: int = 0) -> str:
    """Output of a command, both streams.

    Raises:
        ReleaseError: another exit code than ``expect``; with the end of the output.
    """
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != expect:
        end = "\n".join(done.stdout.splitlines()[-30:])
        raise ReleaseError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{end}")
    return done.stdout


@contextmanager
def part(title: str) -> Iterator[None]:
    """Print a part's title, and how long it took."""
    print(f"{title} ...", flush=True)
    began = time.monotonic()
    yield
    print(f"  done in {time.monotonic() - began:.0f} s", flush=True)


def own_environment(folder: Path, virtual: Path) -> dict[str, str]:
    """The variables of a user who has nothing but a virtual environment."""
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "TMPDIR", "OMP_NUM_THREADS")}
    return kept | {"PATH": f"{virtual / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "COLUMNS": "200"}


def export_head(folder: Path) -> list[str]:
    """Write the committed files into ``folder``, and return their paths."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return [name for name in run("git", "ls-tree", "-r", "--name-only", "-z", "HEAD").split("\0") if name]


def build(source: Path, tracked: Sequence[str], project: dict[str, object]) -> Path:
    """Build source archive and wheel from ``source``, check them, and return the wheel's path."""
    commit_time = run("git", "log", "-1", "--format=%ct").strip()
    run(
        *("uv", "build", "--no-build-isolation", "--python", sys.executable, "--out-dir", DIST, source),
        env=os.environ | {"SOURCE_DATE_EPOCH": commit_time},
    )
    (DIST / ".gitignore").unlink(missing_ok=True)
    [wheel], [sdist] = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        check_wheel(archive.namelist(), tracked)
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        check_metadata(archive.read(metadata).decode(), project)
    with tarfile.open(sdist) as tar:
        files = [name.partition("/")[2] for name in (each.name for each in tar.getmembers() if each.isfile())]
    check_sdist(files, tracked)
    print(f"  {wheel.name} {wheel.stat().st_size / 1e6:.1f} MB, {sdist.name} {sdist.stat().st_size / 1e6:.1f} MB")
    return wheel


def try_bare(wheel: Path, source: Path, folder: Path) -> None:
    """Install the wheel without extras into an empty environment, and train and predict with it.

    The dependencies are those of the lock file, with its hashes.
    """
    virtual, lock, needed = folder / "environment", source / "requirements.lock", folder / "needed.txt"
    python, home = virtual / "bin" / "python", folder / "home"
    run("uv", "venv", "--quiet", "--python", sys.executable, virtual)
    run(
        *("uv", "pip", "compile", "--quiet", "--python", python, "--constraint", lock, "--output-file", needed),
        source / "pyproject.toml",
    )
    run("uv", "pip", "sync", "--quiet", "--python", python, "--require-hashes", "--constraint", lock, needed)
    run("uv", "pip", "install", "--quiet", "--python", python, "--no-deps", wheel)
    run("uv", "pip", "check", "--quiet", "--python", python)
    packages = len(run("uv", "pip", "list", "--python", python, "--format", "freeze").splitlines())
    size = sum(path.lstat().st_size for path in virtual.rglob("*") if not path.is_dir())
    print(f"  {packages} packages, {size / 1e9:.1f} GB; without extras they do:")

    home.mkdir()
    variables = own_environment(home, virtual)

    def tried(*command: str, expect: int = 0) -> str:
        if "-c" not in command:
            print(f"    {' '.join(command)}", flush=True)
        return run(*command, cwd=home, env=variables, expect=expect)

    text = (source / PROGRAM).read_text(encoding="utf-8").partition("\n## In Python\n")[2]
    [program] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (home / "program.py").write_text(program, encoding="utf-8")
    tried("python", "program.py")
    tried("yolact", "predict", "processed/eval/images", "--model", "model", "-o", "out", "--score-threshold", "0.05")
    _refuse(
        "yolact predict did not write", {"out/detections.json"} - {str(p.relative_to(home)) for p in home.rglob("*")}
    )
    listed = tried("yolact", "preset", "list")
    _refuse(
        "yolact preset list lacks", {p.stem for p in (source / "conf").glob("*.yaml")} - {"base"} - set(listed.split())
    )
    tried("yolact", "preset", "use", "smoke")
    tried("yolact", "data", "images")
    tried("yolact", "models")
    print("  and with an extra only:")
    for command, extra in NEEDS_EXTRA.items():
        said = tried(*command.split(), expect=1)
        if f"`{extra}`" not in said and f"[{extra}]" not in said:
            raise ReleaseError(f"{command}: the message does not name the extra {extra}:\n{said}")
    said = tried("python", "-c", WEIGHTS_NEED_EXTRA)
    if "pretrained" not in said:
        raise ReleaseError(
            f"the ImageNet weights of lite0-320: the message does not name the extra pretrained:\n{said}"
        )
    print("    presets with ImageNet weights of EfficientNet-Lite (lite0-320, lite2-512): `pretrained`")


def compile_pipelines(source: Path) -> None:
    """Compile the pipelines into dist/pipelines; compare what git has of them."""
    variables = os.environ | {"PYTHONPATH": str(source)}
    folder = DIST / "pipelines"
    run(sys.executable, "-m", "pipelines", "compile", "-o", folder, cwd=source, env=variables)
    for path in sorted((folder / "components").glob("*.yaml")):
        if path.read_bytes() != (source / "components" / path.stem / "component.yaml").read_bytes():
            raise ReleaseError(f"components/{path.stem}/component.yaml is stale: run `python -m pipelines compile`")
    # The committed pipelines have fake code versions; this test compiles with the same.
    test = ["tests/pipelines/test_compiled.py", "-k", "golden", "-q", "-p", "no:cacheprovider"]
    run(sys.executable, "-m", "pytest", *test, cwd=source, env=variables)


def build_image(source: Path, version: str) -> str:
    """Build the container image if Docker runs, and complete the bill of materials; return its name, or why there is
    none."""
    name = f"yolact-pipeline:{version}"
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        return f"NOT BUILT, because no Docker runs here: `make image`, and `make test-containers` to try {name}"
    run("make", "image", f"COMMIT={run('git', 'rev-parse', 'HEAD').strip()}", f"PYTHON={sys.executable}", cwd=source)
    (DIST / "sbom.json").write_text(run(sys.executable, ROOT / ".ci" / "packages.py", "sbom", name))
    return f"{name}: built, not tried here: `make test-containers`; then docker push REGISTRY/{name}"


def main(arguments: Sequence[str]) -> int:
    """Make a release; 1 if something must not be published."""
    if set(arguments) - {"--no-image"}:
        print("usage: python .ci/release.py [--no-image]", file=sys.stderr)
        return 2
    began = time.monotonic()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    try:
        with tempfile.TemporaryDirectory() as temporary:
            source = Path(temporary) / "source"
            tracked = export_head(source)
            committed = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
            texts = ((source / name).read_text(encoding="utf-8") for name in ("CITATION.cff", "CHANGELOG.md"))
            to_do = check_versions(committed, run("git", "tag", "--points-at", "HEAD").split(), *texts)
            print(f"yolact-pipeline {version}, commit {run('git', 'rev-parse', 'HEAD').strip()}")
            if run("git", "status", "--porcelain", "--untracked-files=no").strip():
                print("  uncommitted changes are not in the release")
            shutil.rmtree(DIST, ignore_errors=True)
            DIST.mkdir()
            with part("source archive and wheel"):
                wheel = build(source, tracked, project)
            with part("the wheel without extras, in an empty environment"):
                try_bare(wheel, source, Path(temporary))
            with part("pipelines"):
                compile_pipelines(source)
            with part("bill of materials"):
                (DIST / "sbom.json").write_text(run(sys.executable, ROOT / ".ci" / "packages.py", "sbom"))
            image = "left out (--no-image)"
            if not arguments:
                with part("image"):
                    image = build_image(source, version)
            show(version, image, to_do)
    except ReleaseError as error:
        print(f"not to be published: {error}", file=sys.stderr)
        return 1
    print(f"took {time.monotonic() - began:.0f} s")
    return 0


def show(version: str, image: str, to_do: str) -> None:
    """Write the checksums, and print what to publish."""
    files = sorted(path for path in DIST.rglob("*") if path.is_file())
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(DIST)}\n" for path in files)
    (DIST / "SHA256SUMS").write_text(sums, encoding="utf-8")
    print("\nTo publish:")
    if to_do:
        print(f"  first     {to_do}")
    print(f"  tag       git push origin v{version}")
    print("  packages  uv publish dist/*.whl dist/*.tar.gz")
    print("  files     with the tag: dist/pipelines (YAML to upload to Kubeflow), dist/sbom.json, dist/SHA256SUMS")
    print(f"  image     {image}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
