"""The remote commands against a fake server that validates each request against the API's definition."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compiler import PIPELINES
from pipelines.image import LABEL
from pipelines.servers import connection
from pipelines.servers.client import _equals
from pipelines.spec import read_compiled
from tests.pipelines.command import call
from tests.pipelines.kfp_server import Definition, Fault, Server, serve, stamp
from tests.servers.certificates import make_certificate
from tests.servers.servers import listening
from yolact_ops.lineage.code import code_versions, versions_to_text
from yolact_ops.settings.params import parse_params
from yolact_ops.settings.presets import choose

pytestmark = pytest.mark.usefixtures("quick_and_alone")

REVISION = ["data_repository=https://git.example/data.git", "data_path=images", "data_revision=v2"]
"""Arguments that name a revision of the data."""

BATCH = ["batch_prediction", "-A", "model=models:/yolact@champion", "-A", "images=s3://bucket/folder"]
"""A submission of the pipeline that is complete; what follows replaces a value."""

NAMES = ["a+b", "50%", "%41", "50%25", "a & b = c?", 'say "x"', r"back\slash", "Übung 7/9", "日本語", "x" * 128]
"""Names that a filter, a URL, JSON or a database could change."""

TOKEN = "eyJhbGciOiJSUzI1NiJ9.secret.signature"


def only(things: dict[str, Any]) -> Any:
    (thing,) = things.values()
    return thing


# Submitting ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repository_folder")
def test_submit_uploads_a_version_named_by_its_content_and_starts_a_run(
    server: Server, compiled: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("pipelines.submission.git_state", lambda root, ignoring=(): (commit, False))
    done = call("submit", compiled["tiny"], "-S", "train.lr=5e-4", "-A", "epochs=3", "--experiment", "night")
    assert done.code == 0, done.err
    assert only(server.pipelines)["name"] == "tiny"
    version = only(server.versions)
    assert version["name"] == read_compiled(compiled["tiny"]).content_hash[:12]
    assert version["tags"] == {"git_commit": commit, "git_dirty": "false"}
    assert version["pipeline_spec"]["pipeline_spec"] == next(yaml.safe_load_all(compiled["tiny"].read_text()))
    run = only(server.runs)
    assert f"Version {version['name']} of tiny (git_commit {commit}, git_dirty false)" in run["description"]
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert only(server.experiments)["display_name"] == "night"
    parameters = run["runtime_config"]["parameters"]
    assert parameters["epochs"] == 3
    assert parse_params(json.loads(parameters["params"])).train.lr == 5e-4
    assert done.run_id == run["run_id"]
    assert f"{server.host}/#/runs/details/{run['run_id']}" in done.out
    assert "uploaded" in done.out


@pytest.mark.usefixtures("repository_folder")
def test_a_pipeline_of_the_project_is_compiled_for_the_cluster_and_sent(server: Server) -> None:
    done = call(
        *("submit", "--preset", "smoke", "-S", "train.lr=5e-4", "-C", "tasks.train.gpus=0"),
        *("-A", "data_repository=https://git.example/data.git", "-A", "data_path=images", "-A", "data_revision=1.0"),
    )
    assert done.code == 0, done.err
    assert only(server.pipelines)["name"] == "training"
    executors = only(server.versions)["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    assert "accelerator" not in executors["exec-train"]["container"]["resources"]
    assert "accelerator" in executors["exec-evaluate"]["container"]["resources"]
    parameters = only(server.runs)["runtime_config"]["parameters"]
    assert (parameters["data_repository"], parameters["data_revision"]) == ("https://git.example/data.git", "1.0")
    settings = parse_params(json.loads(parameters["params"]))
    assert settings.train.lr == 5e-4
    assert settings.data == choose("smoke").data


@pytest.mark.usefixtures("repository_folder")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("training", []),
        ("evaluation", ["model=models:/yolact@champion", *REVISION]),
        ("batch_prediction", ["model=models:/yolact@champion", "images=s3://bucket/images", "shards=8"]),
    ],
)
def test_every_pipeline_of_the_project_can_be_submitted(server: Server, name: str, arguments: list[str]) -> None:
    assert name in PIPELINES
    done = call("submit", name, *(part for argument in arguments for part in ("-A", argument)))
    assert done.code == 0, done.err
    parameters = only(server.runs)["runtime_config"]["parameters"]
    assert {argument.partition("=")[0] for argument in arguments} <= parameters.keys()
    assert parameters.get("shards", 8) == 8


def test_without_the_definition_all_requests_are_known_ones(compiled: dict[str, Path], repository_folder: None) -> None:
    with serve(Server(None)) as server:
        assert call("submit", compiled["tiny"], "--host", server.host).code == 0
        assert call("schedule", compiled["tiny"], "--cron", "@daily", "--host", server.host).code == 0
        assert call("status", only(server.runs)["display_name"], "--host", server.host).code == 0
        assert call("schedule", "delete", "tiny", "--host", server.host).code == 0
    assert server.problems == []


@pytest.mark.usefixtures("repository_folder")
def test_an_unchanged_pipeline_is_not_uploaded_again(server: Server, compiled: dict[str, Path]) -> None:
    assert call("submit", compiled["tiny"]).code == 0
    # A server may say the same in other words: whole numbers as floats, defaults written out.
    stored = only(server.versions)["pipeline_spec"]["pipeline_spec"]
    parameters = stored["root"]["inputDefinitions"]["parameters"]
    assert parameters["params"].setdefault("isOptional", False) is False
    stored["components"]["comp-train"]["inputDefinitions"]["parameters"]["epochs"]["description"] = ""
    again = call("submit", compiled["tiny"])
    assert "reused" in again.out
    assert len(server.versions) == len(server.pipelines) == len(server.experiments) == 1
    assert len(server.runs) == 2
    assert server.count("upload_version") == 1


@pytest.mark.usefixtures("repository_folder")
def test_other_content_becomes_a_new_version(server: Server, compiled: dict[str, Path]) -> None:
    call("submit", compiled["tiny"])
    uncached = call("submit", compiled["tiny"], "--no-enable-caching")
    assert call("submit", compiled["tiny"], "--no-enable-caching").code == 0
    first, second = server.versions.values()
    assert first["name"] != second["name"]
    assert second["name"] in uncached.out
    assert len(server.versions) == 2
    specs = [version["pipeline_spec"]["pipeline_spec"] for version in (first, second)]
    loop = next(name for name in specs[0]["components"] if "for-loop" in name)
    caches = [
        [
            spec["root"]["dag"]["tasks"]["train"]["cachingOptions"],
            spec["components"][loop]["dag"]["tasks"]["predict"]["cachingOptions"],
        ]
        for spec in specs
    ]
    assert caches == [[{}, {"enableCache": True}], [{}, {}]]


@pytest.fixture
def code(repository: Path, tmp_path: Path) -> Path:
    """A copy of the code from which separate processes run commands."""
    for name in ("yolact", "yolact_ops", "components", "pipelines"):
        shutil.copytree(repository / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "compiled"))
    for name in ("requirements.lock", "params.yaml"):
        shutil.copy(repository / name, tmp_path / name)
    return tmp_path


def test_a_change_of_docs_reuses_the_version_and_a_change_of_code_does_not(server: Server, code: Path) -> None:
    def submit() -> str:
        command = [sys.executable, "-m", "pipelines", "submit"]
        environment = os.environ | {"PYTHONPATH": str(code)}
        done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "uploaded" in submit()
    (code / "README.md").write_text("other docs")
    (code / "components/train/README.md").write_text("other docs")
    assert "reused" in submit()
    with (code / "components/train/step.py").open("a") as file:
        file.write("# other code\n")
    assert "uploaded" in submit()
    first, second = (version["pipeline_spec"]["pipeline_spec"] for version in server.versions.values())
    tasks = [spec["root"]["dag"]["tasks"] for spec in (first, second)]
    assert [name for name in tasks[0] if tasks[0][name] != tasks[1][name]] == ["train"]
    assert len(server.runs) == 3


# The image's code ----------------------------------------------------------------------------------------------------


@contextmanager
def docker_with(images: dict[str, dict[str, str]]) -> Iterator[str]:
    """A fake Docker: an address that returns labels of images by name."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/v1.44")
            found = re.fullmatch(r"/images/(.+)/json", path)
            answer: dict[str, Any] | None = {"message": "no such image"}
            if path == "/version":
                answer = {"ApiVersion": "1.44", "MinAPIVersion": "1.24"}
            elif found and found[1] in images:
                answer = {"Id": "sha256:1", "Config": {"Labels": images[found[1]]}}
            body = json.dumps(answer).encode()
            self.send_response(404 if "message" in answer else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with listening(Handler) as port:
        yield f"tcp://127.0.0.1:{port}"


@pytest.mark.usefixtures("repository_folder")
def test_an_image_with_other_code_is_refused_if_the_local_docker_has_it(
    server: Server, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = code_versions(repository)
    images = {
        "right:1": {LABEL: versions_to_text(versions)},
        "wrong:1": {LABEL: versions_to_text(versions | {"train": "0" * 16, "merge": "0" * 16})},
        "old:1": {},
    }
    with docker_with(images) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        done = call("submit", "-C", "image=right:1")
        assert (done.code, done.err) == (0, "")
        refused = call("submit", "-C", "image=wrong:1")
        assert refused.code == 1
        assert "image wrong:1 has other code than the pipeline was compiled for (steps: train)" in refused.err
        assert "make image IMAGE=wrong:1" in refused.err
        assert len(server.runs) == 1
        evaluation = ("submit", "evaluation", "-A", "model=models:/y/1", *[f"-A{argument}" for argument in REVISION])
        assert call(*evaluation, "-C", "image=wrong:1").err == "", "none of its tasks has other code"
        for image, reason in (("old:1", "has no label"), ("elsewhere:1", "is not in this machine's Docker")):
            unknown = call("submit", "-C", f"image={image}")
            assert unknown.code == 0
            assert f"Not checked here: the image {image} {reason}" in unknown.err
            assert len(unknown.err.splitlines()) == 1


@pytest.mark.usefixtures("repository_folder")
def test_without_docker_one_line_says_that_the_tasks_check_the_code(server: Server) -> None:
    done = call("submit")
    assert done.code == 0
    assert len(done.err.splitlines()) == 1
    assert "Each task checks its code when it starts." in done.err


# Settings and arguments ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repository_folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "-S", "train.epoch=3"], "train.epoch: unknown key; did you mean 'epochs'?"),
        (["tiny", "-S", "train.lr=fast"], "train.lr: input should be a valid number"),
        (["tiny", "--preset", "smok"], "no preset 'smok'; did you mean 'smoke'?"),
        (["tiny", "--params", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["tiny", "-A", "epoch=3"], "the pipeline tiny has no parameter 'epoch'; did you mean 'epochs'?"),
        (["tiny", "-A", "epochs=three"], "parameter epochs of the pipeline tiny must be NUMBER_INTEGER"),
        (["tiny", "-A", "epochs=true"], "must be NUMBER_INTEGER (found True)"),
        (["tiny", "-A", "epochs"], "--argument epochs: must be NAME=VALUE"),
        (["plain"], "the pipeline plain needs a value for epochs; give it as --argument epochs=VALUE"),
        (["plain", "-A", "epochs=1", "--preset", "smoke"], "takes no settings; leave out --preset, -S"),
        (["nothing.yaml"], "nothing.yaml: no such file"),
        (["trainig"], "no pipeline 'trainig'; there are: training, evaluation, batch_prediction; or"),
        (["training", "-C", "tasks.train.gpu=0"], "gpu: unknown key"),
        (["tiny", "-C", "tasks.train.gpus=0"], "already compiled; --cluster and -C go with a pipeline's name"),
        (["params.yaml"], "params.yaml: not a compiled pipeline"),
        (["training", "-A", "data_repository=https://git.example/x.git", "-A", "data_revision=v1"], "data_path: empty"),
        ([*BATCH, "-A", "shards=0"], "--argument shards=0: must be at least 1"),
        ([*BATCH, "-A", "batch_size=-1"], "--argument batch_size=-1: must be at least 1"),
        ([*BATCH, "-A", "device=gpu"], "--argument device=gpu: must be auto, cpu, cuda, cuda:N or mps"),
        ([*BATCH, "-A", "images=/data"], "--argument images=/data: must be s3://BUCKET/FOLDER"),
        ([*BATCH, "-A", "destination=s3:///x"], "--argument destination=s3:///x: must be s3://BUCKET/FOLDER, or empty"),
        ([*BATCH, "-A", "model=yolact"], "--argument model=yolact: must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        (["training", "-A", "checkpoints=x"], "--argument checkpoints=x: must be an absolute path, or empty"),
        (["training", "-A", "resume_pipeline_run=last"], "resume_pipeline_run=last: must be the id of a run, as "),
        (
            ["tiny", "--run-name", "x" * 129],
            "has 129 characters; 128 are allowed. Choose another name; nothing was sent",
        ),
        (["tiny", "--run-name", " x"], "the name ' x': begins or ends with a space"),
        (["tiny", "--run-name", ""], "the name '': is empty"),
        (["tiny", "--run-name", "日本-1"], "has a hyphen before its first Latin letter or digit"),
        (["tiny", "--run-name", "a\tb"], "has the character U+0009, which is not visible"),
        (["tiny", "--run-name", "\U0001f600"], "has the character U+1F600, which Kubeflow Pipelines cannot store"),
        (["tiny", "--run-name", "{{workflow.name}}"], "has {{, which Argo Workflows would replace"),
        (["tiny", "--experiment", "e" * 129], "--experiment 'eeee"),
        (
            [
                *("training", "-A", "data_repository=https://bob:hidden@git.example/x.git"),
                *("-A", "data_path=data", "-A", "data_revision=v1"),
            ],
            "the data's git repository: its address contains a password",
        ),
        (
            ["training", "-S", "data.source=dvc:https://bob:hidden@git.example/x.git#data@v1"],
            "the data's git repository: its address contains a password",
        ),
        (
            ["evaluation", "-A", "model=models:/y/1", "-S", "data.source=https://bob:hidden@host.example/images.zip"],
            "data.source: its address contains a password",
        ),
    ],
)
def test_nothing_is_sent_when_settings_or_arguments_are_wrong(
    server: Server, compiled: dict[str, Path], arguments: list[str], message: str
) -> None:
    refused = call("submit", *(compiled.get(argument, argument) for argument in arguments))
    assert refused.code == 1
    assert message in refused.err
    assert "hidden" not in refused.out + refused.err
    assert server.requests == []
    server.requests.append("none, as it should be")


@pytest.mark.usefixtures("repository_folder")
def test_a_multi_user_server_gets_the_namespace(server: Server, compiled: dict[str, Path]) -> None:
    server.multi_user = True
    refused = call("submit", compiled["tiny"])
    assert refused.code == 1
    assert "--namespace" in refused.err
    assert server.runs == {}
    assert call("submit", compiled["tiny"], "-n", "team").code == 0
    assert only(server.pipelines)["namespace"] == only(server.experiments)["namespace"] == "team"
    assert call("status", only(server.runs)["display_name"], "-n", "team").code == 0
    assert call("schedule", compiled["tiny"], "--cron", "@daily", "-n", "team").code == 0


# Waiting -------------------------------------------------------------------------------------------------------------


# Faults of the server ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repository_folder")
def test_a_read_request_is_retried_after_an_internal_error(server: Server, compiled: dict[str, Path]) -> None:
    server.faults = [Fault("GET", 500), Fault("GET", 503), Fault("GET", 0)]
    assert call("submit", compiled["tiny"]).code == 0
    assert server.count("healthz") == 4


@pytest.mark.usefixtures("repository_folder")
def test_a_lasting_internal_error_is_reported_with_the_servers_message(
    server: Server, compiled: dict[str, Path]
) -> None:
    server.faults = [Fault("GET .*/healthz", 500, times=100)]
    failed = call("submit", compiled["tiny"])
    assert failed.code == 1
    assert (
        "answers 500 Internal Server Error: the database is away. The server has failed or is overloaded" in failed.err
    )
    assert "kubectl -n kubeflow logs deployment/ml-pipeline" in failed.err
    assert server.count("healthz") == connection.RETRIES + 1


CREATIONS = {
    "/pipelines$": "pipelines",
    "/upload_version": "versions",
    "/experiments": "experiments",
    "/runs": "runs",
    "/recurringruns": "recurring",
}


@pytest.mark.usefixtures("repository_folder")
@pytest.mark.parametrize("status", [0, 500, 504])
@pytest.mark.parametrize("path", CREATIONS)
def test_an_object_whose_response_got_lost_is_not_created_twice(
    server: Server, compiled: dict[str, Path], path: str, status: int
) -> None:
    server.faults = [Fault(f"POST .*{path}", status, after=True)]
    command = (
        ["schedule", compiled["tiny"], "--cron", "@daily"] if "recurring" in path else ["submit", compiled["tiny"]]
    )
    done = call(*command)
    assert done.code == 0, done.err
    assert len(getattr(server, CREATIONS[path])) == 1
    assert server.count(f"POST .*{path}") == 1


@pytest.mark.usefixtures("repository_folder")
@pytest.mark.parametrize("path", [path for path in CREATIONS if "runs" not in path])
def test_a_failed_creation_is_retried_after_checking_that_nothing_was_created(
    server: Server, compiled: dict[str, Path], path: str
) -> None:
    """Only of what has a name that the server gives once: runs are in test_orphans.py."""
    server.faults = [Fault(f"POST .*{path}", 500, times=2)]
    done = call("submit", compiled["tiny"])
    assert done.code == 0, done.err
    assert len(getattr(server, CREATIONS[path])) == 1
    posts = [request for request in server.requests if re.search(f"POST .*{path}|GET", request)]
    places = [index for index, request in enumerate(posts) if request.startswith("POST")]
    assert len(places) == 3
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(places)), "no look in between"


@pytest.mark.usefixtures("repository_folder")
def test_a_pipeline_created_by_another_process_meanwhile_is_used(server: Server, compiled: dict[str, Path]) -> None:
    """409: the pipeline does not exist when looked up, but does when created."""
    server.faults = [Fault("GET .*/pipelines/names", 404)]
    server.pipelines["their-id"] = {"pipeline_id": "their-id", "name": "tiny", "created_at": stamp(0)}
    assert call("submit", compiled["tiny"]).code == 0
    assert only(server.versions)["pipeline_id"] == "their-id"
    assert server.count("POST .*/pipelines$") == 1


@pytest.mark.usefixtures("repository_folder")
def test_an_unrelated_conflict_is_reported(server: Server, compiled: dict[str, Path]) -> None:
    server.faults = [Fault("POST .*/runs", 409)]
    refused = call("submit", compiled["tiny"])
    assert refused.code == 1
    assert "answers 409 Conflict: the database is away" in refused.err
    assert server.count("POST .*/runs") == 1


@pytest.mark.usefixtures("repository_folder")
def test_a_server_that_never_answers_times_out(
    server: Server, compiled: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr(connection, "RETRIES", 1)
    server.faults = [Fault("healthz", seconds=1.0, times=2)]
    failed = call("submit", compiled["tiny"])
    assert failed.code == 1
    assert f"{server.host}: no answer in 0.2 s. Is the server overloaded?" in failed.err


# Who asks ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repository_folder")
@pytest.mark.parametrize("way", ["option", "variable", "file"])
def test_a_token_authenticates_and_is_never_printed(
    server: Server, compiled: dict[str, Path], way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = TOKEN
    options: list[str | Path] = []
    if way == "option":
        options = ["--token", TOKEN]
    elif way == "variable":
        monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    else:
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        options = ["--token-file", tmp_path / "token"]
    done = call("submit", compiled["tiny"], *options)
    assert done.code == 0, done.err
    server.token = "another"
    refused = call("submit", compiled["tiny"], *options)
    assert refused.code == 1
    assert "answers 401 Unauthorized: Request header error: there is no user identity header." in refused.err
    assert "The token or cookie is invalid or has expired." in refused.err
    assert "create token default-editor --audience pipelines.kubeflow.org" in refused.err
    assert TOKEN not in done.out + done.err + refused.out + refused.err


@pytest.mark.usefixtures("repository_folder")
def test_a_token_on_the_command_line_overrides_the_environment(
    server: Server, compiled: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, old = tmp_path / "token", tmp_path / "old"
    file.write_text(TOKEN)
    old.write_text("old")
    server.token = TOKEN
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "old")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(old))
    for given in (["--token-file", file], ["--token", TOKEN]):
        done = call("submit", compiled["tiny"], *given)
        assert done.code == 0, done.err
    refused = call("submit", compiled["tiny"], "--token", TOKEN, "--token-file", file)
    assert refused.code == 2
    assert "give one of them" in refused.err


@pytest.mark.usefixtures("repository_folder")
def test_a_token_in_the_servers_message_is_hidden(server: Server, compiled: dict[str, Path]) -> None:
    server.faults = [Fault("healthz", 400)]
    original = connection._server_message
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "_server_message", lambda error: f"{original(error)}: bad token {TOKEN}")
        refused = call("submit", compiled["tiny"], "--token", TOKEN)
    assert "bad token ***" in refused.err
    assert TOKEN not in refused.out + refused.err


@pytest.mark.usefixtures("repository_folder")
def test_without_a_token_the_message_says_how_to_get_one(server: Server, compiled: dict[str, Path]) -> None:
    server.token = TOKEN
    refused = call("submit", compiled["tiny"], "-n", "team")
    assert "It requires authentication" in refused.err
    assert "kubectl -n team create token default-editor" in refused.err


@pytest.mark.usefixtures("repository_folder")
def test_missing_permissions_name_the_namespace(server: Server, compiled: dict[str, Path]) -> None:
    server.multi_user = server.forbidden = True
    refused = call("submit", compiled["tiny"], "-n", "team")
    assert refused.code == 1
    assert "answers 403 Forbidden: User 'ann' is not authorized" in refused.err
    assert "You may not do this in namespace team" in refused.err


@pytest.mark.usefixtures("repository_folder")
def test_a_login_page_is_recognised(server: Server, compiled: dict[str, Path]) -> None:
    server.login_page = True
    assert "answers with a web page, not with the API" in call("submit", compiled["tiny"]).err
    server.login_page = False
    server.faults = [Fault("healthz", 302)]
    redirected = call("submit", compiled["tiny"])
    assert redirected.code == 1
    assert "It redirects to another page, probably a login page." in redirected.err
    assert server.count("dex") == 0


# Where the server is -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repository_folder")
def test_a_wrong_path_is_reported(server: Server, compiled: dict[str, Path]) -> None:
    server.has_interface = False
    refused = call("submit", compiled["tiny"], "--host", f"{server.host}/kubeflow")
    assert refused.code == 1
    assert "answers 404 Not Found" in refused.err
    assert "ends in /pipeline" in refused.err


@pytest.mark.usefixtures("repository_folder")
@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:1: no connection (connection refused). Is the server, or the port"),
        ("nowhere.invalid", "https://nowhere.invalid: no such host."),
        ("http://", "not an address"),
        ("ftp://host", "not an address"),
    ],
)
def test_an_unreachable_server_is_reported(compiled: dict[str, Path], host: str, message: str) -> None:
    refused = call("submit", compiled["tiny"], "--host", host)
    assert refused.code == 1
    assert message in refused.err
    assert "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80" in refused.err
    assert len(refused.err.strip().splitlines()) == 1, "more than one message"


