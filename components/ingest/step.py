"""The ingest step: fetch the images and their annotations from any source into ``data/raw``.

The source (``data.source``) is generated, copied or fetched; `yolact_ops.sources.data_source` has its kinds.
"""

from __future__ import annotations

import logging
from pathlib import Path

from yolact_ops.commands.step import run_command
from yolact_ops.lineage.redaction import shown_source
from yolact_ops.settings.params import DataParams
from yolact_ops.sources.raw import bring, write_reference

log = logging.getLogger(__name__)


def run(params: DataParams, *, raw_dir: Path, downloads_dir: Path, reference: str | None = None) -> None:
    """Put the raw data set into ``raw_dir``, replacing its contents as a whole or not at all.

    Args:
        params: settings; uses ``data.source``, ``data.mirrors`` and ``data.annotations``, for ``sample`` also
            ``data.sample``.
        raw_dir: target for the files of the data set, at the paths given by the format's `Format.files`.
        downloads_dir: keeps fetched files, so that no byte is fetched twice.
        reference: fingerprint of the source (`yolact_ops.sources.state.State`): nothing is fetched, and ``raw_dir``
            gets a reference to the source, for tasks that fetch it themselves. None: fetch.

    Raises:
        DataError: the source is missing, cannot be fetched, is damaged or in no known format, or overlaps with
            ``raw_dir``.
        OSError: a file cannot be read or written.
    """
    if reference is not None:
        write_reference(raw_dir, reference)
        log.info(
            "%s: a reference is in %s; each task that reads it fetches it", shown_source(params.data.source), raw_dir
        )
        return
    bring(params, raw_dir, downloads_dir)
    files = [path for path in raw_dir.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    log.info("%s: %d files, %d bytes in %s", shown_source(params.data.source), len(files), size, raw_dir)


if __name__ == "__main__":
    raw = Path("data/raw")
    run_command("ingest", lambda params: run(params, raw_dir=raw, downloads_dir=Path("data/downloads")), outputs=[raw])
