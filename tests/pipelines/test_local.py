"""Parts of local runs: what is shown of kfp's output, and what containers need."""

from __future__ import annotations

import builtins
import io
import logging
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from kfp.local.logging_utils import indented_print, local_logger_context

from pipelines import local
from pipelines.config import load_cluster
from pipelines.local import LOCK, Containers, LocalRunError, Progress, run_pipeline
from yolact.errors import SettingsError
from yolact_ops.settings.presets import choose

OUTPUT = """\
22:26:40.226 - INFO - Executing task \x1b[96m'train'\x1b[0m
22:26:40.226 - INFO - Streamed logs:

    [KFP Executor 2026-11-25 22:26:40,298 INFO]: Looking for component `train` in --component_module_path `/tmp/x.py`
    [KFP Executor 2026-11-25 22:26:40,299 INFO]: Got executor_input:
    {
        "inputs": {
            "secret-looking": "}"
        }
    }
    [train] epoch 1 of 2
    [train] done: 6 steps
      model   folder/model
    [train] Wrote executor output file to /tmp/executor_output.json.

    train failed: image.jpg: is broken
    Mend it.

22:26:41.002 - INFO - Task 'train' outputs:
    params: '{"data": 1}'
--------------------------------------------------------------------------------
22:26:41.002 - INFO - Task train failed (attempt 1/3). Retrying in 1.0s...
22:26:41.003 - ERROR - something odd
"""


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_terminal_shows_tasks_and_their_lines_and_the_file_gets_everything(size: int) -> None:
    shown, file = io.StringIO(), io.StringIO()
    progress = Progress(shown, file)
    for start in range(0, len(OUTPUT), size):
        progress.write(OUTPUT[start : start + size])
    assert shown.getvalue() == (
        "--- train\n"
        "    [train] epoch 1 of 2\n"
        "    [train] done: 6 steps\n"
        "      model   folder/model\n"
        "    train failed: image.jpg: is broken\n"
        "    Mend it.\n"
        "    Task train failed (attempt 1/3). Retrying in 1.0s...\n"
        "    something odd\n"
    )
    assert file.getvalue() == OUTPUT.replace("\x1b[96m", "").replace("\x1b[0m", "")
    assert progress.failure[:2] == ["train failed: image.jpg: is broken", "Mend it."]


def test_containers_need_docker_an_image_and_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        arguments = {"params": "{}"}
        run_pipeline("training", arguments, load_cluster(), tmp_path / "out", containers=Containers("none:0"))

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SettingsError, match="MLFLOW_TRACKING_URI: must name an MLflow server"):
        run()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    with pytest.raises(SettingsError, match=r"Docker cannot be reached .* set DOCKER_HOST"):
        run()


def test_a_results_folder_allows_one_run_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "runs"
    output.mkdir()
    (output / "training.log").write_text("of the run that goes on\n")
    program = (
        "import sys\nfrom pathlib import Path\nfrom filelock import FileLock\n"
        f"with FileLock(Path({str(output)!r}) / {LOCK!r}):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SettingsError, match=r"runs: another run is in progress there.* -o DIR"):
            run_pipeline("training", {"params": "{}"}, load_cluster(), output)
        other.communicate()
    assert (output / "training.log").read_text() == "of the run that goes on\n"
    cluster = load_cluster(overrides=["tasks.source.retries=0"])
    with pytest.raises(LocalRunError, match="source failed: parameter params"):  # the lock is free again
        run_pipeline("training", {"params": "{}"}, cluster, output)


def test_containers_get_the_variables_meant_for_them_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    meant = {
        "AWS_ACCESS_KEY_ID": "key",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "GIT_USERNAME": "me",
        "GIT_PASSWORD": "hidden",
        "OMP_NUM_THREADS": "1",
    }
    others = {
        "GIT_DIR": "/elsewhere",
        "GIT_INDEX_FILE": "/elsewhere/index",
        "GIT_PASSWORD_FILE": "x",
        "PYTHONPATH": "x",
    }
    monkeypatch.setattr(os, "environ", meant | others)
    monkeypatch.setattr("docker.from_env", MagicMock())
    runner = local._container_runner(Containers("image:1"))
    assert runner.container_run_args["environment"] == meant | {"HOME": "/tmp"}


def test_settings_come_from_a_preset_or_a_file_with_changes(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    preset = choose("smoke", overrides=["train.lr=2e-3"])
    assert (preset.train.lr, preset.train.epochs) == (2e-3, 2)
    file = tmp_path / "mine.yaml"
    file.write_text((repository / "params.yaml").read_text().replace("epochs: 10", "epochs: 7"))
    assert choose(None, file).train.epochs == 7
    changed = choose(None, file, ["train.lr=2e-3", "data.classes=[dog]"])
    assert (changed.train.lr, changed.train.epochs, changed.data.classes) == (2e-3, 7, ["dog"])
    with pytest.raises(SettingsError, match=r"-S train\.epoch=1: train\.epoch: unknown key; did you mean 'epochs'"):
        choose(None, file, ["train.epoch=1"])
    with pytest.raises(SettingsError, match=r"none\.yaml: no such file"):
        choose(None, tmp_path / "none.yaml", ["train.lr=1"])


def test_simultaneous_tasks_restore_logging_and_print() -> None:
    """kfp replaces them around each task and restores what it found."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, builtins.print
    log = io.StringIO()
    with local._log_to(Progress(io.StringIO(), log)):
        first, second = ExitStack(), ExitStack()
        for task in (first, second):
            task.enter_context(local_logger_context())
            task.enter_context(indented_print())
        for task in (first, second):  # not in the opposite order, as nested ones would end
            task.close()
        assert root.level == logging.INFO
        assert builtins.print is not before[2]
    assert (root.handlers, root.level, builtins.print) == before
