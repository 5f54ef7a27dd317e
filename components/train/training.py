"""The training itself, in this process: from processed data to a trained network.

The checkpoints outlive a killed run: the next one with the same settings and data resumes from there, in the same
MLflow run; one with more epochs continues there in a new MLflow run, if the learning rates of the steps done are the
same. After a finished run the next one starts over, unless the checkpoint folder belongs to one pipeline run:
then lost results (after a failed upload, for example) are written again without training.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from components.train.listener import TrackingListener
from components.train.mirror import S3Mirror
from components.train.results import summary, write_plots
from components.train.starting import load_start
from yolact.data.coco import CocoInstances
from yolact.devices import choose_device, computing_threads, prepare_device
from yolact.distributed import World, joined_world, own_device_name
from yolact.engine.advice import start_advised
from yolact.engine.anchor_fit import anchors_advice
from yolact.engine.automatic import resolve
from yolact.engine.checkpoint import CheckpointStore, Extension, TrainingState
from yolact.engine.interrupts import Interrupts
from yolact.engine.schedule import why_not_extended
from yolact.engine.trainer import Listener, SilentListener, Trainer, TrainingResult
from yolact.errors import DataError, SettingsError
from yolact.evaluation.evaluator import Validation
from yolact.files import replaced_directory, write_json_atomic
from yolact.losses.terms import check_weights
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig, RuntimeConfig
from yolact_ops.lineage.hashing import hash_files
from yolact_ops.lineage.lineage import data_source
from yolact_ops.lineage.statistics import read_data_digest, read_split_digests
from yolact_ops.reports.formatting import decimal
from yolact_ops.settings.params import Params
from yolact_ops.tracking.journal import FOLDER
from yolact_ops.tracking.notes import NOTE_TAG, run_note
from yolact_ops.tracking.run_record import RUN_FILE, TRAIN_THREADS_TAG, RunRecord
from yolact_ops.tracking.runs import start_run
from yolact_ops.tracking.tracker import DataSet, Tracker
from yolact_ops.transfer.instances import load_instances

log = logging.getLogger(__name__)

CONTINUED_TAG = "continued_run_id"
"""Tag of a run that continues another one's training with more epochs: that run's id."""

START_TAG = "started_from"
"""Tag of a run whose starting weights came from the registry or S3: their address, with an alias resolved."""

UPLOAD_PATIENCE = 20.0
"""Seconds that the end of a run waits for its mirror; an evicted pod is killed after 30 by default."""


@dataclass(frozen=True)
class _Paths:
    """Where the step reads and writes, see `run`."""

    annotations: Mapping[str, Path]
    """The instances files of the splits ``train`` and ``val``."""
    statistics: Path
    """The folder that has ``stats.json``."""
    model: Path
    metrics: Path
    plots: Path
    checkpoints: Path
    checkpoints_are_own: bool
    """Whether the checkpoints belong to one pipeline run; a finished training among them is then this one."""


def run(
    params: Params,
    *,
    train_data_dir: Path,
    eval_data_dir: Path,
    model_dir: Path,
    metrics_path: Path,
    plots_dir: Path,
    checkpoints_dir: Path | None = None,
    on_alive: Callable[[], None] = lambda: None,
    old_record: str | None = None,
) -> None:
    """Train a network on the images in ``train_data_dir`` and validate it on the val split in ``eval_data_dir``.

    Under ``torchrun`` the processes train together, and only rank 0 writes files and tracks the run.

    Args:
        params: the settings; reads ``model``, ``train``, ``evaluate.batch_size``, ``runtime`` and
            ``register.experiment``; all are logged.
        train_data_dir: output of preprocess for training: images and ``train.json``.
        eval_data_dir: its output for evaluation: images, ``val.json`` and ``stats.json``.
        model_dir: receives the model and the MLflow run's id.
        metrics_path: receives a summary of the run as JSON.
        plots_dir: receives ``losses.csv``, ``lr.csv`` and ``ap.csv``; existing content is replaced.
        checkpoints_dir: keeps the checkpoints of this pipeline run only: once it has finished, the same results are
            written again. Data not yet in MLflow is kept there too. None: ``checkpoints`` in ``model_dir``, where a new
            run follows a finished one.
        on_alive: called after each step, validation batch and checkpoint; must be fast.
        old_record: content of ``run.json`` in ``model_dir`` before the first start of a supervised training, empty if
            there was none. Another content now is the record of an earlier start; its MLflow run goes on, also without
            a checkpoint. None: this is the only start.

    Raises:
        DataError: the data is missing or invalid, or a split has no images or no objects.
        SettingsError: the device is not on this machine, or the run would start from the model that it replaces.
        WeightsError: the initial weights do not exist or do not fit.
        DownloadError: they cannot be downloaded.
        DivergedError: the loss is not finite.
        InterruptedRunError: SIGTERM or SIGINT was received before the end of the training; the next run resumes from
            the checkpoint.
        OutOfMemoryError: the network, a training step or a validation does not fit into memory.
        PeerError: another process of the run has failed.
        MirrorError: ``runtime.checkpoint_mirror`` cannot be read.
        TrackingError: the MLflow store fails at the start; it may be unavailable later, see
            yolact_ops/tracking/runs.py.
    """
    checkpoints = checkpoints_dir or model_dir / "checkpoints"
    annotations = {"train": train_data_dir / "train.json", "val": eval_data_dir / "val.json"}
    is_own = checkpoints_dir is not None
    paths = _Paths(annotations, eval_data_dir, model_dir, metrics_path, plots_dir, checkpoints, is_own)
    with computing_threads(params.runtime.threads), joined_world(params.runtime.device) as world:
        if not world.is_main:
            logging.getLogger().setLevel(logging.WARNING)
        interrupts = Interrupts()
        with interrupts.watched():
            _run(params, paths, world, interrupts, on_alive, old_record)


def _run(
    params: Params,
    paths: _Paths,
    world: World,
    interrupts: Interrupts,
    on_alive: Callable[[], None],
    old_record: str | None,
) -> None:
    """See `run`. During start-up, a request to stop takes effect between its parts; results are always written
    completely."""
    check_weights(params.train.loss.weights)
    _check_start(params.model, paths.model)
    train, val = (_load_split(paths.annotations[split], params.runtime) for split in ("train", "val"))
    # Before the trainer does so: fingerprint and MLflow get what was chosen, so a run resumes only with these images.
    params = world.broadcast(resolve(params, train, log_it=world.is_main))
    if world.is_main:
        _warn_of_data(train, val, params, paths)
    interrupts.stop_if_requested()
    device = choose_device(own_device_name(params.runtime.device, world))
    prepare_device(device, deterministic=params.runtime.deterministic)
    digests = read_split_digests(paths.statistics)
    data_digest = read_data_digest(paths.statistics)
    fingerprint = _fingerprint(params, data_digest, train.class_names)
    extension = _extension(params, data_digest, train.class_names)
    with _mirror(params.runtime.checkpoint_mirror, fingerprint, world) as mirror:
        checkpoints = CheckpointStore(paths.checkpoints, params.runtime.keep_checkpoints, fingerprint, mirror)
        begun = (
            checkpoints.begin(with_finished=paths.checkpoints_are_own, extension=extension) if world.is_main else None
        )
        state: TrainingState | None = world.broadcast(begun)
        interrupts.stop_if_requested()

        model, start = _network(params, train.class_names, world, resumed=state is not None)
        validation = Validation(val, paths.annotations["val"], params.evaluate.batch_size, world, on_alive)

        def make_trainer(listener: Listener, extra: dict[str, str]) -> Trainer:
            with start_advised(params, device):
                on_device, model_dir = model.to(device), paths.model
                trainer = Trainer(
                    on_device, train, params, model_dir, checkpoints, validation, listener, extra, world, interrupts
                )
                if state is not None:
                    trainer.restore(state)
            return trainer

        if not world.is_main:
            trainer = make_trainer(SilentListener(), {})
            trainer.fit()
        else:
            with _tracked(params, paths, state, old_record) as tracker:
                tracker.set_tags({TRAIN_THREADS_TAG: str(torch.get_num_threads())})
                if start is not None:
                    tracker.set_tags({START_TAG: start})
                _log_data(tracker, params, paths, digests, {"train": train, "val": val})
                interrupts.stop_if_requested()
                listener = TrackingListener(tracker, validation, params.train.validation_pictures, on_alive)
                trainer = make_trainer(listener, tracker.record.to_json())
                with tracker.system_metrics():
                    result = trainer.fit()
                _write_results(result, paths, tracker)
                best = {"best mask AP of a validation": result.best_score}
                tracker.set_tags({NOTE_TAG: run_note(params, val.class_names, len(val.images), best)})
        trainer.finish()
    if world.is_main:
        _log_results(result, paths, tracker.record)


def _network(params: Params, classes: Sequence[str], world: World, *, resumed: bool) -> tuple[Yolact, str | None]:
    """The network before its first step, the same in every process, and where its weights are from, see `load_start`.

    Only the main process reads weights. Afterwards the random state is that of the seed, whatever was drawn.
    """
    torch.manual_seed(params.train.seed)
    model = Yolact(params.model, len(classes))
    start = None
    if not resumed:
        if world.is_main:
            start = load_start(model, classes)
        model.load_state_dict(world.broadcast(model.state_dict()))
    torch.manual_seed(params.train.seed)
    return model, start


def _warn_of_data(train: CocoInstances, val: CocoInstances, params: Params, paths: _Paths) -> None:
    """Warn of what makes a training worse, or its AP meaningless."""
    if advice := anchors_advice(train, params.model, params.train.loss.positive_iou):
        log.warning("%s", advice)
    if all(item.crowd for objects in val.objects.values() for item in objects):
        log.warning(
            "%s: its objects are crowd regions alone, so AP cannot be measured: the weights of the last validation are "
            "kept, and train.patience has no effect",
            paths.annotations["val"],
        )


@contextmanager
def _tracked(params: Params, paths: _Paths, state: TrainingState | None, old_record: str | None) -> Iterator[Tracker]:
    """The MLflow run: the checkpoint's, or a new one; a run that continues another with more epochs names it."""
    recorded = RunRecord.from_json(state.extra) if state else None
    is_continued = state is not None and _epochs(state) != params.train.epochs
    resume = _earlier_start(paths.model / RUN_FILE, old_record) if is_continued or not recorded else recorded
    journals = paths.checkpoints / FOLDER if paths.checkpoints_are_own else None
    with start_run(params, paths.model / RUN_FILE, resume=resume, journals=journals) as tracker:
        if recorded and is_continued:
            tracker.set_tags({CONTINUED_TAG: recorded.run_id})
        yield tracker


