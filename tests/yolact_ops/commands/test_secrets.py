"""Secrets reach the process that a task runs in, and nothing that was set before is changed or mixed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from yolact_ops.commands.secrets import SECRET_FILES_VARIABLE

SECRETS = {
    "AWS_ACCESS_KEY_ID": "key\n",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SESSION_TOKEN": "session",
    "AWS_DEFAULT_REGION": "",
    "AWS_ENDPOINT_URL": "http://s3",
    "MLFLOW_TRACKING_URI": "http://mlflow",
    "MLFLOW_TRACKING_USERNAME": "user",
    "GIT_PASSWORD": "a b=c ",
}


def environment_of_a_task(folder: Path, **set_before: str) -> dict[str, str]:
    """What a child of a task's process sees of the secrets, and of ``set_before``."""
    for name, value in SECRETS.items():
        (folder / name).write_text(value, encoding="utf-8")
    names = [*SECRETS, "GIT_USERNAME", "MLFLOW_TRACKING_TOKEN"]  # the last two do not exist
    files = os.pathsep.join(str(folder / name) for name in names)
    child = "import json, os; print(json.dumps(dict(os.environ)))"
    code = (
        "import subprocess, sys; from yolact_ops.commands.secrets import read_secrets; read_secrets(); "
        f"sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))"
    )
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {SECRET_FILES_VARIABLE: files} | set_before,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    return {name: value for name, value in found.items() if name in names or name in set_before}


def test_each_file_is_the_variable_of_its_name_and_missing_or_empty_ones_are_left_out(tmp_path: Path) -> None:
    found = environment_of_a_task(tmp_path)
    assert found == {name: value.rstrip("\n") for name, value in SECRETS.items() if value}


@pytest.mark.parametrize(
    ("set_before", "replaced"),
    [
        pytest.param(
            {"MLFLOW_TRACKING_URI": "http://of-kubeflow", "MLFLOW_RUN_ID": "1"},
            {"MLFLOW_TRACKING_USERNAME": None},
            id="the MLflow integration of Kubeflow Pipelines: its server does not get our login",
        ),
        pytest.param(
            {"MLFLOW_TRACKING_TOKEN": "of-kubeflow"},
            {"MLFLOW_TRACKING_TOKEN": None},
            id="the integration without variables for tasks: our server does not get its login",
        ),
        pytest.param(
            {"AWS_ACCESS_KEY_ID": "other", "AWS_SECRET_ACCESS_KEY": "more"},
            {"AWS_SESSION_TOKEN": None},
            id="keys of S3 from two sources are not mixed",
        ),
        pytest.param(
            {"AWS_ROLE_ARN": "arn:aws:iam::1:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token"},
            {},
            id="a pod's role stays; the secret's keys, if it has any, come first, as boto3 orders them",
        ),
        pytest.param({"AWS_ENDPOINT_URL": ""}, {"AWS_ENDPOINT_URL": "http://s3"}, id="an empty variable is not set"),
    ],
)
def test_what_is_set_stays_as_it_is_and_is_not_mixed_with_secrets(
    tmp_path: Path, set_before: dict[str, str], replaced: dict[str, str | None]
) -> None:
    expected: dict[str, str | None] = {name: value.rstrip("\n") for name, value in SECRETS.items() if value}
    expected |= set_before | replaced
    assert environment_of_a_task(tmp_path, **set_before) == {
        name: value for name, value in expected.items() if value is not None
    }


def test_without_secrets_nothing_is_set(tmp_path: Path) -> None:
    assert environment_of_a_task(tmp_path, **{SECRET_FILES_VARIABLE: ""}) == {SECRET_FILES_VARIABLE: ""}


def test_a_task_under_kubeflows_mlflow_integration_logs_to_the_run_it_was_given_and_starts_none(
    tmp_path: Path, empty_store: Path, repository: Path
) -> None:
    """The variables are those that the driver of Kubeflow Pipelines 2.17 sets on a task's container."""
    shutil.copy(empty_store, tmp_path / "kubeflow.db")
    store = f"sqlite:///{tmp_path}/kubeflow.db"
    client = MlflowClient(tracking_uri=store)
    experiment = client.create_experiment("KFP-Default", artifact_location=str(tmp_path / "artifacts"))
    parent = client.create_run(experiment, run_name="training", tags={"kfp.pipeline_run_id": "1"}).info.run_id
    (tmp_path / "MLFLOW_TRACKING_URI").write_text(f"sqlite:///{tmp_path}/ours.db\n")
    code = f"""
from pathlib import Path
from yolact_ops.commands.task import task
from yolact_ops.lineage.code import code_version
from yolact_ops.settings.params import load_params
from yolact_ops.tracking.runs import resume_run, start_run
root = Path({str(repository)!r})
with task(STEP, code_version(root, STEP), needs_mlflow=True):
    with OPEN(load_params(root / "params.yaml"), Path("models/run.json")) as tracker:
        tracker.log_metrics({{STEP: 1.0}}, step=1)
"""
    given = {}
    for step, how in (("train", "start_run"), ("evaluate", "resume_run")):
        run = client.create_run(experiment, run_name=step, tags={"mlflow.parentRunId": parent})
        given[step] = run.info.run_id
        hidden = ("MLFLOW", "AWS_", "DVC_ROOT")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)} | {
            "MLFLOW_TRACKING_URI": store,
            "MLFLOW_EXPERIMENT_ID": experiment,
            "MLFLOW_RUN_ID": given[step],
            "KUBERNETES_SERVICE_HOST": "10.96.0.1",
            SECRET_FILES_VARIABLE: str(tmp_path / "MLFLOW_TRACKING_URI"),
        }
        subprocess.run(
            [sys.executable, "-c", code.replace("STEP", repr(step)).replace("OPEN", how)],
            cwd=tmp_path,
            env=environment,
            check=True,
        )
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert {run.info.run_id for run in runs} == {parent, *given.values()}
    assert [run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags] == [parent]
    for step, run_id in given.items():
        found = client.get_run(run_id)
        assert found.data.metrics == {step: 1.0}
        assert found.info.run_name == step
    assert not (tmp_path / "ours.db").exists()
