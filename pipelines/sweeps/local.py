"""A sweep on this machine: Optuna chooses the settings (TPE), each trial is a process, the study is a file.

Only this process reads and writes the study, so that SQLite is enough. The sampler of a trial is seeded by the sweep's
seed and the trial's number: a sweep that was stopped asks for the values that it would have asked for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from pipelines.sweeps.best import finish
from pipelines.sweeps.data import prepare_data, shared_params
from pipelines.sweeps.runs import end_run
from pipelines.sweeps.space import Parameter, override
from pipelines.sweeps.sweep import TRIAL_MODULE, TRIAL_VARIABLE, Best, Plan, Sweep, SweepError, SweepFolder, Trial
from pipelines.sweeps.trial import RUN_VARIABLE, open_parent
from yolact.engine.interrupts import InterruptedRunError, Interrupts
from yolact.errors import EX_TEMPFAIL, SettingsError
from yolact.limits import usable_cpus
from yolact_ops.commands.container import THREADS_VARIABLE
from yolact_ops.tracking.run_record import RunRecord

if TYPE_CHECKING:
    from optuna import Study

STUDY = "sweep.db"
"""Optuna's study in the sweep's folder, SQLite."""
LOCK = "lock"
"""File in the sweep's folder that is locked while the sweep runs."""
LOOK_EVERY = 0.2
"""Seconds between two looks at the running trials."""
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
_DEFINITION = "definition"
"""Attribute of the study: `Sweep.definition` with the seed."""


@dataclass(frozen=True)
class _Running:
    """A trial's process."""

    number: int
    assignments: Mapping[str, Any]
    process: subprocess.Popen[bytes]


def run_sweep(sweep: Sweep, space: Sequence[Parameter], plan: Plan, path: Path) -> None:
    """Run the trials that are missing, and register the best model; prints the results.

    Args:
        sweep: what the trials share.
        space: what they try.
        plan: how many, and how.
        path: the sweep's folder. A stopped sweep there goes on: finished trials count, stopped ones resume.

    Raises:
        SettingsError: Optuna is not installed, the folder has another sweep, or one that is running.
        InterruptedRunError: stopped by SIGTERM or SIGINT; the same command goes on.
        SweepError: no trial has a result.
        SystemExit: a step failed; it has printed why.
    """
    optuna = _optuna()
    path = path.resolve()
    path.mkdir(parents=True, exist_ok=True)
    os.environ.pop(RUN_VARIABLE, None)  # the run of whatever called this; each trial has its own
    folder = SweepFolder(path)
    try:
        with FileLock(path / LOCK, timeout=0):
            study = open_study(optuna, sweep, plan.seed, path)
            prepare_data(sweep, folder)
            parent = open_parent(sweep, folder, shared_params(folder).register_.experiment)
            with _ended(parent):
                TrialLoop(optuna, study, sweep, space, plan, folder).run()
                _finish(study, sweep, plan, folder)
    except Timeout:
        raise SettingsError(
            f"{path}: this sweep is running. Wait for it to end, or give another one a name: --name NAME"
        ) from None


