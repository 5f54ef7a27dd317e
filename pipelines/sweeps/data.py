"""The data of a sweep, made once for all of its trials."""

from __future__ import annotations

from pathlib import Path

from components.ingest import step as ingest
from components.preprocess import step as preprocess
from components.source import step as source
from pipelines.sweeps.sweep import Sweep, SweepFolder
from yolact.data.processed import EVAL
from yolact.errors import SettingsError
from yolact.files import write_text_atomic
from yolact_ops.commands.task import as_text, settings, task
from yolact_ops.settings.params import Params
from yolact_ops.tracking.evaluations import EVALUATED_SPLITS


def prepare_data(sweep: Sweep, folder: SweepFolder) -> Path:
    """The folder of processed data for all trials; made by source, ingest and preprocess unless it is there.

    Raises:
        SettingsError: the folder that the sweep names has no processed data.
        SystemExit: a step failed; it has printed why.
    """
    with folder.lock():
        if sweep.processed:
            processed = Path(sweep.processed)
            if not (processed / EVAL / "stats.json").is_file():
                raise SettingsError(
                    f"--processed {processed}: no processed data there (no {EVAL}/stats.json). Run "
                    "`dvc repro preprocess` first, or leave the option out"
                )
            if not folder.params_file.is_file():
                write_text_atomic(folder.params_file, sweep.params)
            return processed
        processed = folder.path / "data" / "processed"
        if not folder.params_file.is_file():
            _make_data(sweep, folder, processed)
    return processed


def validation_data(processed: Path, folder: SweepFolder) -> Path:
    """The data for evaluation without images that are held out, which evaluate would measure in place of validation's.

    Which trial is the best may not depend on them: the gate compares models on them.
    """
    data = processed / EVAL
    if not (data / f"{EVALUATED_SPLITS[0]}.json").is_file():
        return data
    view = folder.path / "data" / "validation"
    with folder.lock():
        view.mkdir(parents=True, exist_ok=True)
        for path in data.resolve().iterdir():  # images or shards with their indexes, annotations, statistics
            if path.stem != EVALUATED_SPLITS[0] and not (view / path.name).is_symlink():
                (view / path.name).symlink_to(path)
    return view


def shared_params(folder: SweepFolder) -> Params:
    """The settings of all trials, once `prepare_data` has run."""
    return settings(folder.params_file.read_text(encoding="utf-8"))


def _make_data(sweep: Sweep, folder: SweepFolder, processed: Path) -> None:
    raw = folder.path / "data" / "raw"
    with task("source", sweep.version("source")):
        params = source.run(settings(sweep.params)).params
    with task("ingest", sweep.version("ingest")):
        ingest.run(params, raw_dir=raw, downloads_dir=folder.path / "data" / "downloads")
    with task("preprocess", sweep.version("preprocess")):
        report = folder.path / "data" / "report"
        preprocess.run(params, raw_dir=raw, processed_dir=processed, report_dir=report, shards=params.runtime.shards)
    write_text_atomic(folder.params_file, as_text(params))
