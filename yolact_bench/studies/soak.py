"""Do memory, threads, open files and the time of a run stay as they are over a long time?

    python -m yolact_bench.studies.soak train [--minutes 30] [--images 80] [--work soak]
    python -m yolact_bench.studies.soak serve [MODEL] [--preset sample-cpu] [--minutes 30] [--clients 4] [--work soak]
    python -m yolact_bench.studies.soak runs [--count 200] [--at-once 1] [--work soak]

``train`` starts the step as `dvc repro` does, with the network of the preset sample-cpu on a few images, so that it
validates, writes checkpoints and logs to MLflow all the time, and ends it by SIGTERM. ``serve`` puts load on
`yolact serve`, without MODEL with the network of a preset with random weights. Both sample the process and all its
descendants every few seconds, print the medians of each tenth of the time, and judge the line through them: the first
tenth, the start, does not count.

``runs`` runs the five steps and ``promote`` with tiny settings, each run in a process of its own, all against one
SQLite store. Afterwards it looks for every run, version and decision in the store, and for anything else in it, and
judges the runs' CPU time in the same way: unlike their duration, other programs hardly change it.

Each command writes its measurements to the folder, and ends with exit code 1 if something grew or is missing.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer

from components.evaluate import step as evaluate
from components.promote import step as promote
from components.register import step as register
from components.train import training
from yolact.data.processed import EVAL, TRAIN
from yolact.errors import EX_TEMPFAIL, SettingsError
from yolact.files import write_json_atomic, write_text_atomic
from yolact.models.file_names import WEIGHTS_FILE
from yolact_bench.studies import serving
from yolact_bench.studies.command import run_study
from yolact_bench.studies.data import prepare_data
from yolact_ops.lineage.hashing import hash_files
from yolact_ops.registry.history import read_history
from yolact_ops.registry.versions import RegisteredModel, fetch_files
from yolact_ops.settings.presets import choose, compose
from yolact_ops.tracking.journal import FOLDER, find_journals
from yolact_ops.tracking.run_record import RUN_FILE, RunRecord
from yolact_ops.tracking.store import connect

SAMPLE_EVERY = 5.0
"""Seconds between two samples."""
TENTHS = 10
MOST_GROWTH = 0.02
"""Growth of memory, as a share of its level, from the second tenth to the last one, that counts as none."""
MOST_SLOWER = 0.1
"""The same of a run's CPU time."""

LONG = ("train.epochs=100000", "train.validate_every=1", "runtime.device=cpu")
TINY = (
    "data.sample.train_images=4",
    "data.sample.val_images=2",
    "train.epochs=1",
    "train.warmup_steps=1",
    "train.validation_pictures=0",
    "evaluate.gallery_images=1",
    "promote.max_doubt=1",  # two images prove no gain: the gate lets pass what is not worse
    "promote.samples=100",
    "runtime.device=cpu",
    "runtime.max_restarts=0",  # trains in the run's process
)