@contextmanager
def _mirror(address: str, fingerprint: str, world: World) -> Iterator[S3Mirror | None]:
    """The mirror of the process that writes checkpoints; on exit, waits a little for its uploads."""
    if address == "none" or not world.is_main:
        yield None
        return
    mirror = S3Mirror(address, fingerprint)
    try:
        yield mirror
    finally:
        mirror.close(UPLOAD_PATIENCE)


def _write_results(result: TrainingResult, paths: _Paths, tracker: Tracker) -> None:
    metrics = summary(result)
    with replaced_directory(paths.plots) as folder:
        write_plots(folder, result)
    write_json_atomic(paths.metrics, metrics)
    measured = {f"train/{name}": value for name, value in metrics.items() if value is not None}
    tracker.log_metrics(measured, result.steps)


def _log_results(result: TrainingResult, paths: _Paths, record: RunRecord) -> None:
    """Log the results and where they are."""
    log.info(
        "done: %d steps, best validation mask AP %s, %.3f s a step\n"
        "  model        %s, %s\n"
        "  metrics      %s\n"
        "  curves       %s (dvc plots show)\n"
        "  MLflow run   %s in experiment %r (yolact mlflow)\n"
        "  checkpoints  %s",
        result.steps,
        decimal(result.best_score),
        result.seconds_per_step,
        paths.model / WEIGHTS_FILE,
        paths.model / DESCRIPTION_FILE,
        paths.metrics,
        paths.plots,
        record.run_id,
        record.experiment,
        paths.checkpoints,
    )


