"""Secrets of a step, a task or the server: mounted files, read into the environment of the own process.

boto3, MLflow, git and DVC look for credentials in environment variables. The container gets none. In a task Kubeflow's
launcher runs too, and would use them for its own object store; and Kubeflow's MLflow integration sets some of the same
names, which Kubernetes refuses in one container.
"""

from __future__ import annotations

import os
from pathlib import Path

SECRET_FILES_VARIABLE = "YOLACT_SECRET_FILES"  # noqa: S105 - the name of a variable
"""Environment variable with the paths of the files, separated as in ``PATH``; each is named like its variable."""

TOGETHER = (
    ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ("GIT_USERNAME", "GIT_PASSWORD"),
)
"""Variables that belong together, such as an address and the login for it. All come from where the first one does."""


def read_secrets() -> None:
    """Set the variables that the files hold.

    A variable that is set, as by Kubeflow's MLflow integration, keeps its value. For a group in `TOGETHER` its first
    variable decides: if it is set, the group stays as it is; if the files have it, the others are theirs too. (The
    integration can set a login without an address, which is the launcher's.) Files that do not exist are left out:
    secrets and their keys are optional. Empty ones are, too.

    Raises:
        OSError: a file cannot be read.
    """
    files = [Path(name) for name in os.environ.get(SECRET_FILES_VARIABLE, "").split(os.pathsep) if name]
    found = {file.name: file.read_text(encoding="utf-8").rstrip("\r\n") for file in files if file.exists()}
    found = {name: value for name, value in found.items() if value}
    for first, *others in TOGETHER:
        if os.environ.get(first):
            found = {name: value for name, value in found.items() if name not in others}
        elif first in found:
            for name in others:
                os.environ.pop(name, None)
    for name, value in found.items():
        if not os.environ.get(name):
            os.environ[name] = value