@pytest.mark.usefixtures("repository_folder")
def test_without_an_address_the_message_says_how_to_get_one(compiled: dict[str, Path]) -> None:
    refused = call("submit", compiled["tiny"])
    assert refused.code == 1
    assert "no server given. Give --host ADDRESS, or set KF_PIPELINES_ENDPOINT" in refused.err


@pytest.mark.usefixtures("repository_folder")
def test_a_self_signed_certificate_is_refused_until_it_is_named(
    definition: Definition | None, compiled: dict[str, Path], tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve(Server(definition), context) as server:
        refused = call("submit", compiled["tiny"], "--host", server.host)
        assert refused.code == 1
        assert "signed by nobody in Mozilla's list (self-signed, or by your organisation)" in refused.err
        assert "--ssl-ca-cert FILE.pem" in refused.err
        assert server.requests == []
        done = call("submit", compiled["tiny"], "--host", server.host, "--ssl-ca-cert", certificate)
        assert done.code == 0, done.err
        unusable = call("submit", compiled["tiny"], "--host", server.host, "--ssl-ca-cert", compiled["tiny"])
        assert unusable.code == 1
        assert f"--ssl-ca-cert {compiled['tiny']}: has no certificate in PEM format" in unusable.err
        plain = call("status", "x", "--host", server.host.replace("https", "http"))
        assert plain.code == 1
        assert "Does the address begin with the right http:// or https://?" in plain.err
    assert server.problems == []


@pytest.mark.usefixtures("repository_folder")
def test_a_certificate_for_another_host_is_reported(
    definition: Definition | None, compiled: dict[str, Path], tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path, "kubeflow.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve(Server(definition), context) as server:
        refused = call("submit", compiled["tiny"], "--host", server.host, "--ssl-ca-cert", certificate)
    assert refused.code == 1
    assert "certificate is for another host name" in refused.err


@pytest.mark.usefixtures("repository_folder")
def test_https_to_a_server_without_tls_is_reported(server: Server, compiled: dict[str, Path]) -> None:
    refused = call("submit", compiled["tiny"], "--host", server.host.replace("http", "https"))
    assert refused.code == 1
    assert "does not speak TLS. Did you mean http://?" in refused.err
    server.requests.append("none that could be read")


# Schedules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("  */15   8-18/2 * * mon-fri ", "0 */15 8-18/2 * * mon-fri"),
        ("30 0 3 1,15 JAN ?", "30 0 3 1,15 JAN ?"),
        ("@every 1h30m", "@every 1h30m"),
    ],
)
@pytest.mark.usefixtures("repository_folder")
def test_five_cron_fields_get_seconds_and_other_forms_stay(
    server: Server, compiled: dict[str, Path], written: str, sent: str
) -> None:
    assert call("schedule", compiled["tiny"], "--cron", written).code == 0
    assert only(server.recurring)["trigger"]["cron_schedule"]["cron"] == sent