def _earlier_start(run_file: Path, old_record: str | None) -> RunRecord | None:
    """The MLflow run of an earlier start that crashed before its first checkpoint, see `run`."""
    if old_record is None or not run_file.is_file() or run_file.read_text(encoding="utf-8") == old_record:
        return None
    return RunRecord.read(run_file)


def _check_start(config: ModelConfig, model_dir: Path) -> None:
    if config.initial_weights != "none" and Path(config.initial_weights).resolve() == model_dir.resolve():
        raise SettingsError(
            f"model.initial_weights: {config.initial_weights}: this run writes its model there; copy the existing "
            "model to another folder and name that folder"
        )


def _load_split(path: Path, runtime: RuntimeConfig) -> CocoInstances:
    data = load_instances(path, runtime)
    if not any(data.objects.values()):
        raise DataError(f"{path}: {len(data.images)} images without any object; check the source and preprocess again")
    return data


def _fingerprint(params: Params, data_digest: str, classes: Sequence[str]) -> str:
    """SHA-256 (hex) of what the weights of a step depend on; checkpoints with another digest are not used.

    When a run validates and stops does not affect its steps: the best weights stay the best, and patience counts past
    validations. Gradient accumulation affects only rounding, unless batch norm is trained.
    """
    harmless = {"log_every", "validation_pictures", "validate_every", "patience"}
    if not params.model.trains_batch_norm:
        harmless.add("accumulate")
    facts = {
        "model": params.model.model_dump(mode="json"),
        "train": params.train.model_dump(mode="json", exclude=harmless),
        "start": _start_digest(params.model),
        "data": data_digest,
        "classes": list(classes),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _extension(params: Params, data_digest: str, classes: Sequence[str]) -> Extension:
    """Whether a run may be continued with the epochs of ``params``: see `Extension`."""

    def why_not(fingerprint: str, state: TrainingState) -> str | None:
        epochs = _epochs(state)
        before = params.model_copy(update={"train": params.train.model_copy(update={"epochs": epochs})})
        if epochs > params.train.num_epochs or _fingerprint(before, data_digest, classes) != fingerprint:
            return None
        return why_not_extended(state.step, state.steps_per_epoch, epochs, params.train)

    return why_not


def _epochs(state: TrainingState) -> int:
    """The ``train.epochs`` with which the state was saved."""
    return int(state.settings["train"]["epochs"])


def _start_digest(config: ModelConfig) -> str | None:
    """SHA-256 (hex) of the local files that training starts from; None if there are none."""
    if config.initial_weights == "none":
        paths = [Path(config.backbone_weights)]
    else:
        paths = [Path(config.initial_weights) / name for name in (DESCRIPTION_FILE, WEIGHTS_FILE)]
    return hash_files(*paths) if all(path.is_file() for path in paths) else None


def _log_data(
    tracker: Tracker,
    params: Params,
    paths: _Paths,
    digests: Mapping[str, str],
    splits: Mapping[str, CocoInstances],
) -> None:
    """Log the data that the run is trained and validated on; ``digests`` and ``splits`` have keys ``train``
    and ``val``."""
    for split, context in (("train", "training"), ("val", "validation")):
        tracker.log_dataset(
            DataSet(
                name=split,
                digest=digests[split],
                source=data_source(params),
                path=paths.annotations[split],
                context=context,
                num_images=len(splits[split].images),
            )
        )
    note = run_note(params, splits["val"].class_names, len(splits["val"].images), {})
    tracker.set_tags({"data_digest": read_data_digest(paths.statistics), NOTE_TAG: note})
