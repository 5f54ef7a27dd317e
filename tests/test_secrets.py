"""No secret in anything that a run writes: a real run with secrets of every kind, and a search through all of it."""

from __future__ import annotations

import base64
import io
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.servers.mlflow_servers import MlflowServer
from tests.servers.servers import FileServer, free_port, s3_server, serving
from tests.test_pipeline import Project, copy_of_checkout
from yolact.formats.sample import generate_sample
from yolact.settings import SampleConfig

pytestmark = pytest.mark.slow

SECRETS = {
    name: f"canary-{name}-3f9a"
    for name in (
        "aws-secret",
        "aws-session",
        "mlflow-password",
        "mlflow-url-password",
        "mlflow-token",
        "git-password",
        "git-remote-password",
        "netrc-password",
        "signature",
        "serve-token",
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


def by_name(address: str) -> str:
    """The address with another host name: `requests` would prefer the login that ``~/.netrc`` has for 127.0.0.1."""
    return address.replace("127.0.0.1", "localhost")


class Run:
    """A project with secrets all around it, and what its commands said."""

    def __init__(self, project: Project, folder: Path, server: MlflowServer, files: FileServer) -> None:
        self.project, self.folder, self.server, self.files = project, folder, server, files
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
    for name in ("project", "server", "home", "tmp", "s3/bucket", "mounted"):
        (folder / name).mkdir(parents=True)
    (folder / "server/auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\nadmin_username = admin\n"
        f"admin_password = {SECRETS['mlflow-password']}\n"
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
        s3 = stack.enter_context(s3_server(folder / "s3", "--auth-key", f"planted,{SECRETS['aws-secret']}"))
        stack.callback(server.stop)
        server.start()
        project = copy_of_checkout(repository, folder / "project")
        remote = f"https://me:{SECRETS['git-remote-password']}@git.example/x.git"
        project.run("git", "remote", "add", "origin", remote)
        (folder / "home/.netrc").write_text(f"machine 127.0.0.1 login reader password {SECRETS['netrc-password']}\n")
        (folder / "home/.netrc").chmod(0o600)
        (folder / "mounted/YOLACT_SOME_SECRET").write_text(SECRETS["secret-file"])
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
            "MLFLOW_TRACKING_URI": by_name(server.address),
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": SECRETS["mlflow-password"],
            "GIT_USERNAME": "reader",
            "GIT_PASSWORD": SECRETS["git-password"],
            "YOLACT_SERVE_TOKEN": SECRETS["serve-token"],
            "YOLACT_SECRET_FILES": str(folder / "mounted/YOLACT_SOME_SECRET"),
            "SOME_API_KEY": SECRETS["unrelated-api-key"],
        }
        yield Run(project, folder, server, files)


def spellings(secret: str) -> list[bytes]:
    """How a secret may be written: as it is, in an address, in Base64 as part of a login."""
    logins = [base64.b64encode(f"{user}:{secret}".encode())[8:-8] for user in ("admin", "reader", "me", "planted")]
    return [secret.encode(), quote(secret, safe="").encode(), *logins]


def found(run: Run) -> list[str]:
    """Where a secret stands in what was written or said."""
    places = []
    given = {run.folder / "project" / name for name in GIVEN}
    own = {run.folder / "home/.netrc", run.folder / "server/auth.ini", run.folder / "mounted/YOLACT_SOME_SECRET"}
    texts = {what: text.encode() for what, text in run.said.items()}
    for path in run.folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path not in given | own:
            texts[str(path.relative_to(run.folder))] = path.read_bytes()
    assert len(texts) > 100
    for where, text in texts.items():
        for name, secret in SECRETS.items():
            if name == "signature" and where.startswith("project/.dvc/"):  # copies of dvc.lock
                continue
            places += [f"{name} in {where}" for spelling in spellings(secret) if spelling in text]
    return places


def test_the_search_finds_a_secret_in_each_spelling(tmp_path: Path) -> None:
    secret = SECRETS["mlflow-password"]
    header = base64.b64encode(f"admin:{secret}".encode())
    for text in (f"x{secret}y".encode(), b"Authorization: Basic " + header, quote(secret, safe="").encode()):
        assert any(spelling in text for spelling in spellings(secret))


def answer(address: str, token: str = "") -> str:
    """What a server says to a request, also to one that it refuses."""
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return f"{response.headers}\n{response.read().decode(errors='replace')}"
    except urllib.error.HTTPError as error:
        return f"{error.headers}\n{error.read().decode(errors='replace')}"


def test_a_run_writes_no_secret_anywhere(run: Run) -> None:
    source = f"http://127.0.0.1:{run.files.port}/set/voc.tar?X-Amz-Signature={SECRETS['signature']}"
    run.project.use(f"data.source={source}", "runtime.checkpoint_mirror=s3://bucket/mirror")

    # A whole run: data behind a login, checkpoints on S3, MLflow behind a login.
    output = run.call("dvc", "repro")
    assert "Running stage 'register'" in output
    assert list((run.folder / "s3/bucket/mirror").rglob("*.pt"))
    assert (run.folder / "server/mlflow.db").stat().st_size > 100_000
    yolact = ("python", "-m", "yolact_cli.main")
    run.call(*yolact, "lineage", "models:/yolact-smoke/1")
    run.call("python", "-m", "pipelines", "compile")

    # Each secret is wrong, or its server is away.
    away = f"http://admin:{SECRETS['mlflow-url-password']}@127.0.0.1:{free_port()}"
    run.call("python", "-m", "components.evaluate.step", expect=1, MLFLOW_TRACKING_URI=away)
    inside = by_name(run.server.address).replace("://", f"://admin:{SECRETS['mlflow-url-password']}@")
    for wrong in ({"MLFLOW_TRACKING_URI": inside}, {"MLFLOW_TRACKING_TOKEN": SECRETS["mlflow-token"]}):
        run.call(*yolact, "lineage", "models:/yolact-smoke/1", expect=1, **({"MLFLOW_TRACKING_USERNAME": ""} | wrong))
    output = run.call("python", "-m", "components.train.step", AWS_SECRET_ACCESS_KEY=SECRETS["aws-session"])
    assert "the mirror is behind" in output
    fresh = ("-c", "from pathlib import Path; Path('data/source.json').unlink()")
    run.call("python", *fresh)
    run.files.login = "reader:another"
    assert "401" in run.call("python", "-m", "components.source.watch", expect=1)
    run.files.login = f"reader:{SECRETS['netrc-password']}"

    # A fault of the program itself, with its traceback.
    crash = "from yolact_ops.commands.step import run_command; run_command('train', lambda params: {}[params])"
    assert "Traceback" in run.call("python", "-c", crash, expect=1)

    # The server: its pages, errors and log.
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
    try:
        end = time.monotonic() + 120
        while "ready" not in log.read_text() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.5)
            try:
                ready = answer(f"http://127.0.0.1:{port}/readyz")
                run.said["readyz"] = ready
                if '"ready":true' in ready.replace(" ", ""):
                    break
            except OSError:
                continue
        for path in ("/", "/healthz", "/readyz", "/metrics", "/model", "/nothing", "/openapi.json"):
            run.said[path] = answer(f"http://127.0.0.1:{port}{path}")
            run.said[f"{path} with a token"] = answer(f"http://127.0.0.1:{port}{path}", SECRETS["serve-token"])
    finally:
        process.terminate()
        process.wait(60)
    assert "yolact" in run.said["/metrics"]
    assert found(run) == []