@pytest.mark.usefixtures("repository_folder")
def test_schedule_creates_a_recurring_run_of_the_version(server: Server, compiled: dict[str, Path]) -> None:
    done = call(
        *("schedule", compiled["tiny"], "--cron", "30 3 * * mon-fri", "--name", "nightly", "--max-concurrency", "2"),
        *("--start", "2027-01-31", "--end", "2027-02-28T18:00+01:00", "--disable", "-S", "train.epochs=2"),
    )
    assert done.code == 0, done.err
    recurring = only(server.recurring)
    assert recurring["display_name"] == "nightly"
    assert recurring["trigger"]["cron_schedule"] == {
        "cron": "0 30 3 * * mon-fri",
        "start_time": "2027-01-31T00:00:00+00:00",
        "end_time": "2027-02-28T18:00:00+01:00",
    }
    assert (recurring["mode"], recurring["max_concurrency"], recurring["no_catchup"]) == ("DISABLE", "2", True)
    version_id = only(server.versions)["pipeline_version_id"]
    assert recurring["pipeline_version_reference"]["pipeline_version_id"] == version_id
    assert json.loads(recurring["runtime_config"]["parameters"]["params"])["train"]["epochs"] == 2
    assert server.runs == {}


@pytest.mark.usefixtures("repository_folder")
def test_a_schedule_is_replaced_only_with_the_option(server: Server, compiled: dict[str, Path]) -> None:
    assert call("schedule", compiled["tiny"], "--cron", "@daily").code == 0
    first = only(server.recurring)
    refused = call("schedule", compiled["tiny"], "--cron", "@hourly")
    assert refused.code == 1
    assert "there is already a schedule 'tiny' (cron @daily, enabled). Replace it with --replace" in refused.err
    assert only(server.recurring) == first
    server.faults = [Fault("POST .*/recurringruns", 400)]
    assert call("schedule", compiled["tiny"], "--cron", "@hourly", "--replace").code == 1
    assert only(server.recurring) == first, "a new one that is refused must not cost the old one"
    replaced = call("schedule", compiled["tiny"], "--cron", "@hourly", "--replace")
    assert "replacing the old one" in replaced.out
    assert only(server.recurring)["trigger"]["cron_schedule"]["cron"] == "@hourly"


