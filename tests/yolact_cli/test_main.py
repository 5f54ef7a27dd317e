"""The `yolact` command as a process: quick help, plain errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from yolact_cli.main import app

SLOW = {"torch", "torchvision", "numpy", "mlflow", "dvc", "kfp", "boto3", "pydantic", "matplotlib", "pycocotools"}


def test_help_loads_none_of_the_slow_libraries(repository: Path) -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from yolact_cli.main import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0 and 'preset' in result.stdout and 'summary' in result.stdout, result.output\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert loaded & SLOW == set()


def test_an_error_ends_the_process_with_its_message_on_standard_error_and_code_1(
    repository: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "yolact_cli.main", "preset", "use", "nothing-like-this"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(repository)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("conf/base.yaml: no such file")
    assert "Traceback" not in done.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["presets"]).exit_code == 2