def _optuna() -> ModuleType:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise SettingsError(
            "a sweep on this machine needs Optuna: pip install 'yolact-pipeline[sweep]' (here: make install)"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(optuna: ModuleType, sweep: Sweep, seed: int, path: Path) -> Study:
    """The study in a sweep's folder, created if there is none.

    Raises:
        SettingsError: the folder has another sweep.
    """
    study: Study = optuna.create_study(
        storage=f"sqlite:///{path / STUDY}", study_name=sweep.name, direction="maximize", load_if_exists=True
    )
    definition = json.loads(json.dumps(sweep.definition | {"seed": seed}))
    before = study.user_attrs.get(_DEFINITION)
    if before is None:
        study.set_user_attr(_DEFINITION, definition)
    elif before != definition:
        differing = ", ".join(key for key in definition if before.get(key) != definition[key])
        raise SettingsError(
            f"{path}: has a sweep that differs in {differing}. Give this one another name (--name NAME), or remove the "
            "folder"
        )
    return study


@contextmanager
def _ended(run_id: str) -> Iterator[None]:
    """Set the status of the sweep's MLflow run after a stop or a failure."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        end_run(run_id, "KILLED" if stopped else "FAILED")
        raise


def trial_name(number: int) -> str:
    """Name and folder of a trial."""
    return f"trial-{number:04d}"


class TrialLoop:
    """The loop that starts trials and takes their results."""

    def __init__(
        self,
        optuna: ModuleType,
        study: Study,
        sweep: Sweep,
        space: Sequence[Parameter],
        plan: Plan,
        folder: SweepFolder,
    ) -> None:
        self._optuna, self._study, self._sweep, self._plan, self._folder = optuna, study, sweep, plan, folder
        self._distributions = {parameter.key: _distribution(optuna, parameter) for parameter in space}
        self._running: dict[int, _Running] = {}
        """By slot, 0 to ``parallel`` - 1."""
        self._stopped: list[tuple[int, Mapping[str, Any]]] = []
        """Number and assignments of trials to resume."""
        self._is_stopping = False

    def run(self) -> None:
        """Run until all trials have ended.

        Raises:
            InterruptedRunError: a signal came; the running trials have stopped.
        """
        for trial in self._study.get_trials(states=(self._optuna.trial.TrialState.RUNNING,)):
            if trial.params.keys() == self._distributions.keys():
                self._stopped.append((trial.number, trial.params))
            else:  # stopped before its values were stored
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        interrupts = Interrupts()
        try:
            with interrupts.watched():
                while interrupts.requested is None and (self._start() or self._running):
                    self._collect()
                    time.sleep(LOOK_EVERY)
                if interrupts.requested is not None:
                    self._stop(interrupts.requested)
        finally:
            for running in self._running.values():  # after a second Ctrl-C
                running.process.kill()

    def _start(self) -> bool:
        """Fill the free slots; whether trials remain to be started."""
        for slot in range(self._plan.parallel):
            if slot not in self._running and (found := self._next()) is not None:
                number, assignments = found
                shown = "  ".join(override(key, value) for key, value in assignments.items())
                print(f"{trial_name(number)}: {shown}", flush=True)
                self._running[slot] = _Running(number, assignments, self._launch(number, assignments, slot))
        return bool(self._stopped) or len(self._study.get_trials(deepcopy=False)) < self._plan.trials

    def _next(self) -> tuple[int, Mapping[str, Any]] | None:
        if self._stopped:
            return self._stopped.pop(0)
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self._plan.trials:
            return None
        seed = int(np.random.SeedSequence([self._plan.seed, number]).generate_state(1)[0])
        # With the lie, trials that run side by side do not try the same values.
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=self._plan.parallel > 1)
        trial = self._study.ask(self._distributions)
        return trial.number, trial.params

    def _launch(self, number: int, assignments: Mapping[str, Any], slot: int) -> subprocess.Popen[bytes]:
        trial = Trial(
            self._sweep,
            str(self._folder.path),
            trial_name(number),
            [override(key, value) for key, value in assignments.items()],
            ends_with_parent=True,
        )
        place = self._folder.trial(trial.name)
        place.path.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {TRIAL_VARIABLE: trial.to_json()} | _share(slot, self._plan.parallel)
        with place.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches this process only, which then stops the trials.
            return subprocess.Popen(
                [sys.executable, "-m", TRIAL_MODULE],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _collect(self) -> None:
        """Take the results of the trials that have ended."""
        for slot, running in list(self._running.items()):
            code = running.process.poll()
            if code is not None:
                del self._running[slot]
                self._take(running, code)

    def _take(self, running: _Running, code: int) -> None:
        name = trial_name(running.number)
        place = self._folder.trial(name)
        if code == EX_TEMPFAIL or (self._is_stopping and code == -signal.SIGTERM):  # before it could act on it
            self._stopped.append((running.number, running.assignments))
            print(f"{name}: stopped", flush=True)
        elif code == 0:
            value = place.value(self._sweep.metric)
            self._study.tell(running.number, value)
            best = self._study.best_trial
            print(
                f"{name}: {self._sweep.metric} {value:.4f}  (best: {best.value:.4f}, {trial_name(best.number)})",
                flush=True,
            )
        else:
            self._study.tell(running.number, state=self._optuna.trial.TrialState.FAIL)
            if code < 0 and place.run_file.is_file():  # killed, so it could not end its run
                end_run(RunRecord.read(place.run_file).run_id, "FAILED")
            print(f"{name}: failed ({_reason(place.log, code)}); {place.log}", flush=True)

    def _stop(self, signal_name: str) -> None:
        """Stop the running trials and wait for their checkpoints."""
        print(f"{signal_name}: stopping {len(self._running)} trials, each after its checkpoint", flush=True)
        self._is_stopping = True
        for running in self._running.values():
            with suppress(ProcessLookupError):
                running.process.terminate()
        while self._running:
            self._collect()
            time.sleep(LOOK_EVERY)
        done = len(self._study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.COMPLETE,)))
        raise InterruptedRunError(
            f"stopped by {signal_name}; {done} trials have a result. The same command goes on (exit code {EX_TEMPFAIL})"
        )


def _distribution(optuna: ModuleType, parameter: Parameter) -> Any:
    """Optuna's distribution of a parameter."""
    distributions = optuna.distributions
    if parameter.form == "choice":
        return distributions.CategoricalDistribution(parameter.values)
    low, high = parameter.values
    if parameter.form == "int":
        return distributions.IntDistribution(low, high)
    return distributions.FloatDistribution(low, high, log=parameter.form == "loguniform")


def _share(slot: int, parallel: int) -> dict[str, str]:
    """Variables that give a trial its share of this machine's cores and GPUs."""
    if parallel == 1:
        return {}
    share = {}
    if THREADS_VARIABLE not in os.environ:
        share[THREADS_VARIABLE] = str(max(usable_cpus() // parallel, 1))
    import torch

    gpus = os.environ.get(GPU_VARIABLE, "").split(",") if os.environ.get(GPU_VARIABLE) else []
    gpus = gpus or [str(number) for number in range(torch.cuda.device_count())]
    if gpus:
        share[GPU_VARIABLE] = gpus[slot % len(gpus)]
    return share


def _reason(log: Path, code: int) -> str:
    """What a failed trial said: the line with its error, or how it ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    failed = [line for line in lines if " failed: " in line]
    if code < 0:
        return f"killed by signal {-code}"
    return (failed or lines or [f"exit code {code}"])[-1].strip()


def _finish(study: Study, sweep: Sweep, plan: Plan, folder: SweepFolder) -> None:
    """Print the best trial, and register its model."""
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    if not done:
        raise SweepError(
            f"{folder.path}: none of {len(study.get_trials(deepcopy=False))} trials has a result; "
            "trials/*/log.txt there says why. Remove the folder, or give another --name, to begin again"
        )
    best, name = study.best_trial, trial_name(study.best_trial.number)
    assignments = {key: str(value) for key, value in best.params.items()}
    finish(Best(sweep, str(folder.path), name, assignments, plan.registers))
    print(f"best       {name} of {len(done)} with a result: {sweep.metric} {best.value:.4f}")
    print(f"settings   {' '.join(f'-S {key}={value}' for key, value in assignments.items())}")
    print(f"model      {folder.trial(name).model}")
    if plan.registers:
        version = json.loads((folder.path / "registration.json").read_text(encoding="utf-8"))
        decision = json.loads((folder.path / "promotion.json").read_text(encoding="utf-8"))
        print(f"registered {version['model_uri']}")
        print(f"promotion  {decision['status']}")
