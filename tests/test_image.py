"""The container image's Dockerfile, without building it: what goes in, what stays out, and the health check."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from components.register.candidate import BASE
from pipelines.image import LABEL
from tests.servers.servers import listening
from yolact_ops.lineage.code import code_versions, versions_to_text


def ignored(patterns: list[str], path: str) -> bool:
    """Whether ``.dockerignore`` keeps a path out: the last pattern that fits it or a folder above it decides."""
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    kept_out = False
    for pattern in patterns:
        text = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        expression = re.compile(text.replace(r"\[", "[").replace(r"\]", "]"))
        if any(expression.fullmatch(part) for part in above):
            kept_out = not pattern.startswith("!")
    return kept_out


@pytest.fixture
def patterns(repository: Path) -> list[str]:
    lines = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".dvc/cache/files/md5/00/11",
        ".venv/bin/python",
        ".env",
        "s3.env",
        "data/raw/image.jpg",
        "data/voc2012/x.dvc",
        "models/model.safetensors",
        "mlflow.db",
        "mlruns/0/meta.yaml",
        "runs/training-1/train/model",
        "reports/eval/index.html",
        "params.yaml",
        "conf/smoke.yaml",
        "tests/conftest.py",
        "deploy/secrets/s3.env",
        "yolact/models/__pycache__/fpn.cpython-311.pyc",
        "anything-new.bin",
    ],
)
def test_data_secrets_and_history_stay_out_of_the_build(patterns: list[str], path: str) -> None:
    assert ignored(patterns, path)


def test_all_files_of_all_packages_reach_the_build(repository: Path, patterns: list[str]) -> None:
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    rooms = [name.rstrip("*") for name in settings["tool"]["setuptools"]["packages"]["find"]["include"]]
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--", *rooms], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    files = [path for path in tracked if path]
    assert len(files) > 100
    others = [
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements.lock",
        "deploy/image/healthy.py",
        "conf/base.yaml",
    ]
    assert [path for path in [*files, *others] if ignored(patterns, path)] == []


def test_the_image_has_no_library_of_gpl_codecs(repository: Path) -> None:
    """PyAV's wheels contain x264 and x265; only the extra `video` requires them, which the image does not install."""
    extras = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {name: [item.split(">")[0] for item in items] for name, items in extras["optional-dependencies"].items()}
    assert [name for name, items in needed.items() if "av" in items] == ["video"]
    installed = re.findall(r"--extra (\w+)", (repository / "Dockerfile").read_text(encoding="utf-8"))
    assert installed == ["pipeline", "serve", "pretrained", "trainer"]
    lock = (repository / "requirements.lock").read_text(encoding="utf-8")
    [requirers] = re.findall(r"^av==(?:.*\n)(?:    --hash.*\n)+    # via (.*)\n", lock, re.MULTILINE)
    assert requirers == "yolact-pipeline (pyproject.toml)"


def test_register_finds_the_base_settings_in_the_working_folder(repository: Path) -> None:
    lines = (repository / "Dockerfile").read_text(encoding="utf-8").splitlines()
    [folder] = [line.split()[1] for line in lines if line.startswith("WORKDIR")]
    assert f"COPY {BASE} {folder}/{BASE.parent}/" in lines


