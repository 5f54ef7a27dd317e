"""``python -m pipelines``: compile the pipelines, run them here or on a cluster."""

from __future__ import annotations

from pipelines import remote
from pipelines.commands import app

app.add_typer(remote.app)

if __name__ == "__main__":
    app(prog_name="python -m pipelines")