@pytest.mark.parametrize("name", NAMES)
def test_names_keep_all_their_characters(server: Server, compiled: dict[str, Path], name: str) -> None:
    for _ in range(2):
        assert call("submit", compiled["tiny"], "--run-name", name, "--experiment", name).code == 0
    assert only(server.experiments)["display_name"] == name
    assert {run["display_name"] for run in server.runs.values()} == {name}
    assert f"run {name}: " in call("status", name).out
    schedule = ["schedule", compiled["tiny"], "--cron", "@daily", "--experiment", name, "--name", name]
    assert call(*schedule).code == 0
    assert call(*schedule).code == 1, "it finds the first one"
    assert call(*schedule, "--replace").code == 0
    assert only(server.recurring)["display_name"] == name
    assert call("schedule", "delete", name).code == 0
    assert not server.recurring


def test_a_filter_means_the_same_to_a_server_that_decodes_it_once() -> None:
    for name in NAMES:
        assert json.loads(_equals("display_name", name))["predicates"][0]["string_value"] == name


def test_a_run_whose_name_differs_in_case_is_another_one(server: Server, compiled: dict[str, Path]) -> None:
    for name in ("First", "first"):
        assert call("submit", compiled["tiny"], "--run-name", name).code == 0
    assert len(server.runs) == 2
    assert "run First: " in call("status", "First").out
    assert call("status", "FIRST").code == 1


