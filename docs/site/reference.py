"""The generated pages of the reference. Making one imports what it describes; naming them all imports nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import python_reference


def _settings() -> str:
    from settings_reference import settings

    return settings()


def _server_settings() -> str:
    from settings_reference import server_settings

    return server_settings()


def _http() -> str:
    from http_reference import http

    return http()


def _yolact() -> str:
    from command_reference import commands

    return commands("yolact")


def _pipelines() -> str:
    from command_reference import commands

    return commands("python -m pipelines")


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/settings.md": _settings,
    "reference/server-settings.md": _server_settings,
    "reference/http.md": _http,
    "reference/yolact.md": _yolact,
    "reference/pipelines.md": _pipelines,
    **python_reference.PAGES,
}
"""What makes the Markdown of each generated page, by its path in the site."""
