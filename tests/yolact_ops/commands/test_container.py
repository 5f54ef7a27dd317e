"""How commands and tasks keep to the limits of their container: threads, and modes of files."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from yolact_ops.commands import container


def in_a_process(program: str, **environment: str) -> str:
    ours = ("OMP_NUM_THREADS", *container.SPIN_VARIABLES)
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-c", program], env=kept | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TASK = """
import os
from pathlib import Path
from yolact.files import write_text_atomic
from yolact_ops.commands import task
from yolact_ops.lineage.code import installed_version

os.umask(0)
with task.task("split", installed_version("split")):
    write_text_atomic(Path("atomic"), "x")
    Path("plain").write_text("x")
    Path("folder").mkdir()
"""
STEP = """
import os, sys
from pathlib import Path
from yolact_ops.commands.step import run_command

os.umask(0)
sys.argv[1:] = ["--params", sys.argv.pop()]
run_command("train", lambda params: (Path("atomic").touch(), Path("plain").touch(), Path("folder").mkdir()))
"""


@pytest.mark.parametrize("program", [TASK, STEP])
def test_a_pods_files_are_closed_to_others(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    program = program.replace("sys.argv.pop()", repr(str(repository / "params.yaml")))
    in_a_process(program, PYTHONPATH=str(repository), KUBERNETES_SERVICE_HOST="10.0.0.1")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"atomic": 0o640, "plain": 0o640, "folder": 0o750}


THREADS = """
import os
from yolact_ops.commands.container import keep_to_container
{before}
keep_to_container()
import torch
print(os.environ["OMP_NUM_THREADS"], torch.get_num_threads())
"""


def test_pytorch_takes_the_threads_that_the_pipeline_requested(repository: Path) -> None:
    """Also where it is imported first, as by ``python -m components.evaluate.step``."""
    given = {"PYTHONPATH": str(repository), "KUBERNETES_SERVICE_HOST": "10.0.0.1", "PYTHON_CPU_COUNT": "1"}
    assert in_a_process(THREADS.format(before=""), **given) == "1 1\n"
    assert in_a_process(THREADS.format(before="import torch"), **given) == "1 1\n"
    kept = THREADS.format(before="").replace("import torch\n", "").replace(", torch.get_num_threads()", "")
    assert in_a_process(kept, OMP_NUM_THREADS="2", **given) == "2\n"


@pytest.mark.parametrize(
    ("cores", "processes", "given", "threads"),
    [(8, 2, "", "4"), (8, 2, "8", "4"), (8, 2, "1", "1"), (8, 3, "", "2"), (2, 4, "", "1"), (8, 2, "all", "4")],
)
def test_processes_share_the_cores(
    cores: int, processes: int, given: str, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "usable_cpus", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    container.share_threads(processes)
    assert os.environ["OMP_NUM_THREADS"] == threads


SPIN = """
import os
{imports}
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, f"{container.SPINS} None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_threads_wait_briefly_unless_the_environment_says_how(
    given: dict[str, str], found: str, repository: Path
) -> None:
    program = SPIN.format(imports="from yolact_ops.commands.container import wait_briefly; wait_briefly()")
    assert in_a_process(program, PYTHONPATH=str(repository), **given).strip() == found


BEFORE_PYTORCH = """
import importlib.abc, os, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.exit()

sys.meta_path.insert(0, Watch())
{imports}
"""


@pytest.mark.parametrize(
    ("imports", "spins"),
    [
        ("import components.evaluate.step", container.SPINS),
        ("sys.argv = ['yolact', 'predict', 'nowhere.jpg']; from yolact_cli.main import app; app()", "None"),
    ],
)
def test_steps_choose_how_threads_wait_before_pytorch_is_imported_and_predict_does_not(
    imports: str, spins: str, repository: Path
) -> None:
    found = in_a_process(BEFORE_PYTORCH.format(imports=imports), PYTHONPATH=str(repository))
    assert found.strip() == spins
