"""Backbones, loss terms and data formats of other packages, found through their entry points."""

from __future__ import annotations

import functools
import importlib.metadata

from yolact.errors import SettingsError


@functools.cache
def load_plugins(group: str) -> None:
    """Import the modules that installed packages name in an entry point group; each registers what it adds.

    Args:
        group: ``yolact.backbones``, ``yolact.loss_terms`` or ``yolact.formats``.

    Raises:
        SettingsError: a module cannot be imported.
    """
    for entry in importlib.metadata.entry_points(group=group):
        try:
            entry.load()
        except Exception as error:  # the other package may raise anything
            raise SettingsError(
                f"the plugin {entry.value!r} (entry point group {group}) cannot be imported: {error}; fix it or "
                "uninstall it"
            ) from error
