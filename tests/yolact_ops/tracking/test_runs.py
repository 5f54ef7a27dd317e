"""Runs that span steps, in real MLflow stores: a SQLite file, and a server on this machine."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.data import get_source
from requests import ConnectionError as NoConnection

from yolact.errors import DataError
from yolact_ops.settings.params import Params, parse_params
from yolact_ops.tracking import store
from yolact_ops.tracking.journal import Journal
from yolact_ops.tracking.run_record import RESTORED_TAG, TRAIN_RUN_TAG, RunRecord
from yolact_ops.tracking.runs import resume_run, start_run
from yolact_ops.tracking.store import StoreUnavailableError, TrackingError
from yolact_ops.tracking.tracker import DataSet, allowed_names

RUN_FILE = Path("models/run.json")
STORE = "sqlite:///mlflow.db"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an empty store, without MLflow settings from outside."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_experiment(params: Params, name: str) -> Params:
    return params.model_copy(update={"register_": params.register_.model_copy(update={"experiment": name})})


def client() -> MlflowClient:
    local = f"sqlite:///{Path('mlflow.db').absolute()}"
    return MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local))


def status(run_id: str) -> str:
    return str(client().get_run(run_id).info.status)


def run_ids(experiment: str = "yolact") -> set[str]:
    found = client().get_experiment_by_name(experiment)
    return {run.info.run_id for run in client().search_runs([found.experiment_id])} if found else set()


def python(code: str, repository: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees neither pytest nor a CI service in its environment."""
    hidden = ("PYTEST", "CI", "GITHUB", "MLFLOW", "_MLFLOW", "DO_NOT_TRACK")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"PYTHONPATH": str(repository)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_one_run_spans_train_evaluate_and_register(params: Params) -> None:
    with start_run(params, RUN_FILE) as train:
        assert status(train.run_id) == "RUNNING"
        train.log_metrics({"loss": 2.0}, step=1)
        train.log_metrics({"loss": 1.5}, step=2)
    assert status(train.run_id) == "FINISHED"

    with resume_run(params, RUN_FILE) as evaluate:
        assert evaluate.run_id == train.run_id
        assert status(train.run_id) == "RUNNING"
        evaluate.log_metrics({"eval/mask_AP50": 0.25})
    with resume_run(params, RUN_FILE) as register:
        register.set_tags({"registered_model": "yolact/1"})

    run = client().get_run(train.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 1.5, "eval/mask_AP50": 0.25}
    assert [(m.step, m.value) for m in client().get_metric_history(train.run_id, "loss")] == [(1, 2.0), (2, 1.5)]
    assert run.data.tags["registered_model"] == "yolact/1"
    assert run_ids() == {train.run_id}


def test_run_json_names_run_experiment_and_store(params: Params) -> None:
    with start_run(params, RUN_FILE) as tracker:
        record = json.loads(RUN_FILE.read_text())
    experiment = client().get_experiment_by_name(params.register_.experiment)
    assert record == {
        "run_id": tracker.run_id,
        "experiment_id": experiment.experiment_id,
        "experiment": "yolact",
        "tracking_uri": STORE,
    }


def test_every_setting_is_a_parameter_of_the_run(params: Params, repository: Path) -> None:
    with start_run(params, RUN_FILE) as tracker:
        pass
    logged = client().get_run(tracker.run_id).data.params

    tree = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    leaves = [(prefix, key, value) for prefix, section in tree.items() for key, value in section.items()]
    names = set()
    while leaves:
        prefix, key, value = leaves.pop()
        if isinstance(value, dict):
            leaves += [(f"{prefix}.{key}", inner, leaf) for inner, leaf in value.items()]
        else:
            names.add(f"{prefix}.{key}")
    assert set(logged) == names
    assert float(logged["train.lr"]) == 1e-3
    assert logged["model.backbone"] == "resnet50"
    assert json.loads(logged["model.anchor_scales"]) == [[32], [64], [128], [256], [512]]
    assert logged["register.model_name"] == "yolact"


def test_the_run_records_its_lineage(params: Params) -> None:
    with start_run(params, RUN_FILE) as tracker:
        pass
    tags = client().get_run(tracker.run_id).data.tags
    wanted = {"params_hash", "host", "python_version", "torch_version", "torchvision_version", "mlflow_version"}
    assert wanted <= set(tags)
    assert {"mlflow.user", "mlflow.source.name", "mlflow.runName"} <= set(tags)


