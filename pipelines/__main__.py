"""``python -m pipelines``: compile the pipelines, run them here."""

from __future__ import annotations

from pipelines.commands import app

if __name__ == "__main__":
    app(prog_name="python -m pipelines")