PRELOADED = [
    "components.evaluate.step",
    "components.promote.step",
    "components.register.step",
    "components.train.training",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "yolact_bench.studies.serving",
]
"""Loaded once for all processes of ``runs``, as importing takes most of a tiny run's time."""

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
Work = Annotated[Path, typer.Option(help="Folder for data and results.")]
Minutes = Annotated[float, typer.Option(help="Duration.")]


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants use at a moment."""

    memory: float
    """MiB of their own (not of files), shared pages counted once."""
    threads: int
    files: int
    """Open files, sockets and pipes."""


def usage(process: psutil.Process) -> Usage:
    """What a process and its descendants use now, those that end meanwhile left out."""
    kibibytes, threads, files = 0, 0, 0
    for each in [process, *process.children(recursive=True)]:
        try:
            rollup = Path(f"/proc/{each.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
            own_threads, own_files = each.num_threads(), each.num_fds()
        except (OSError, psutil.Error):
            continue
        sizes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in rollup)}
        kibibytes += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
        threads += own_threads
        files += own_files
    return Usage(kibibytes / 1024, threads, files)


@contextmanager
def sampled(pid: int, every: float) -> Iterator[list[Usage]]:
    """Sample a process and its descendants in the background; the list has the samples so far."""
    process, samples, ended = psutil.Process(pid), list[Usage](), threading.Event()

    def sample() -> None:
        while not ended.wait(every):
            with suppress(psutil.NoSuchProcess):
                samples.append(usage(process))

    thread = threading.Thread(target=sample, name="samples")
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def medians(values: Sequence[float]) -> list[float]:
    """The median of each tenth of the values.

    Raises:
        SettingsError: they are fewer than the tenths.
    """
    if len(values) < TENTHS:
        raise SettingsError(f"{len(values)} measurements are too few to judge; wanted are {TENTHS}")
    return [float(np.median(part)) for part in np.array_split(np.array(values), TENTHS)]


def growth(tenths: Sequence[float]) -> float:
    """By how much the line through all tenths but the first rises from the second to the last."""
    slope = np.polyfit(np.arange(len(tenths) - 1), tenths[1:], 1)[0]
    return float(slope * (len(tenths) - 2))


def judged(samples: Sequence[Usage]) -> bool:
    """Print the tenths of each measurement and its growth; whether none grew."""
    flat = True
    for name in ("memory", "threads", "files"):
        tenths = medians([getattr(sample, name) for sample in samples])
        grown = growth(tenths)
        limit = MOST_GROWTH * float(np.median(tenths)) if name == "memory" else 0.5  # of one thread or file
        flat = flat and grown <= limit
        print(f"{name}: {', '.join(f'{value:.0f}' for value in tenths)}; growth {grown:+.1f}, allowed {limit:.1f}")
    return flat


@dataclass(frozen=True)
class Run:
    """A run of the pipeline."""

    number: int
    """From 1; also the seed, so that all models differ."""
    run_id: str
    version: int
    promoted: bool
    steps: int
    weights: str
    """SHA-256 of the trained weights."""
    seconds: float
    cpu: float
    """CPU time, s."""


def run_once(number: int, work: Path) -> Run:
    """Run the five steps and ``promote`` in this process, which nothing else has used."""
    began, folder = time.perf_counter(), work / "runs" / f"{number:04d}"
    params = choose("smoke", overrides=(*TINY, f"train.seed={number}"))
    _enter(work)
    prepare_data(params, folder)
    data, model, scores = folder / "processed" / EVAL, folder / "model", folder / "eval.json"
    training.run(
        params,
        train_data_dir=folder / "processed" / TRAIN,
        eval_data_dir=data,
        model_dir=model,
        metrics_path=folder / "train.json",
        plots_dir=folder / "plots" / "train",
    )
    evaluate.run(
        params,
        eval_data_dir=data,
        model_dir=model,
        metrics_path=scores,
        report_dir=folder / "report_eval",
        plots_dir=folder / "plots" / "eval",
    )
    registration = folder / "registration.json"
    register.run(params, model_dir=model, eval_data_dir=data, metrics_path=scores, report_path=registration)
    outcome = promote.run(
        params,
        registration_path=registration,
        eval_data_dir=data,
        report_path=folder / "promotion.json",
        page_path=folder / "promotion.md",
    )
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Run(
        number,
        RunRecord.read(model / RUN_FILE).run_id,
        outcome.version,
        outcome.status == "promoted",
        json.loads((folder / "train.json").read_text(encoding="utf-8"))["steps"],
        hash_files(model / WEIGHTS_FILE),
        time.perf_counter() - began,
        sum(each.ru_utime + each.ru_stime for each in spent),
    )


def _enter(work: Path) -> None:
    """Use the store in this folder, as in a checkout."""
    os.chdir(work)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def problems(done: Sequence[Run], name: str) -> list[str]:
    """What the store of these runs lacks, has too much of, or has damaged, in words.

    Args:
        done: the runs, in whose folder this process is.
        name: their registered model.
    """
    client = connect()
    with closing(sqlite3.connect("mlflow.db")) as database:
        found = [str(row) for row in database.execute("PRAGMA integrity_check") if row != ("ok",)]
        found += [f"broken reference: {row}" for row in database.execute("PRAGMA foreign_key_check")]
    # Runs
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    stored = {run.info.run_id: run for run in client.search_runs(experiments, max_results=len(done) + 1000)}
    ended = {run.run_id for run in done}
    found += [f"run {run_id} is lost" for run_id in ended - stored.keys()]
    for run_id in stored.keys() - ended:  # a study that was killed leaves one
        if (status := stored[run_id].info.status) != "KILLED":
            found.append(f"run {run_id} is of no pipeline run, and {status}")
    for run in done:
        if (entry := stored.get(run.run_id)) is None:
            continue
        if entry.info.status != "FINISHED":
            found.append(f"run {run.number} is {entry.info.status}")
        if entry.data.params.get("train.seed") != str(run.number):
            found.append(f"run {run.number} has the settings of another one")
        if len(client.get_metric_history(run.run_id, "train/total")) != run.steps:
            found.append(f"run {run.number} lacks losses, or has some twice")
        if not {"val/mask_AP", "eval/mask_AP"} <= entry.data.metrics.keys():
            found.append(f"run {run.number} lacks metrics")
    found += [f"not sent: {left}" for model in Path("runs").glob("*/model") for left in find_journals(model / FOLDER)]
    # Versions
    models = [each.name for each in client.search_registered_models()]
    if models != [name]:
        found.append(f"registered models: {models}")
    model = RegisteredModel.open(client, name)
    versions = model.versions()
    if sorted(versions) != sorted(run.version for run in done):
        found.append(f"there are {len(versions)} versions for {len(done)} runs")
    for run in done:
        version = versions.get(run.version)
        if version is None or version.status != "READY" or version.run_id != run.run_id:
            found.append(f"version {run.version} is not that of run {run.number}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            weights = fetch_files(name, run.version, Path(folder), f"artifacts/model/{WEIGHTS_FILE}")
            if hash_files(weights) != run.weights:
                found.append(f"version {run.version} has other weights than run {run.number}")
    # Decisions
    history, promoted = read_history(model), [run.version for run in done if run.promoted]
    decided = [decision.version for decision in history.decisions]
    if sorted(decided) != sorted(promoted) or history.missing or history.unsettled:
        found.append(f"decisions {decided} for the promoted versions {promoted}")
    if history.champion is None or history.champion != history.decided_champion:
        found.append(f"the champion is {history.champion}, decided was {history.decided_champion}")
    return found


def _ended(*, good: bool) -> None:
    print("nothing grew, nothing is missing" if good else "something grew or is missing: see above")
    if not good:
        raise SystemExit(1)


@app.command()
def train(
    minutes: Minutes = 30,
    images: Annotated[int, typer.Option(help="Training images, 8 a step; an epoch has all of them.")] = 80,
    every: Annotated[float, typer.Option(help="Seconds between two samples.")] = SAMPLE_EVERY,
    work: Work = Path("soak"),
) -> None:
    """Train for some minutes, and judge what the training uses."""
    work = (work / "train").resolve()
    data = (f"data.sample.train_images={images}", f"data.sample.val_images={max(1, images // 4)}")
    overrides = (*LONG, *data)
    prepare_data(choose("sample-cpu", overrides=overrides), work / "data")
    write_text_atomic(work / "params.yaml", compose("sample-cpu", overrides))
    with (work / "train.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "components.train.step"], cwd=work, stderr=log)
        with sampled(process.pid, every) as samples:
            with suppress(subprocess.TimeoutExpired):
                process.wait(60 * minutes)
            enough = list(samples)
            process.terminate()
            code = process.wait()
    write_json_atomic(work / "train.json", [asdict(sample) for sample in enough])
    lines = (work / "train.log").read_text().splitlines()
    last = lines[-1] if lines else "none"
    print(f"exit code {code}, {sum(': loss ' in line for line in lines)} epochs; last line: {last}")
    _ended(good=judged(enough) and code == EX_TEMPFAIL)


@app.command()
def serve(
    model: Annotated[str | None, typer.Argument(help="What `yolact serve` takes.")] = None,
    preset: Annotated[str, typer.Option(help="Whose network is served without MODEL.")] = "sample-cpu",
    minutes: Minutes = 30,
    clients: int = 4,
    every: Annotated[float, typer.Option(help="Seconds between two samples.")] = SAMPLE_EVERY,
    work: Work = Path("soak"),
) -> None:
    """Put load on a server for some minutes, and judge what it uses."""
    image, pixels = serving.sample_image()
    whole = serving.Load()
    with tempfile.TemporaryDirectory() as folder:
        model = model or serving.random_model(Path(folder), preset, pixels)
        with serving.serving(model, 8) as server, sampled(server.process.pid, every) as samples:
            for _ in range(TENTHS):
                part = serving.load(server, image, clients, 60 * minutes / TENTHS)
                print(part.describe(), flush=True)
                whole.statuses += part.statuses
                whole.seconds += part.seconds
                whole.duration += part.duration
            enough = list(samples)
    write_json_atomic(work / "serve.json", [asdict(sample) for sample in enough])
    print(f"all: {whole.describe()}")
    _ended(good=judged(enough) and set(whole.statuses) == {200})


@app.command()
def runs(
    count: Annotated[int, typer.Option(min=TENTHS, help="Runs of the pipeline, those of before included.")] = 200,
    at_once: Annotated[int, typer.Option(min=1, help="Of them at a time.")] = 1,
    work: Work = Path("soak"),
) -> None:
    """Run the pipeline many times, and judge the store and the time that a run takes; goes on where it was ended."""
    work = (work / "runs").resolve()
    work.mkdir(parents=True, exist_ok=True)
    record = work / "runs.jsonl"
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    done = [Run(**json.loads(line)) for line in lines]
    context = multiprocessing.get_context("forkserver")  # a new process for each run, which need not import all again
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(at_once, context, max_tasks_per_child=1) as pool, record.open("a") as file:
        for run in pool.map(run_once, range(len(done) + 1, count + 1), itertools.repeat(work)):
            done.append(run)
            file.write(json.dumps(asdict(run)) + "\n")
            file.flush()
            size = (work / "mlflow.db").stat().st_size / 2**20
            print(f"{run.number}: {run.seconds:.1f} s, CPU {run.cpu:.1f} s; store {size:.1f} MiB", flush=True)
    name = choose("smoke").register_.model_name
    _enter(work)
    found = problems(done, name)
    for problem in found:
        print(problem)
    cpu = medians([run.cpu for run in done])
    grown, limit = growth(cpu), MOST_SLOWER * float(np.median(cpu))
    print(f"CPU time, s: {', '.join(f'{value:.2f}' for value in cpu)}; growth {grown:+.2f}, allowed {limit:.2f}")
    print(f"{len(done)} runs, {sum(run.promoted for run in done)} promoted, {len(found)} problems")
    _ended(good=not found and grown <= limit)


if __name__ == "__main__":
    run_study(app)