@pytest.mark.parametrize(("error", "expected"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_error_is_seen_in_the_status_and_the_next_attempt_continues_the_run(
    params: Params, error: type[BaseException], expected: str
) -> None:
    with pytest.raises(error, match="stop"), start_run(params, RUN_FILE) as first:
        first.log_metrics({"loss": 2.0}, step=1)
        raise error("stop")
    assert status(first.run_id) == expected

    with start_run(params, RUN_FILE, resume=first.record) as second:
        assert second.run_id == first.run_id
        assert status(first.run_id) == "RUNNING"
        second.log_metrics({"loss": 1.0}, step=2)
    assert status(first.run_id) == "FINISHED"
    assert len(client().get_metric_history(first.run_id, "loss")) == 2


def test_a_killed_training_is_continued(params: Params, repository: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from yolact_ops.settings.params import load_params\n"
        "from yolact_ops.tracking.runs import start_run\n"
        f"params = load_params({str(repository / 'conf' / 'base.yaml')!r})\n"
        "with start_run(params, Path('models/run.json')) as tracker:\n"
        "    tracker.log_metrics({'loss': 2.0}, step=1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = python(code, repository)
    assert done.returncode == -signal.SIGKILL, done.stderr
    record = RunRecord.read(RUN_FILE)
    killed = record.run_id
    assert status(killed) == "RUNNING"
    with start_run(params, RUN_FILE, resume=record) as tracker:
        assert tracker.run_id == killed
    assert status(killed) == "FINISHED"
    assert run_ids() == {killed}
    assert [(m.step, m.value) for m in client().get_metric_history(killed, "loss")] == [(1, 2.0)]


def test_a_run_continued_with_other_settings_keeps_the_first_and_says_so(
    params: Params, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start_run(params, RUN_FILE) as tracker:
        pass
    tree = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    tree["train"]["epochs"] = 7
    changed = parse_params(tree)
    with start_run(changed, RUN_FILE, resume=tracker.record):
        pass
    assert client().get_run(tracker.run_id).data.params["train.epochs"] == str(params.train.epochs)
    assert "train.epochs" in caplog.text


def test_a_given_run_is_used_and_neither_created_nor_ended(
    params: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = client().create_run(client().create_experiment("platform")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with start_run(params, RUN_FILE) as tracker:
        assert tracker.run_id == given
    assert RunRecord.read(RUN_FILE).experiment == "platform"
    with resume_run(params, RUN_FILE) as tracker:
        assert tracker.run_id == given
    with pytest.raises(RuntimeError, match="stop"), resume_run(params, RUN_FILE):
        raise RuntimeError("stop")
    assert status(given) == "RUNNING"
    assert run_ids() == set()
    assert "train.lr" in client().get_run(given).data.params


def test_a_given_run_of_a_later_step_points_at_the_run_of_train(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_run(params, RUN_FILE) as train:
        pass
    given = client().create_run(client().create_experiment("platform")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with resume_run(params, RUN_FILE) as tracker:
        assert tracker.run_id == given
    assert client().get_run(given).data.tags[TRAIN_RUN_TAG] == train.run_id


def unavailable(*arguments: object, **options: object) -> None:
    raise NoConnection("unavailable")


def test_a_step_that_cannot_start_keeps_what_an_earlier_one_left(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_run(params, RUN_FILE) as train:
        pass
    given = client().create_run(client().create_experiment("platform")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    evaluate = Journal(Path("models/tracking") / given, replace(train.record, run_id=given))
    evaluate.records.append({"metrics": {"eval/mask_AP": 0.5}, "time": 1, "step": 0, "model_id": None})
    evaluate.release()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", unavailable)
        with pytest.raises(StoreUnavailableError, match="unavailable"), resume_run(params, RUN_FILE):
            pytest.fail("must not start")
    with resume_run(params, RUN_FILE):
        assert client().get_run(given).data.metrics["eval/mask_AP"] == 0.5
    assert not list(Path("models/tracking").iterdir())


def test_a_new_run_that_cannot_start_is_marked_as_failed(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MlflowClient, "update_run", unavailable)
    with pytest.raises(StoreUnavailableError, match="unavailable"), start_run(params, RUN_FILE):
        pytest.fail("must not start")
    (run_id,) = run_ids()
    assert status(run_id) == "FAILED"
    assert not list(Path("models/tracking").iterdir())
    assert not RUN_FILE.exists()


def test_a_given_experiment_is_used(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    given = client().create_experiment("platform")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", given)
    with start_run(params, RUN_FILE) as tracker:
        assert tracker.experiment_id == given
    assert RunRecord.read(RUN_FILE).experiment == "platform"
    assert run_ids("platform") == {tracker.run_id}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    with pytest.raises(TrackingError, match="open the experiment 12345"), start_run(params, RUN_FILE):
        pytest.fail("must not start")


def test_a_created_experiment_opens_with_the_machine_learning_pages(params: Params) -> None:
    with start_run(params, RUN_FILE) as tracker:
        pass
    tags = client().get_experiment(tracker.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_journal_of_an_experiment_in_a_temporary_folder_outlives_that_folder(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "temporary")
    with start_run(params, RUN_FILE) as tracker:
        assert (tmp_path / "models/tracking" / tracker.run_id / "run.json").is_file()
        assert not Path("models/tracking").exists()
    assert not (tmp_path / "models/tracking" / tracker.run_id).exists()


def test_a_given_run_that_does_not_exist_is_refused(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")
    with (
        pytest.raises(TrackingError, match="MLFLOW_RUN_ID names the run 0123456789abcdef"),
        start_run(params, RUN_FILE),
    ):
        pytest.fail("must not start")


def test_a_model_from_elsewhere_gets_one_new_run_for_all_later_steps(
    params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    record = {"run_id": "f" * 32, "experiment_id": "9", "experiment": "yolact", "tracking_uri": "http://elsewhere"}
    RUN_FILE.parent.mkdir()
    RUN_FILE.write_text(json.dumps(record))
    before = RUN_FILE.read_bytes()
    with resume_run(params, RUN_FILE) as evaluate:
        pass
    assert "f" * 32 in caplog.text
    caplog.clear()
    with resume_run(params, RUN_FILE) as register:
        pass
    assert "f" * 32 not in caplog.text
    assert register.run_id == evaluate.run_id != "f" * 32
    run = client().get_run(evaluate.run_id)
    assert run.data.tags[RESTORED_TAG] == "f" * 32
    assert "train.lr" in run.data.params
    assert run_ids() == {evaluate.run_id}
    assert RUN_FILE.read_bytes() == before


def test_a_deleted_run_is_replaced(params: Params) -> None:
    with start_run(params, RUN_FILE) as train:
        pass
    client().delete_run(train.run_id)
    with resume_run(params, RUN_FILE) as tracker:
        assert tracker.run_id != train.run_id
    assert client().get_run(tracker.run_id).data.tags[RESTORED_TAG] == train.run_id


def test_without_run_json_the_message_says_to_train(params: Params) -> None:
    with (
        pytest.raises(DataError, match=r"run\.json: no such file\. Run the train step first"),
        resume_run(params, RUN_FILE),
    ):
        pytest.fail("must not start")


@pytest.mark.parametrize("content", ["{", "[]", '{"run_id": "1"}'])
def test_a_damaged_run_json_is_named(params: Params, content: str) -> None:
    RUN_FILE.parent.mkdir()
    RUN_FILE.write_text(content)
    with pytest.raises(DataError, match=r"run\.json: not the record"), resume_run(params, RUN_FILE):
        pytest.fail("must not start")


def test_a_deleted_experiment_is_explained(params: Params) -> None:
    client().delete_experiment(client().create_experiment("yolact"))
    with pytest.raises(TrackingError, match=r"was deleted.*experiments restore"), start_run(params, RUN_FILE):
        pytest.fail("must not start")


def data_set(digest: str = "d1", source: str = "sample") -> DataSet:
    return DataSet("train", digest, source, Path("data/processed/train/train.json"), "training", 193)


@pytest.mark.parametrize(
    ("source", "kind", "address"),
    [
        ("sample", "local", "sample"),
        ("s3://bucket/set.tar", "s3", "s3://bucket/set.tar"),
        ("https://host/set.zip", "http", "https://host/set.zip"),
        ("dvc:/srv/repository#data@v1", "local", "dvc:/srv/repository#data@v1"),
    ],
)
def test_a_data_set_is_an_input_of_the_run_with_digest_and_source(
    params: Params, tmp_path: Path, source: str, kind: str, address: str
) -> None:
    digest = "0123456789abcdef" * 4
    with start_run(params, RUN_FILE) as tracker:
        tracker.log_dataset(data_set(digest, source))
    (entry,) = client().get_run(tracker.run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.source_type) == ("train", kind)
    assert entry.dataset.digest == digest[:36]
    assert json.loads(entry.dataset.profile) == {"num_rows": 193, "digest": digest}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]
    found = get_source(entry.dataset)
    assert (found.url if kind == "http" else found.uri) == address
    assert json.loads(entry.dataset.source)["path"] == "data/processed/train/train.json"


def test_files_and_folders_are_stored_with_the_run(params: Params, tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    (folder / "gallery").mkdir(parents=True)
    (folder / "index.html").write_text("page")
    (folder / "gallery" / "1.txt").write_text("picture")
    with start_run(params, RUN_FILE) as tracker:
        tracker.log_artifacts(folder, "eval")
        tracker.log_artifact(folder / "index.html")
    stored = Path(client().download_artifacts(tracker.run_id, ""))
    assert {str(file.relative_to(stored)) for file in stored.rglob("*") if file.is_file()} == {
        "index.html",
        "eval/index.html",
        "eval/gallery/1.txt",
    }


def test_any_class_name_can_be_in_a_metric_name(params: Params) -> None:
    with start_run(params, RUN_FILE) as tracker:
        tracker.log_metrics({"eval/per_class/AP/café (small), 100%": 0.5})
    assert client().get_run(tracker.run_id).data.metrics == {"eval/per_class/AP/café _small__ 100_": 0.5}


CLASSES = [
    "a+b",
    "a&b",
    "a_b",
    "tv/monitor",
    "tv_monitor",
    "\N{CAT}",
    "\N{DOG}",
    "..",
    "",
    "x" * 400,
    "x" * 401,
    "café",
]


def test_each_class_has_a_metric_name_of_its_own(params: Params) -> None:
    names = allowed_names(CLASSES)
    assert len(set(names.values())) == len(CLASSES)
    assert (names["a_b"], names["tv_monitor"], names["café"]) == ("a_b", "tv_monitor", "café")
    assert names["a+b"].startswith("a_b-")
    assert allowed_names(["other", "a&b", "a+b"])["a+b"] == names["a+b"], "whatever the order and the others"
    with start_run(params, RUN_FILE) as tracker:
        tracker.log_metrics({f"eval/per_class/mask_AP50/{name}": i for i, name in enumerate(names.values())})
    stored = client().get_run(tracker.run_id).data.metrics
    assert stored == {f"eval/per_class/mask_AP50/{name}": i for i, name in enumerate(names.values())}


def test_parameters_with_brackets_in_their_names_are_logged(params: Params) -> None:
    classes = {"person (sitting)": "person", "car": "car"}
    renamed = params.model_copy(update={"data": params.data.model_copy(update={"classes": classes})})
    with start_run(renamed, RUN_FILE) as tracker:
        pass
    stored = client().get_run(tracker.run_id).data.params
    assert stored["data.classes.person _sitting_"] == "person"
    assert stored["train.lr"] == str(params.train.lr)


def test_one_process_at_a_time_connects_to_a_sqlite_store(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several that create its tables together would fail; a lock of each thread stands for one of each process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace / 'new.db'}")
    at_work: list[int] = []
    seen: list[int] = []

    def new_client() -> Any:
        at_work.append(1)
        seen.append(len(at_work))
        time.sleep(0.05)
        at_work.pop()
        return SimpleNamespace(search_experiments=lambda **_: seen.append(len(at_work)))

    monkeypatch.setattr(store, "new_client", new_client)
    threads = [threading.Thread(target=store.connect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert not (workplace / "new.db.lock").exists()


def test_nothing_is_imported_or_set_until_it_is_needed(repository: Path) -> None:
    done = python(
        "import os, sys; import yolact_ops.tracking.runs, components.register.step\n"
        "assert 'mlflow' not in sys.modules\n"
        "assert not [name for name in os.environ if 'MLFLOW' in name or name == 'DO_NOT_TRACK']",
        repository,
    )
    assert done.returncode == 0, done.stderr


def test_the_console_shows_our_lines_only_and_telemetry_is_off(repository: Path) -> None:
    Path("mlflow.db").unlink()
    code = (
        "import logging, sys; from pathlib import Path; from yolact_ops.settings.params import load_params\n"
        "logging.basicConfig(level=logging.INFO, format='[step] %(message)s', stream=sys.stderr)\n"
        "from yolact_ops.tracking.runs import resume_run, start_run\n"
        f"params = load_params({str(repository / 'conf' / 'base.yaml')!r})\n"
        "with start_run(params, Path('run.json')) as tracker: tracker.log_artifact(Path('run.json'))\n"
        "with resume_run(params, Path('run.json')) as tracker: tracker.log_metrics({'a': 1.0})\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "assert get_telemetry_client() is None\n"
    )
    done = python(code, repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if not line.startswith("[step] MLflow run ")] == []


def test_an_unavailable_server_is_named_without_its_password(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:s3cret@127.0.0.1:{free_port()}")
    before = dict(os.environ)
    with pytest.raises(TrackingError) as raised, start_run(params, RUN_FILE):
        pytest.fail("must not start")
    message = str(raised.value)
    assert "at http://127.0.0.1:" in message
    assert "refused" in message
    assert "unset MLFLOW_TRACKING_URI" in message
    assert "s3cret" not in message
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ.keys() - before.keys()
    assert not RUN_FILE.exists()


class Forbidding(BaseHTTPRequestHandler):
    """Responds like a server with a login to a wrong password."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    do_POST = do_GET  # noqa: N815 - the name that http.server wants

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def test_a_refused_login_names_the_variables_to_set(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), Forbidding)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(TrackingError, match=r"(?s)401.*MLFLOW_TRACKING_USERNAME"), start_run(params, RUN_FILE):
            pytest.fail("must not start")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_error_of_the_work_itself_is_not_reported_as_one_of_the_store(params: Params) -> None:
    with pytest.raises(ZeroDivisionError), start_run(params, RUN_FILE):
        _ = 1 / 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and folder of a running ``mlflow server`` with the default local store of that folder."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--backend-store-uri", STORE],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process, folder / "log.txt")
        yield f"http://127.0.0.1:{port}", folder
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"mlflow server did not start:\n{log.read_text()}")


def test_a_run_on_a_server_has_all_that_a_local_one_has(
    params: Params, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, _ = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    (tmp_path / "report.txt").write_text("report")
    with start_run(params, RUN_FILE) as train:
        train.log_metrics({"loss": 1.0}, step=3)
        train.log_dataset(data_set())
    with resume_run(params, RUN_FILE) as tracker:
        tracker.log_artifact(tmp_path / "report.txt")
    run = client().get_run(train.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 1.0})
    assert run.data.params["train.lr"] == "0.001"
    assert run.inputs.dataset_inputs[0].dataset.digest == "d1"
    assert Path(client().download_artifacts(run.info.run_id, "report.txt")).read_text() == "report"
    assert RunRecord.read(RUN_FILE).tracking_uri == address
    assert run_ids() == {train.run_id}
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert run_ids() == set()
    assert not Path("mlruns").exists()


def test_mlflow_ui_over_the_local_file_shows_the_artifacts(
    params: Params, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = server
    monkeypatch.chdir(folder)
    with start_run(in_experiment(params, "local"), RUN_FILE) as tracker:
        tracker.log_artifact(RUN_FILE)
    shown = f"{address}/get-artifact?run_uuid={tracker.run_id}&path=run.json"
    with urllib.request.urlopen(shown, timeout=30) as answer:
        assert answer.read() == RUN_FILE.read_bytes()


def test_artifacts_that_only_a_server_can_store_are_refused_at_the_start(
    params: Params, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = server
    MlflowClient(tracking_uri=address).create_experiment("remote")
    monkeypatch.chdir(folder)
    with (
        pytest.raises(TrackingError, match=r"'remote'.*created through an MLflow server"),
        start_run(in_experiment(params, "remote"), RUN_FILE),
    ):
        pytest.fail("must not start")


def test_an_unknown_run_is_replaced_on_a_server_too(
    params: Params, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with start_run(params, RUN_FILE) as local:
        pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0])
    with caplog.at_level(logging.WARNING), resume_run(params, RUN_FILE) as tracker:
        assert tracker.run_id != local.run_id
    assert local.run_id in caplog.text
    assert client().get_run(tracker.run_id).data.tags[RESTORED_TAG] == local.run_id