@pytest.mark.usefixtures("repository_folder")
def test_a_schedule_whose_name_differs_in_case_is_another_one(server: Server, compiled: dict[str, Path]) -> None:
    assert call("schedule", compiled["tiny"], "--cron", "@daily", "--name", "Weekly").code == 0
    assert call("schedule", compiled["tiny"], "--cron", "@daily", "--name", "weekly", "--replace").code == 0
    assert sorted(one["display_name"] for one in server.recurring.values()) == ["Weekly", "weekly"]


@pytest.mark.usefixtures("repository_folder")
def test_schedules_are_listed_and_deleted(server: Server, compiled: dict[str, Path]) -> None:
    assert "no schedules" in call("schedule", "list").out
    server.page_size = 2
    for name in "abcde":
        assert call("schedule", compiled["tiny"], "--cron", "@daily", "--name", name).code == 0
    listed = json.loads(call("schedule", "list", "--json").out)
    assert [schedule["name"] for schedule in listed] == list("abcde")
    assert {schedule["state"] for schedule in listed} == {"ENABLED"}
    assert call("schedule", "delete", "b").out == "schedule b deleted\n"
    assert call("schedule", "delete", listed[3]["id"]).code == 0
    assert [line[0] for line in call("schedule", "list").out.splitlines()] == list("ace")
    refused = call("schedule", "delete", "x")
    assert refused.code == 1
    assert "no schedule 'x'; there are: a, c, e" in refused.err


