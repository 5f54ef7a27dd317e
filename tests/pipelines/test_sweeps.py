"""Sweeps: what is asked for is checked, the experiment fits Katib's types, and a stopped sweep goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import optuna
import pytest
import yaml

from components.promote.promotion import RefusedError
from components.promote.rollout import NotServedError
from pipelines.config import load_cluster
from pipelines.servers.connection import ClusterError
from pipelines.sweeps import katib, local
from pipelines.sweeps.data import validation_data
from pipelines.sweeps.exit_codes import crash_exit_code
from pipelines.sweeps.local import TrialLoop
from pipelines.sweeps.space import Parameter, check_space, split_overrides
from pipelines.sweeps.sweep import BEST_VARIABLE, TRIAL_VARIABLE, Best, Plan, Sweep, SweepError, SweepFolder, Trial
from tests.pipelines.command import call
from tests.pipelines.kube_server import VERSION, KubeServer, serve_kubernetes
from tests.servers.servers import free_port
from yolact.engine.interrupts import InterruptedRunError
from yolact.errors import EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, DataError, SettingsError, YolactError
from yolact_ops.commands.errors import clear_errors
from yolact_ops.commands.task import as_text
from yolact_ops.settings.params import Params
from yolact_ops.tracking.evaluations import evaluated_annotations
from yolact_ops.tracking.store import StoreUnavailableError
from yolact_ops.transfer.download import DownloadError, ServerUnavailableError

SCHEMA = Path(__file__).with_name("katib_experiment.json")
LR = Parameter("train.lr", "loguniform", (1e-4, 1e-2))
SPACE = [LR, Parameter("train.optimizer", "choice", ("sgd", "adamw")), Parameter("train.epochs", "int", (2, 9))]


def sweep_of(params: Params, space: list[Parameter], metric: str = "mask_AP") -> Sweep:
    return Sweep("trying", as_text(params), {each.key: str(each) for each in space}, metric, "", {"train": "1"})


# What is asked for


def test_overrides_are_separated_from_spaces() -> None:
    fixed, space = split_overrides(
        [
            "train.epochs=3",
            "train.lr=loguniform(1e-4, 1e-2)",
            "train.momentum=uniform(0.5,0.99)",
            "train.batch_size=int(2,8)",
            "train.optimizer=choice(sgd, adamw)",
            "model.anchor_scales=choice([[12], [24]], [[16], [32]])",
            "train.ema=choice(true, false, 'true', 0.5)",
            "data.source='s3(1)'",
        ]
    )
    assert fixed == ["train.epochs=3", "data.source='s3(1)'"]
    assert space == [
        LR,
        Parameter("train.momentum", "uniform", (0.5, 0.99)),
        Parameter("train.batch_size", "int", (2, 8)),
        Parameter("train.optimizer", "choice", ("sgd", "adamw")),
        Parameter("model.anchor_scales", "choice", ("[[12], [24]]", "[[16], [32]]")),
        Parameter("train.ema", "choice", ("true", "false", '"true"', "0.5")),
    ]
    assert str(LR) == "loguniform(0.0001, 0.01)"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=logunifrom(1e-4,1e-2)", "no such form; write one of train.lr=loguniform(1e-4,1e-2), train.lr=unif"),
        ("train.lr=loguniform(1e-4)", "must be two numbers, as train.lr=loguniform(1e-4,1e-2)"),
        ("train.lr=loguniform(0,1)", "both numbers must be above 0, as train.lr="),
        ("train.lr=uniform(2,1)", "the first number must be below the second, as train.lr=uniform(0.5,0.99)"),
        ("train.lr=uniform(nan,1)", "the first number must be below the second"),
        ("train.epochs=int(1.5,3)", "must be two whole numbers, as train.epochs=int(1,8)"),
        ("train.optimizer=choice(sgd)", "must be two or more different values, as train.optimizer=choice(sgd,adamw)"),
        ("train.optimizer=choice(sgd,sgd)", "must be two or more different values"),
        ("train.optimizer=choice([sgd)", "not valid YAML"),
    ],
)
def test_a_wrong_space_is_refused_with_its_key_and_the_right_form(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)) as error:
        split_overrides([override])
    assert str(error.value).startswith(f"-S {override}"[:18])


def test_a_key_has_one_value_or_one_space_and_there_is_a_space() -> None:
    with pytest.raises(SettingsError, match=r"-S train\.lr: is given twice"):
        split_overrides(["train.lr=1e-3", "train.lr=uniform(1,2)"])
    with pytest.raises(SettingsError, match=r"a sweep needs a setting to try, as -S 'train\.lr=loguniform"):
        split_overrides(["train.lr=1e-3"])


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (Parameter("train.lrr", "uniform", (0.1, 0.2)), "train.lrr: unknown key"),
        (Parameter("train.optimizer", "choice", ("sgd", "adam")), "-S train.optimizer=adam: train.optimizer"),
        (Parameter("train.epochs", "uniform", (1.5, 2.5)), "-S train.epochs=1.5: train.epochs"),
        (Parameter("train.batch_size", "int", (0, 4)), "-S train.batch_size=0: train.batch_size"),
        (Parameter("data.max_dropped", "uniform", (0.1, 0.2)), "a sweep tries settings of model, train, evaluate"),
    ],
)
def test_keys_and_bounds_are_checked_as_settings(params: Params, parameter: Parameter, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        check_space(params, [parameter])


@pytest.mark.usefixtures("repository_folder")
def test_a_dry_run_prints_the_space_and_runs_nothing(tmp_path: Path) -> None:
    arguments = ("-S", "train.lr=loguniform(1e-4,1e-2)", "-S", "train.optimizer=choice(sgd,adamw)", "--trials", "7")
    done = call("sweep", "--preset", "smoke", *arguments, "--dry-run", "-o", tmp_path)
    assert done.out.splitlines() == [
        "train.lr         loguniform(0.0001, 0.01)",
        "train.optimizer  choice(sgd, adamw)",
        "7 trials, 1 at a time, for the largest mask_AP, seed 0",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("repository_folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "mask_ap"), "--metric mask_ap: no such metric; there are: mask_AP, "),
        (("--name", "My sweep"), "--name My sweep: must be at most 40 lower-case letters"),
        (("--trials", "2", "--parallel", "3"), "--parallel 3: is above --trials 2"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = call("sweep", "--preset", "smoke", "-S", "train.lr=uniform(1,2)", "-o", tmp_path, *arguments)
    assert done.code == 1
    assert message in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", ["images", "shards"])
def test_no_trial_sees_the_images_that_are_held_out(tmp_path: Path, images: str) -> None:
    processed, folder = tmp_path / "processed", SweepFolder(tmp_path / "sweep")
    data = processed / "eval"
    (data / images).mkdir(parents=True)
    for name in ("val", "stats"):
        (data / f"{name}.json").write_text(name)
    assert validation_data(processed, folder) == data
    (data / "test.json").write_text("test")
    if images == "shards":
        for name in ("val", "test"):
            (data / f"{name}.arrow").write_text(name)
    for _ in range(2):
        view = validation_data(processed, folder)
    assert evaluated_annotations(view).read_text() == "val"
    assert (view / images).is_dir()
    assert {path.name for path in view.iterdir()} == {path.name for path in data.iterdir() if path.stem != "test"}


# Katib


def test_the_experiment_fits_katibs_types_and_its_trials_are_valid_jobs(params: Params) -> None:
    manifest = katib.experiment(sweep_of(params, SPACE), SPACE, Plan(9, 3, 5, registers=True), load_cluster(), "team")
    check = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    check.validate(manifest)
    check.validate(yaml.safe_load(katib.as_yaml(manifest)))
    spec = manifest["spec"]
    assert spec["parameters"][0]["feasibleSpace"] == {"min": "0.0001", "max": "0.01", "distribution": "logUniform"}
    assert [each["parameterType"] for each in spec["parameters"]] == ["double", "categorical", "int"]
    assert spec["algorithm"]["algorithmSettings"] == [{"name": "random_state", "value": "5"}]

    # What Katib does: it replaces the parameters in the template's JSON, and gives the Job the trial's name.
    template = spec["trialTemplate"]
    values = {"train.lr": "0.003", "train.optimizer": "adamw", "train.epochs": "4", "${trialSpec.Name}": "trying-abc"}
    text = json.dumps(template["trialSpec"])
    for each in template["trialParameters"]:
        text = text.replace(f"${{trialParameters.{each['name']}}}", values[each["reference"]])
    assert "${" not in text
    job = json.loads(text) | {"metadata": {"name": "trying-abc", "namespace": "team"}}
    kubernetes_validate.validate(job, VERSION, strict=True)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["name"] == template["primaryContainerName"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    trial = Trial.from_json(variables[TRIAL_VARIABLE])
    assert trial.name == "trying-abc"
    assert trial.folder == "/checkpoints/sweeps/trying"
    assert trial.overrides == ["train.lr=0.003", "train.optimizer=adamw", "train.epochs=4"]
    assert trial.sweep == sweep_of(params, SPACE)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    assert "/checkpoints" in mounted
    for file in variables["YOLACT_SECRET_FILES"].split(":"):
        assert str(Path(file).parent) in mounted


def test_trials_have_the_place_and_queue_of_the_task_train(params: Params) -> None:
    affinity = (
        "[{key: zone, operator: In, values: [a], weight: null}, {key: gpu, operator: Exists, values: [], weight: 5}]"
    )
    cluster = load_cluster(
        overrides=[
            "tasks.train.queue=team",
            "tasks.train.queue_priority=high",
            "tasks.train.env={NCCL_DEBUG: INFO}",
            "tasks.train.scratch=9Gi",
            f"tasks.train.node_affinity={affinity}",
        ]
    )
    manifest = katib.experiment(sweep_of(params, SPACE), SPACE, Plan(9, 3, 5, registers=True), cluster, "team")
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(manifest)
    job = manifest["spec"]["trialTemplate"]["trialSpec"]
    labels = job["metadata"]["labels"]
    assert labels == {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "high"}
    job["metadata"]["name"] = "trying-abc"
    kubernetes_validate.validate(job, VERSION, strict=True)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]
    assert {"name": "TMPDIR", "value": "/scratch"} in container["env"]
    assert "/scratch" in {each["mountPath"] for each in container["volumeMounts"]}
    found = pod["affinity"]["nodeAffinity"]
    [term] = found["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "zone", "operator": "In", "values": ["a"]}]
    [preferred] = found["preferredDuringSchedulingIgnoredDuringExecution"]
    assert (preferred["weight"], preferred["preference"]["matchExpressions"][0]["key"]) == (5, "gpu")


EDGES = [
    "tasks.train.env={EMPTY: ''}",
    "tasks.train.node_affinity=[{key: gpu, operator: Exists, values: [], weight: null}]",
    "tasks.train.tolerations=[{key: gpu, operator: Equal, value: '', effect: null}]",
]


@pytest.mark.parametrize("changes", [[], EDGES])
def test_a_trials_job_has_no_empty_field_which_katibs_webhook_refuses(changes: list[str], params: Params) -> None:
    cluster = load_cluster(overrides=changes)
    manifest = katib.experiment(sweep_of(params, SPACE), SPACE, Plan(9, 3, 5, registers=True), cluster, "team")
    job = manifest["spec"]["trialTemplate"]["trialSpec"]

    def empty_fields(value: Any, path: str = "") -> list[str]:
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
        found = [each for name, part in parts for each in empty_fields(part, f"{path}/{name}")]
        return [path, *found] if value in ("", [], {}) else found

    assert empty_fields(job) == []
    kubernetes_validate.validate(job | {"metadata": {"name": "trying-abc"}}, VERSION, strict=True)


@pytest.mark.parametrize(
    ("given", "written"),  # as Go's type of Kubernetes writes them, which Katib's webhook compares with what is given
    [("8Gi", "8Gi"), ("1024Mi", "1Gi"), ("1.5Gi", "1536Mi"), ("64000k", "64M"), ("1000000000", "1G"), ("1025", "1025")],
)
def test_shared_memory_of_a_trial_is_written_as_kubernetes_writes_it(given: str, written: str, params: Params) -> None:
    cluster = load_cluster(overrides=[f"tasks.train.shared_memory='{given}'"])
    manifest = katib.experiment(sweep_of(params, SPACE), SPACE, Plan(9, 3, 5, registers=True), cluster, "team")
    [memory] = [
        volume["emptyDir"]["sizeLimit"]
        for volume in manifest["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["volumes"]
        if "emptyDir" in volume
    ]
    assert memory == written


def test_the_container_that_katib_adds_to_a_trial_may_run_as_root(params: Params) -> None:
    manifest = katib.experiment(sweep_of(params, SPACE), SPACE, Plan(9, 3, 5, registers=True), load_cluster(), "team")
    pod = manifest["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    assert "runAsNonRoot" not in pod["securityContext"]  # its image has no other user
    assert pod["containers"][0]["securityContext"]["runAsNonRoot"] is True


def test_only_an_end_that_would_come_again_fails_a_trial_at_once(params: Params) -> None:
    manifest = katib.experiment(sweep_of(params, SPACE), SPACE, Plan(9, 3, 5, registers=True), load_cluster(), "team")
    template = manifest["spec"]["trialTemplate"]
    job = template["trialSpec"]["spec"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert rule["onExitCodes"]["containerName"] == template["primaryContainerName"]  # not Katib's own, of the same pod
    codes = rule["onExitCodes"]["values"]
    assert codes == [YolactError.exit_code, RefusedError.exit_code, NotServedError.exit_code]
    lost = {128 + signal.SIGKILL, 128 + signal.SIGTERM}
    assert not {EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, *lost} & set(codes)
    assert job["backoffLimit"] == load_cluster().for_step("train").retries > 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # Kubernetes accepts the rules with no other
    rule["onExitCodes"]["values"] = "1"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(template["trialSpec"] | {"metadata": {"name": "x"}}, VERSION, strict=True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("train.lr: no such value"), 1),
        (DataError("no such image"), 1),
        (RefusedError("worse than the champion"), 3),
        (InterruptedRunError("stopped"), EX_TEMPFAIL),
        (StoreUnavailableError("no answer"), EX_UNAVAILABLE),
        (DownloadError("there is no bucket"), 1),
        (ServerUnavailableError("no answer"), EX_UNAVAILABLE),
        (RuntimeError("CUDA error"), EX_SOFTWARE),
    ],
)
def test_exit_codes_tell_what_would_come_again_from_what_may_pass(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, crash_exit_code(), clear_errors("trial"), clear_errors("train"):
        raise error
    assert ended.value.code == code
    assert str(error) in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_ends_with_the_code_of_its_error(params: Params, tmp_path: Path, repository: Path) -> None:
    processed = tmp_path / "processed"
    sweep = Sweep("trying", as_text(params), {}, "mask_AP", str(processed), {})
    trial = Trial(sweep, str(tmp_path / "sweep"), "trying-abc", ["runtime.device=cpu"], ends_with_parent=False)
    variables = {TRIAL_VARIABLE: trial.to_json(), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    variables |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PYTHONPATH": str(repository), "PATH": os.environ["PATH"]}

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", local.TRIAL_MODULE]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    done = run()
    assert (done.returncode, "no processed data there" in done.stderr) == (1, True), done.stderr
    (processed / "eval").mkdir(parents=True)
    (processed / "eval/stats.json").write_text("{}")
    done = run()
    assert done.returncode == EX_UNAVAILABLE, done.stderr


def test_the_schema_detects_a_mistake(params: Params) -> None:
    manifest = katib.experiment(sweep_of(params, SPACE), SPACE, Plan(9, 3, 0, registers=True), load_cluster(), "team")
    check = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    manifest["spec"]["parameters"][0]["feasibleSpace"]["min"] = 0.1
    manifest["spec"]["maxTrials"] = 1
    assert {error.validator for error in check.iter_errors(manifest)} == {"type", "additionalProperties"}


def test_what_katib_cannot_take_is_refused(params: Params) -> None:
    quoted = [Parameter("train.ema", "choice", ('"a"', "b"))]
    plan = Plan(2, 1, 0, registers=True)
    with pytest.raises(SettingsError, match="Katib cannot pass on choices with quotes"):
        katib.experiment(sweep_of(params, quoted), quoted, plan, load_cluster(), "team")
    without = load_cluster(overrides=["checkpoints.claim=''"])
    with pytest.raises(SettingsError, match=r"checkpoints\.claim: empty; a sweep on a cluster keeps its data"):
        katib.experiment(sweep_of(params, SPACE), SPACE, plan, without, "team")


EXPERIMENTS, JOBS = "/apis/kubeflow.org/v1beta1/namespaces/team/experiments", "/apis/batch/v1/namespaces/team/jobs"
SUCCEEDED = {
    "conditions": [{"type": "Succeeded", "status": "True"}],
    "trialsSucceeded": 2,
    "currentOptimalTrial": {
        "bestTrialName": "trying-abc",
        "parameterAssignments": [{"name": "train.lr", "value": "0.003"}],
        "observation": {"metrics": [{"name": "mask_AP", "latest": "0.25", "max": "0.25", "min": "0.25"}]},
    },
}


@pytest.fixture
def cluster(quick_and_alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    monkeypatch.setattr(katib, "INTERVAL", 0.01)
    with serve_kubernetes(tmp_path, monkeypatch) as state:
        yield state


def run_katib(params: Params, metric: str = "mask_AP") -> None:
    sweep, plan, config = sweep_of(params, [LR], metric), Plan(2, 1, 0, registers=True), load_cluster()
    katib.run_sweep(sweep, katib.experiment(sweep, [LR], plan, config, "team"), plan, config, "team")


def test_the_best_trial_of_an_experiment_is_registered_by_a_job_and_the_same_command_goes_on(
    params: Params, cluster: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.statuses = {EXPERIMENTS: SUCCEEDED, JOBS: {"conditions": [{"type": "Complete", "status": "True"}]}}
    run_katib(params)
    [job] = cluster.lists[JOBS]
    [container] = job["spec"]["template"]["spec"]["containers"]
    best = Best.from_json(next(each["value"] for each in container["env"] if each["name"] == BEST_VARIABLE))
    assert (best.name, best.assignments, best.registers) == ("trying-abc", {"train.lr": "0.003"}, True)
    assert container["command"] == ["python", "-m", "pipelines.sweeps.best"]
    assert "best       trying-abc: 0.25 mask_AP" in capsys.readouterr().out
    run_katib(params)
    assert "going on with the one in namespace team" in capsys.readouterr().out
    assert len(cluster.lists[EXPERIMENTS]) == len(cluster.lists[JOBS]) == 1
    with pytest.raises(SettingsError, match="has another experiment of that name"):
        run_katib(params, "box_AP")
    job["metadata"]["annotations"][katib.BEST_TRIAL] = "trying-earlier"
    with pytest.raises(SettingsError, match="job trying-best in namespace team is of another sweep"):
        run_katib(params)


def test_a_cluster_without_katib_and_an_experiment_without_a_result_are_reported(
    params: Params, cluster: KubeServer
) -> None:
    with pytest.raises(ClusterError, match=r"has no Katib, or no namespace team\. docs/sweeps\.md"):
        run_katib(params)
    cluster.statuses = {EXPERIMENTS: {"conditions": [{"type": "Failed", "status": "True"}], "trialsFailed": 2}}
    with pytest.raises(SweepError, match="no trial has a result"):
        run_katib(params)


# The loop on this machine


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> Iterator[None]:
    """Trials do not train, see quick_trial.py; a stop leaves SIGTERM ignored, as a process that ends wants it."""
    monkeypatch.setattr(local, "TRIAL_MODULE", "tests.pipelines.quick_trial")
    monkeypatch.setattr(local, "LOOK_EVERY", 0.01)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")]))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def loop(params: Params, folder: Path, trials: int, parallel: int = 1, **instructions: str) -> optuna.Study:
    folder.mkdir(exist_ok=True)
    (folder / "instructions").write_text(json.dumps({f"trial-{key[1:]}": text for key, text in instructions.items()}))
    sweep, plan = sweep_of(params, [LR]), Plan(trials, parallel, 3, registers=False)
    study = local.open_study(optuna, sweep, plan.seed, folder)
    TrialLoop(optuna, study, sweep, [LR], plan, SweepFolder(folder)).run()
    return study


def rates(study: optuna.Study) -> list[Any]:
    return [trial.params["train.lr"] for trial in study.trials]


@pytest.mark.usefixtures("quick")
def test_a_failed_trial_is_recorded_and_does_not_end_the_sweep(
    params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = loop(params, tmp_path / "a", 3, parallel=2, t0001="fail")
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE"]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates(study))
    assert study.best_value == max(trial.value for trial in study.trials if trial.value is not None)
    assert "trial-0001: failed (train failed: no such luck)" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_a_stopped_sweep_goes_on_with_the_values_of_an_undisturbed_one(params: Params, tmp_path: Path) -> None:
    undisturbed = loop(params, tmp_path / "a", 3)
    waiting = SweepFolder(tmp_path / "b").trial("trial-0001").path / "waiting"

    def stop() -> None:
        while not waiting.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(InterruptedRunError, match=r"stopped by SIGINT; 1 trials have a result"):
        loop(params, tmp_path / "b", 3, t0001="wait")
    thread.join()
    study = loop(params, tmp_path / "b", 3)
    assert rates(study) == rates(undisturbed)
    started = (tmp_path / "b" / "started").read_text().splitlines()
    assert [line.split()[0] for line in started] == ["trial-0000", "trial-0001", "trial-0001", "trial-0002"]
    assert started[1] == started[2], "the stopped trial goes on with its values"
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3


@pytest.mark.usefixtures("quick")
def test_a_folder_with_another_sweep_is_refused(params: Params, tmp_path: Path) -> None:
    local.open_study(optuna, sweep_of(params, [LR]), 3, tmp_path)
    with pytest.raises(SettingsError, match="has a sweep that differs in metric, seed"):
        local.open_study(optuna, sweep_of(params, [LR], "box_AP"), 4, tmp_path)
