"""The checkpoint folder of a training on Kubeflow, which a retried task finds again."""

from __future__ import annotations

import logging
from pathlib import Path

from yolact.errors import SettingsError

log = logging.getLogger(__name__)


def checkpoints_folder(volume: str, pipeline_run: str, resume: str, model: Path) -> Path:
    """The folder of a pipeline run's checkpoints on the volume.

    Args:
        volume: mount path of the volume; empty if there is none: checkpoints are then lost with the task.
        pipeline_run: id of the pipeline run.
        resume: id of an earlier pipeline run whose training to resume; empty for none.
        model: folder of the artifact; without a volume, checkpoints are next to it and so are not uploaded.

    Raises:
        SettingsError: there is no volume, or no checkpoints of the run to resume.
    """
    if not volume or not Path(volume).is_dir():
        if resume:
            raise SettingsError(f"resume_pipeline_run: {resume}: no checkpoint volume is mounted at {volume!r}")
        if volume:
            log.warning("%s is not a folder: checkpoints are lost with this task, and a retry starts over", volume)
        return model.with_name(f"{model.name}-checkpoints")
    if resume and resume not in {path.name for path in Path(volume).iterdir() if path.is_dir()}:
        raise SettingsError(
            f"resume_pipeline_run: {Path(volume) / resume}: no such folder; leave resume_pipeline_run empty to start a "
            "new training"
        )
    return Path(volume) / (resume or pipeline_run)