@pytest.mark.usefixtures("repository_folder")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cron", "0 3 * *"], "has 4 fields, not 5"),
        (["--cron", "0 0 3 * * * 2027"], "has 7 fields, not 5"),
        (["--cron", ""], "has 0 fields, not 5"),
        (["--cron", "@daily", "--start", "tomorrow"], "--start tomorrow: not a time"),
        (["--cron", "@daily", "--start", "2027-02-01", "--end", "2027-01-01"], "must be later than --start"),
    ],
)
def test_an_impossible_schedule_is_refused_before_anything_is_sent(
    server: Server, compiled: dict[str, Path], options: list[str], message: str
) -> None:
    refused = call("schedule", compiled["tiny"], *options)
    assert refused.code == 1
    assert message in refused.err
    assert server.requests == []
    server.requests.append("none, as it should be")


# The command as a program --------------------------------------------------------------------------------------------


def test_help_works_without_the_sdk(repository: Path) -> None:
    program = (
        "import sys\nfrom pipelines.__main__ import app\n"
        "assert 'kfp' not in sys.modules and 'torch' not in sys.modules, 'slow to start'\n"
        "app(['submit', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--enable-caching" in done.stdout


@pytest.mark.parametrize(
    "words",
    [["submit"], ["schedule", "create"], ["status"], ["logs"], ["wait"], ["list"], ["stop"], ["retry"], ["check"]],
)
def test_help_does_not_truncate_variables_in_a_narrow_terminal_and_has_no_local_path(
    repository: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = call(*words, "--help").out
    assert max(map(len, shown.splitlines())) <= 80
    for name in ("ENDPOINT", "NAMESPACE", "TOKEN", "SA_TOKEN_PATH", "COOKIE"):
        assert re.search(rf"KF_PIPELINES_{name}\b", shown)
    assert str(repository) not in shown.replace("\n", "").replace(" ", "")
