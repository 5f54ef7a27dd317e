"""No secret in anything that a run writes: a real run with secrets of every kind, and a search through all of it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import pytest

from tests.servers.mlflow_servers import MlflowServer
from tests.servers.servers import FileServer, free_port, listening, s3_server, serving
from tests.test_pipeline import Project, copy_of_checkout
from yolact.formats.sample import generate_sample
from yolact.settings import SampleConfig

pytestmark = pytest.mark.slow

SECRETS = {
    name: f"canary-{name}-3f9a"
    for name in (
        "aws-secret",
        "aws-session",
        "aws-credentials-file",
        "database-password",
        "kubeflow-token",
        "mlflow-password",
        "mlflow-url-password",
        "mlflow-token",
        "model-registry-token",
        "git-password",
        "git-remote-password",
        "netrc-password",
        "signature",
        "serve-token",
        "wrong-serve-token",
        "secret-file",
        "unrelated-api-key",
    )
}
"""A value for each kind of secret."""
GIVEN = {"params.yaml", "dvc.lock", ".git/config"}
"""Files that hold the user's own addresses; DVC's copies of ``dvc.lock`` are in ``.dvc``."""


def archive_of_sample(folder: Path) -> bytes:
    generate_sample(
        folder, SampleConfig(seed=0, train_images=12, val_images=6, min_size=96, max_size=128, max_objects=2)
    )
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.add(folder, "set")
    return made.getvalue()


class Refusing(BaseHTTPRequestHandler):
    """Refuses every login, and notes it."""

    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.send_header("WWW-Authenticate", "Basic")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def by_name(address: str) -> str:
    """The address with another host name: `requests` would prefer the login that ``~/.netrc`` has for 127.0.0.1."""
    return address.replace("127.0.0.1", "localhost")


class Run:
    """A project with secrets all around it, and what its commands said."""

    def __init__(self, project: Project, folder: Path, server: MlflowServer, files: FileServer, refusing: int) -> None:
        self.project, self.folder, self.server, self.files = project, folder, server, files
        self.refusing = f"http://localhost:{refusing}"
        self.said: dict[str, str] = {}

    def call(self, *command: str, expect: int = 0, **environment: str) -> str:
        kept = self.project.environment
        self.project.environment = kept | environment
        try:
            output = self.project.run(*command, expect=expect)
        finally:
            self.project.environment = kept
        self.said[f"{' '.join(command)} {environment}"] = output
        return output


@pytest.fixture(scope="module")
def run(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("secrets")
    for name in ("project", "server", "home/.aws", "tmp", "s3/bucket/images", "mounted"):
        (folder / name).mkdir(parents=True)
    (folder / "server/auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\nadmin_username = admin\n"
        f"admin_password = {SECRETS['secret-file']}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    server = MlflowServer(
        folder / "server",
        ["--app-name", "basic-auth", "--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "files"],
        {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "server/auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests"},
    )
    with ExitStack() as stack:
        files = FileServer(archive_of_sample(folder / "sample"), login=f"reader:{SECRETS['netrc-password']}")
        stack.enter_context(serving(files))
        refusing = stack.enter_context(listening(Refusing))
        for path in sorted((folder / "sample").rglob("*.jpg"))[:2]:
            shutil.copy(path, folder / "s3/bucket/images")
        s3 = stack.enter_context(s3_server(folder / "s3", "--auth-key", f"planted,{SECRETS['aws-secret']}"))
        stack.callback(server.stop)
        server.start()
        project = copy_of_checkout(repository, folder / "project")
        remote = f"https://me:{SECRETS['git-remote-password']}@git.example/x.git"
        project.run("git", "remote", "add", "origin", remote)
        (folder / "home/.netrc").write_text(f"machine 127.0.0.1 login reader password {SECRETS['netrc-password']}\n")
        (folder / "home/.netrc").chmod(0o600)
        keys = f"aws_access_key_id = planted\naws_secret_access_key = {SECRETS['aws-credentials-file']}\n"
        (folder / "home/.aws/credentials").write_text(f"[default]\n{keys}")
        for name, value in {
            "MLFLOW_TRACKING_URI": by_name(server.address),
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": SECRETS["secret-file"],
        }.items():
            (folder / "mounted" / name).write_text(value)
        project.environment |= {
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "AWS_ENDPOINT_URL": s3,
            "AWS_ACCESS_KEY_ID": "planted",
            "AWS_SECRET_ACCESS_KEY": SECRETS["aws-secret"],
            "AWS_SESSION_TOKEN": SECRETS["aws-session"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
            "YOLACT_SECRET_FILES": os.pathsep.join(map(str, (folder / "mounted").iterdir())),
            "GIT_USERNAME": "reader",
            "GIT_PASSWORD": SECRETS["git-password"],
            "YOLACT_SERVE_TOKEN": SECRETS["serve-token"],
            "MODEL_REGISTRY_TOKEN": SECRETS["model-registry-token"],
            "KF_PIPELINES_TOKEN": SECRETS["kubeflow-token"],
            "POSTGRES_PASSWORD": SECRETS["database-password"],
            "SOME_API_KEY": SECRETS["unrelated-api-key"],
        }
        yield Run(project, folder, server, files, refusing)


def spellings(secret: str) -> list[bytes]:
    """How a secret may be written: as it is, in an address, in Base64 as part of a login."""
    logins = [base64.b64encode(f"{user}:{secret}".encode())[8:-8] for user in ("admin", "reader", "me", "planted")]
    return [secret.encode(), quote(secret, safe="").encode(), *logins]


def unpacked(data: bytes) -> Iterator[bytes]:
    """A file's content; of a gzip or zip file, or an object of git, also what is in it."""
    yield data
    with suppress(OSError, EOFError, zlib.error, zipfile.BadZipFile):
        if data.startswith(b"\x1f\x8b"):
            yield from unpacked(gzip.decompress(data))
        elif data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for name in archive.namelist():
                    yield from unpacked(archive.read(name))
        elif data.startswith(b"x"):
            yield zlib.decompress(data)


