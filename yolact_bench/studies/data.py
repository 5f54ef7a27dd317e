"""The data on which studies train."""

from __future__ import annotations

from pathlib import Path

from components.ingest import step as ingest
from components.preprocess import step as preprocess
from yolact.data.processed import TRAIN
from yolact_ops.settings.params import Params


def prepare_data(params: Params, folder: Path) -> None:
    """Bring ``data.source`` into ``folder`` and convert it to COCO instances, unless the folder already has them.

    Raises:
        DataError: the source cannot be read, see the steps ingest and preprocess.
    """
    if not (folder / "processed" / TRAIN).is_dir():
        ingest.run(params, raw_dir=folder / "raw", downloads_dir=folder / "downloads")
        preprocess.run(params, raw_dir=folder / "raw", processed_dir=folder / "processed", report_dir=folder / "report")
