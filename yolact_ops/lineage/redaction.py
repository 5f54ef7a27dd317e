"""Remove credentials from addresses and messages."""

from __future__ import annotations

import re

# The second form is a password with a slash, which is invalid but gets typed; `host:8080/a@b` is none.
_USER = re.compile(r"(?<=://)(?:[^/\s]*@|[^/\s:@]+:(?!\d*/)[^\s@]*@)")
_SSH_PASSWORD = re.compile(r"(?<=://)([^/:\s]*):(?!\d*/)[^\s@]*@")
_QUERY = re.compile(r"[?#].*$")
_WEB_QUERY = re.compile(r"(\bhttps?://[^\s?#'\"<>]*)[?#][^\s'\"<>]*", re.IGNORECASE)


def without_credentials(url: str) -> str:
    """A URL without user, password, query and fragment; an SSH login name (``git@``) is not a secret and is kept.

    Text that is not a URL, such as a path or ``git@host:folder``, is returned unchanged.
    """
    if "://" not in url:
        return url
    is_ssh = url.split("://")[0].endswith("ssh")
    url = _SSH_PASSWORD.sub(r"\1@", url) if is_ssh else _USER.sub("", url)
    return _QUERY.sub("", url)


def shown_source(text: str) -> str:
    """A value of ``data.source`` without passwords, for messages and records.

    Only HTTP addresses lose what follows ``?`` and ``#``: in ``dvc:REPOSITORY#PATH@REVISION`` and in bucket keys these
    are part of the name, not secrets.
    """
    if text.lower().startswith(("https://", "http://")):
        return without_credentials(text)
    if text.startswith("dvc:"):
        repository, mark, rest = text.rpartition("#")
        return f"{without_credentials(repository)}{mark}{rest}"
    return redact(text)


def redact(text: str) -> str:
    """``text`` without the user and password of URLs in it, and without what follows ``?`` or ``#`` in web addresses.

    A signed address grants access by its query.
    """
    return _WEB_QUERY.sub(r"\1", _USER.sub("", text))