FORMS = zip(*map(spellings, SECRETS.values()), strict=True)
BEGINNINGS = {os.path.commonprefix(list(forms)) for forms in FORMS}  # noqa: RUF071 - of texts, not of paths
"""What all secrets begin with in each spelling: where none of these stands, no secret does."""


def secrets_in(data: bytes) -> set[str]:
    """Names of the secrets in a file's content."""
    parts = [part for part in unpacked(data) if any(beginning in part for beginning in BEGINNINGS)]
    return {
        name for name, secret in SECRETS.items() if any(form in part for form in spellings(secret) for part in parts)
    }


def found(run: Run) -> list[str]:
    """Where a secret stands in what was written or said."""
    places = []
    given = {run.folder / "project" / name for name in GIVEN}
    own = {run.folder / name for name in ("home/.netrc", "home/.aws/credentials", "server/auth.ini")}
    own |= set((run.folder / "mounted").iterdir())
    texts = {what: text.encode() for what, text in run.said.items()}
    for path in run.folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path not in given | own:
            texts[str(path.relative_to(run.folder))] = path.read_bytes()
    assert len(texts) > 100
    for where, text in texts.items():
        allowed = {"signature"} if where.startswith("project/.dvc/") else set()  # copies of dvc.lock
        places += [f"{name} in {where}" for name in sorted(secrets_in(text) - allowed)]
    return places


def test_the_search_finds_a_secret_in_each_spelling() -> None:
    assert all(BEGINNINGS)
    secret = SECRETS["mlflow-password"]
    header = base64.b64encode(f"admin:{secret}".encode())
    for text in (f"x{secret}y".encode(), b"Authorization: Basic " + header, quote(secret, safe="").encode()):
        assert secrets_in(text) == {"mlflow-password"}
    assert secrets_in(b"canary-of-somebody-else") == set()


