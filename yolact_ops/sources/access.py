"""Private git repositories: user and password from the environment, for git and DVC, restricted to one server."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

USER_VARIABLE, PASSWORD_VARIABLE = "GIT_USERNAME", "GIT_PASSWORD"
"""The password may be a token."""

_HELPER = f'!f() {{ echo \\"username=${USER_VARIABLE}\\"; echo \\"password=${PASSWORD_VARIABLE}\\"; }}; f'


@contextmanager
def git_access(repository: str) -> Iterator[None]:
    """Let git, and DVC's own git client, log in to the repository's server with the environment's credentials.

    This sets a credential helper in a temporary git configuration that replaces and includes the user's; the password
    itself is not written to disk. Without ``GIT_PASSWORD``, or if the repository is not accessed over HTTP, nothing
    changes.
    """
    url = urlsplit(repository)
    if url.scheme not in ("https", "http") or not os.environ.get(PASSWORD_VARIABLE):
        yield
        return
    before = os.environ.get("GIT_CONFIG_GLOBAL")
    own = Path(before or Path.home() / ".gitconfig")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gitconfig"
        include = f"[include]\n\tpath = {own}\n" if own.is_file() else ""
        server = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
        file.write_text(f'{include}[credential "{server}"]\n\thelper = "{_HELPER}"\n', encoding="utf-8")
        os.environ["GIT_CONFIG_GLOBAL"] = str(file)
        try:
            yield
        finally:
            if before is None:
                del os.environ["GIT_CONFIG_GLOBAL"]
            else:
                os.environ["GIT_CONFIG_GLOBAL"] = before
