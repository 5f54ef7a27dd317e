"""Compare a container image in the local Docker with the code that a pipeline was compiled for."""

from __future__ import annotations

from collections.abc import Mapping

import docker
from docker.errors import DockerException

from yolact.errors import SettingsError
from yolact_ops.lineage.code import versions_from_text

LABEL = "yolact.code-versions"
"""Label of the image: code versions by step (`yolact_ops.lineage.code.versions_to_text`)."""

TIMEOUT = 10
"""Seconds for Docker to answer."""


def check_image(image: str, versions: Mapping[str, str]) -> str | None:
    """Refuse an image that is known to have other code than its tasks were compiled for.

    Args:
        image: name of the image.
        versions: code version by step, of the tasks that run in it.

    Returns:
        Why the image could not be checked; None if it has the code.

    Raises:
        SettingsError: the image has other code.
    """
    try:
        found = docker.from_env(timeout=TIMEOUT).images.get(image)
    except (DockerException, OSError):  # no Docker, or no such image in it
        return f"the image {image} is not in this machine's Docker"
    label = found.labels.get(LABEL)
    if not label:
        return f"the image {image} has no label {LABEL}"
    there = versions_from_text(label)
    other = sorted(step for step, version in versions.items() if there.get(step) != version)
    if other:
        raise SettingsError(
            f"the image {image} has other code than the pipeline was compiled for (steps: {', '.join(other)}). Build "
            f"and push it again (`make image IMAGE={image}`, `docker push {image}`), pull it if it was built "
            "elsewhere, or name another one: `image` in pipelines/cluster.yaml, or -C image=..."
        )
    return None