def test_the_search_looks_into_compressed_files_and_objects_of_git() -> None:
    text = SECRETS["mlflow-password"].encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", text)
    for data in (gzip.compress(text), zlib.compress(text), packed.getvalue(), gzip.compress(packed.getvalue())):
        assert text not in data
        assert secrets_in(data) == {"mlflow-password"}
    for data in (b"", b"x", b"PK", b"\x1f\x8b", gzip.compress(text)[:20]):  # what only begins like one
        assert secrets_in(data) == set()


def answer(address: str, token: str = "") -> str:
    """What a server says to a request, also to one that it refuses."""
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return f"{response.headers}\n{response.read().decode(errors='replace')}"
    except urllib.error.HTTPError as error:
        return f"{error.headers}\n{error.read().decode(errors='replace')}"


COMMANDS = """
import json, os, sys
from pathlib import Path

import mlflow.store.db.utils

from components.fetch import step as fetch
from components.merge import step as merge
from components.predict import step as predict
from components.split import step as split
from pipelines.__main__ import app as pipelines
from yolact_cli.main import app as yolact
from yolact_ops.commands.errors import clear_errors

mlflow.store.db.utils.MAX_RETRY_COUNT = 0  # a database that is away is not waited for


def batch(_):
    folder = Path("batch")
    folder.mkdir(exist_ok=True)
    with clear_errors("batch prediction"):
        fetch.run(model="models:/yolact-smoke/1", model_dir=folder / "model")
        split.run(images="s3://bucket/images", shards=1, plan_path=folder / "plan.json")
        predict.run(model_dir=folder / "model", plan_path=folder / "plan.json", shard=0, result_path=folder / "0.json")
        merge.run(
            model_dir=folder / "model",
            plan_path=folder / "plan.json",
            results=[folder / "0.json"],
            output_dir=folder / "out",
            destination="s3://bucket/predictions",
        )


for program, words, variables in json.loads(sys.argv[1]):
    kept, code = dict(os.environ), 0
    os.environ.update(variables)
    try:
        {"yolact": yolact, "pipelines": pipelines, "batch": batch}[program](words)
    except SystemExit as end:
        code = end.code or 0
    os.environ.clear()
    os.environ.update(kept)
    print("ended:", program, *words, code, file=sys.stderr, flush=True)
"""
"""Several commands in one process, which saves the time of their imports: program, arguments, more variables."""


