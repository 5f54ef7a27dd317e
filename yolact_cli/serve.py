"""`yolact serve`: the HTTP server."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from yolact.errors import SettingsError
from yolact_ops.commands.collector import collector_paused


@collector_paused()  # until the first model is loaded
def run(
    model: str | None,
    *,
    name: str | None = None,
    host: str | None = None,
    port: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    token_file: Path | None = None,
    candidate: str | None = None,
    feedback: Path | None = None,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; None leaves a setting to the environment, or its default.

    Raises:
        SettingsError: a setting is wrong.
        YolactError: the model cannot be loaded.
    """
    from yolact_ops.commands.container import keep_to_container
    from yolact_ops.commands.secrets import read_secrets

    keep_to_container()  # before PyTorch is imported
    read_secrets()

    try:
        from serving.server import serve
        from serving.settings import read_settings
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"the server needs {error.name}, which is not installed: run make install, or install the extra `serve`"
        ) from error

    settings = read_settings(
        model=model,
        name=name,
        host=host,
        port=port,
        device=device,
        precision=precision,
        batch_size=batch_size,
        token_file=token_file,
        candidate=candidate,
        feedback=feedback,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    serve(settings, lambda address: print(f"{settings.model} at {address}; Ctrl-C stops it", flush=True))
