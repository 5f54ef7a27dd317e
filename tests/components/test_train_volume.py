"""The checkpoint folder of a training on Kubeflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.train.volume import checkpoints_folder
from yolact.errors import SettingsError


def test_each_run_has_a_checkpoint_folder_and_can_resume_an_earlier_run(tmp_path: Path) -> None:
    volume, model = str(tmp_path), tmp_path / "task" / "model"
    assert checkpoints_folder(volume, "run-2", "", model) == tmp_path / "run-2"
    (tmp_path / "run-1").mkdir()
    assert checkpoints_folder(volume, "run-2", "run-1", model) == tmp_path / "run-1"
    with pytest.raises(SettingsError, match="run-0: no such folder"):
        checkpoints_folder(volume, "run-2", "run-0", model)
    with pytest.raises(SettingsError, match="no checkpoint volume is mounted"):
        checkpoints_folder("", "run-2", "run-1", model)


def test_without_a_volume_checkpoints_are_not_part_of_the_artifact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "task" / "model"
    folder = checkpoints_folder("", "run-2", "", model)
    assert folder.parent == model.parent
    assert folder != model
    assert not caplog.text
    assert checkpoints_folder(str(tmp_path / "none"), "run-2", "", model) == folder
    assert "a retry starts over" in caplog.text


@pytest.mark.parametrize("name", ["../other", "a/b", ".", ".."])
def test_a_run_to_resume_cannot_point_outside_the_volume(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="resume_pipeline_run"):
        checkpoints_folder(str(tmp_path), "run-2", name, tmp_path / "model")