# The commit that the image says it is of ---------------------------------------------------------------------------


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A folder with the Makefile and some files, not in git."""
    for name in ("Makefile", "pyproject.toml", "params.yaml", "Dockerfile", ".gitignore", "conf/base.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    (tmp_path / "yolact").mkdir()
    (tmp_path / "yolact" / "old.py").touch()
    return tmp_path


def commit_of_image(checkout: Path) -> str:
    """The arguments that `make image` passes to the build."""
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(checkout.parent)}
    command = ["make", "--dry-run", "image"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    [commit] = re.findall(r"--build-arg COMMIT=(\S+)", done.stdout)
    return str(commit)


def git(checkout: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_is_unknown_without_git(checkout: Path) -> None:
    assert commit_of_image(checkout) == "unknown"


def test_commit_is_dirty_when_files_of_the_image_differ_and_only_then(checkout: Path) -> None:
    git(checkout, "init", "--quiet")
    assert commit_of_image(checkout) == "unknown"
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "x")
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "params.yaml").write_text("changed")
    (checkout / "notes.txt").touch()
    assert commit_of_image(checkout) == commit
    for name in ("yolact/new.py", "Dockerfile", "conf/base.yaml", "yolact/old.py"):
        (checkout / name).write_text("changed")
        assert commit_of_image(checkout) == f"{commit}-dirty", name
        git(checkout, "stash", "--include-untracked", "--quiet", "--", name)
        assert commit_of_image(checkout) == commit


def test_the_commit_looks_at_every_file_that_reaches_the_build(repository: Path, patterns: list[str]) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    [listed] = re.findall(r"^IMAGE_FILES := (.*)", makefile, flags=re.MULTILINE)
    reaching = [path for path in git(repository, "ls-files").splitlines() if not ignored(patterns, path)]
    assert len(reaching) > 100
    assert [path for path in reaching if not any(f"{path}/".startswith(f"{name}/") for name in listed.split())] == []


def test_make_passes_the_code_versions_which_the_build_records_and_labels(repository: Path) -> None:
    command = ["make", "image", "DOCKER=echo", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    [build] = [line for line in done.stdout.splitlines() if line.startswith("build ")]
    versions = versions_to_text(code_versions(repository))
    assert f"--build-arg CODE_VERSIONS={versions} --tag" in build
    recipe = (repository / "Dockerfile").read_text(encoding="utf-8")
    assert recipe.count("ARG CODE_VERSIONS=\n") == 2
    assert '--record --lock /src/requirements.lock --expect "${CODE_VERSIONS}"' in recipe
    assert f'{LABEL}="${{CODE_VERSIONS}}"' in recipe


def test_every_data_file_of_a_package_is_installed(repository: Path) -> None:
    """The image installs the project as a package, so files that setuptools leaves out are missing."""
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for room in ("yolact", "yolact_bench", "yolact_cli", "yolact_ops", "components", "pipelines", "serving"):
        known = {
            path for pattern in settings["package-data"].get(room, []) for path in (repository / room).glob(pattern)
        }
        read = {
            path
            for end in ("j2", "yaml", "json", "html", "css", "js", "typed")
            for path in (repository / room).rglob(f"*.{end}")
            if path.name not in ("component.yaml", "metadata.yaml") and "compiled" not in path.parts
        }
        assert read <= known


# The health check --------------------------------------------------------------------------------------------------


class Health(http.server.BaseHTTPRequestHandler):
    """Answers 200 at /health and /healthz, 404 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path in ("/health", "/healthz") else 404)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def is_healthy(repository: Path, **variables: str) -> bool:
    ports = ("MLFLOW_PORT", "YOLACT_SERVE_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in ports} | variables
    program = repository / "deploy" / "image" / "healthy.py"
    return subprocess.run([sys.executable, program], env=environment, timeout=60, check=False).returncode == 0


def test_a_server_is_healthy_as_long_as_it_answers(repository: Path) -> None:
    with listening(Health) as number:
        port = str(number)
        for variable in ("MLFLOW_PORT", "YOLACT_SERVE_PORT"):
            assert is_healthy(repository, http_proxy="http://127.0.0.1:9", **{variable: port})
    assert not is_healthy(repository, MLFLOW_PORT=port)


def test_a_container_that_serves_nothing_is_healthy(repository: Path) -> None:
    assert is_healthy(repository)


def test_an_invalid_port_is_unhealthy(repository: Path) -> None:
    assert not is_healthy(repository, MLFLOW_PORT="tcp://10.0.0.1:5000")
