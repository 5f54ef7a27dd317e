"""Names of runs, schedules and experiments: which ones a server of Kubeflow Pipelines takes."""

from __future__ import annotations

import re

from yolact.errors import SettingsError

LENGTH = 128
"""Characters that every name may have; those of experiments may not have more."""


def check_name(what: str, name: str) -> None:
    """Refuse names that the server, its database or Argo would refuse or change.

    The server starts a run's workflow before it stores the run: a name that the database refuses leaves a workflow
    that nobody knows of.

    Args:
        what: what has the name, for the message.
        name: the name.

    Raises:
        SettingsError: it is empty or too long, has characters that are invisible or beyond U+FFFF (Kubeflow Pipelines
            connects to MySQL with three bytes a character), spaces at an end (MySQL ignores them in comparisons) or
            ``{{``, which Argo replaces; or what Kubernetes could keep of it begins with a hyphen (Kubeflow Pipelines
            names a schedule's object after it).
    """
    problem = ""
    if not name.strip():
        problem = "is empty"
    elif len(name) > LENGTH:
        problem = f"has {len(name)} characters; {LENGTH} are allowed"
    elif name != name.strip():
        problem = "begins or ends with a space"
    elif re.match(r"[^a-z0-9-]*-", name.lower()):
        problem = "has a hyphen before its first Latin letter or digit, and Kubernetes would refuse a schedule"
    elif "{{" in name:
        problem = "has {{, which Argo Workflows would replace"
    else:
        wrong = next((char for char in name if not char.isprintable() or ord(char) > 0xFFFF), None)
        if wrong is not None:
            why = "Kubeflow Pipelines cannot store" if wrong.isprintable() else "is not visible"
            problem = f"has the character U+{ord(wrong):04X}, which {why}"
    if problem:
        shown = name if len(name) <= LENGTH else f"{name[:40]}..."
        raise SettingsError(f"{what} {shown!r}: {problem}. Choose another name; nothing was sent")