def use_the_model(run: Run, login: dict[str, str]) -> None:
    """All that people do with a registered version, with the right secrets and with wrong ones."""
    version = "models:/yolact-smoke/1"
    database = f"postgresql+psycopg2://mlflow:{SECRETS['database-password']}@127.0.0.1:{free_port()}/mlflow"
    inside = by_name(run.server.address).replace("://", f"://admin:{SECRETS['mlflow-url-password']}@")
    no_login = {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
    commands: list[tuple[str, list[str], dict[str, str], int]] = [
        ("yolact", ["lineage", version], {}, 0),
        ("yolact", ["promote", "--version", "1", "--force", "--reason", "a test"], {}, 1),  # the copy is refused
        ("yolact", ["rollback"], {}, 1),  # there is no earlier champion
        ("yolact", ["history"], {}, 0),
        ("yolact", ["predict", str(run.folder / "s3/bucket/images"), "--model", version], {}, 0),
        ("batch", [], {}, 0),
        ("batch", [], {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": ""}, 1),
        ("yolact", ["publish"], {}, 1),
        ("yolact", ["promote"], {"MLFLOW_TRACKING_PASSWORD": SECRETS["mlflow-password"]}, 1),
        ("yolact", ["lineage", version], no_login | {"MLFLOW_TRACKING_URI": inside}, 1),
        ("yolact", ["lineage", version], no_login | {"MLFLOW_TRACKING_TOKEN": SECRETS["mlflow-token"]}, 1),
        ("yolact", ["lineage", version], {"MLFLOW_TRACKING_URI": database}, 69),
        ("pipelines", ["list", "--host", run.refusing], {}, 1),
    ]
    given = json.dumps([command[:3] for command in commands])
    output = run.call("python", "-c", COMMANDS, given, **login)
    ended = [line for line in output.splitlines() if line.startswith("ended: ")]
    assert ended == [" ".join(["ended:", program, *words, str(code)]) for program, words, _, code in commands], output
    assert "version 1 is the champion now" in output
    assert list((run.folder / "s3/bucket/predictions").iterdir())
    assert "Traceback" not in output


def fail_the_steps(run: Run) -> None:
    """Steps with wrong secrets, servers that are away, and a fault of the program itself."""
    away = f"http://admin:{SECRETS['mlflow-url-password']}@127.0.0.1:{free_port()}"
    run.call("python", "-m", "components.evaluate.step", expect=69, MLFLOW_TRACKING_URI=away)
    output = run.call("python", "-m", "components.train.step", AWS_SECRET_ACCESS_KEY=SECRETS["aws-session"])
    assert "the mirror is behind" in output
    (run.project.root / "data/source.json").unlink()
    run.files.login = "reader:another"
    assert "401" in run.call("python", "-m", "components.source.watch", expect=1)
    params = run.project.root / "params.yaml"
    text = params.read_text()
    [line] = [line for line in text.splitlines() if line.startswith("  source: ")]
    params.write_text(text.replace(line, f"  source: dvc:{run.refusing}/data.git#images@main"))
    assert "git cannot read the repository" in run.call("python", "-m", "components.source.watch", expect=1)
    params.write_text(text)
    crash = "from yolact_ops.commands.step import run_command; run_command('train', lambda params: {}[params])"
    assert "Traceback" in run.call("python", "-c", crash, expect=1)


def serve(run: Run) -> None:
    """The server: its pages, errors and log, with the token, with a wrong one and without."""
    port = free_port()
    log = run.folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["python", "-m", "yolact_cli.main", "serve", "models:/yolact-smoke/1", "--port", str(port)],
            cwd=run.project.root,
            env=run.project.environment,
            stdout=file,
            stderr=file,
        )
    tokens = {"": "", "with the token": SECRETS["serve-token"], "with another": SECRETS["wrong-serve-token"]}
    try:
        end = time.monotonic() + 300
        while '"ready":true' not in run.said.get("readyz", "") and time.monotonic() < end and process.poll() is None:
            time.sleep(0.5)
            with suppress(OSError):
                run.said["readyz"] = answer(f"http://127.0.0.1:{port}/readyz").replace(" ", "")
        for path in ("/", "/healthz", "/readyz", "/metrics", "/model", "/nothing", "/openapi.json"):
            for how, token in tokens.items():
                run.said[f"{path} {how}"] = answer(f"http://127.0.0.1:{port}{path}", token)
    finally:
        process.terminate()
        process.wait(300)
    assert '"ready":true' in run.said["readyz"]
    assert "yolact" in run.said["/metrics "]
    assert run.said["/model with the token"] != run.said["/model with another"]


def test_a_run_writes_no_secret_anywhere(run: Run) -> None:
    source = f"http://127.0.0.1:{run.files.port}/set/voc.tar?X-Amz-Signature={SECRETS['signature']}"
    run.project.use(f"data.source={source}", "runtime.checkpoint_mirror=s3://bucket/mirror")

    # A whole run: data behind a login, checkpoints on S3, MLflow behind a login that is in files.
    output = run.call("dvc", "repro")
    assert "Running stage 'register'" in output
    assert list((run.folder / "s3/bucket/mirror").rglob("*.pt"))
    assert (run.folder / "server/mlflow.db").stat().st_size > 100_000
    run.call("python", "-m", "pipelines", "compile")

    params = run.project.root / "params.yaml"
    text = params.read_text().replace("model_registry_files: none", "model_registry_files: s3://bucket/files")
    params.write_text(text.replace("model_registry: none", f"model_registry: {run.refusing}"))
    use_the_model(run, {path.name: path.read_text() for path in (run.folder / "mounted").iterdir()})
    fail_the_steps(run)
    serve(run)

    logins = " ".join(Refusing.seen)
    assert base64.b64encode(f"reader:{SECRETS['git-password']}".encode()).decode() in logins
    assert f"Bearer {SECRETS['model-registry-token']}" in logins
    assert f"Bearer {SECRETS['kubeflow-token']}" in logins
    assert found(run) == []
