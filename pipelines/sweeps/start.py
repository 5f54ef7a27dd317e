"""``python -m pipelines sweep``: check what was asked for, then sweep on this machine or on a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import ClusterConfig
from pipelines.options import SettingsOptions
from pipelines.sweeps.space import Parameter, check_space, split_overrides
from pipelines.sweeps.sweep import METRICS, Plan, Sweep
from yolact.errors import SettingsError
from yolact_ops.commands.task import as_text
from yolact_ops.lineage.code import installed_versions
from yolact_ops.settings.presets import choose

NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""What Katib takes as an experiment's name."""


@dataclass(frozen=True)
class Start:
    """Options of the command."""

    trials: int
    parallel: int
    metric: str
    seed: int
    name: str
    registers: bool
    dry_run: bool


def start_sweep(
    start: Start,
    options: SettingsOptions,
    cluster: ClusterConfig,
    *,
    output: Path,
    processed: Path | None,
    namespace: str | None,
) -> None:
    """Check everything, then run the sweep; or print what it would try.

    Args:
        start: options of the command.
        options: the settings; overrides may be spaces, see `pipelines.sweeps.space`.
        cluster: where and how the tasks run on a cluster.
        output: parent of the sweep's folder on this machine.
        processed: folder of processed data, in the pods if on a cluster; None: made once for the sweep.
        namespace: the cluster's namespace; None: on this machine.

    Raises:
        SettingsError: something that was asked for is wrong; nothing has run.
        YolactError: see `pipelines.sweeps.local.run_sweep` and `pipelines.sweeps.katib.run_sweep`.
    """
    _check(start)
    fixed, space = split_overrides(options.overrides or [])
    params = choose(options.preset, options.params, fixed)
    check_space(params, space)
    if processed is not None and namespace is None:
        processed = processed.resolve()
    sweep = Sweep(
        name=start.name,
        params=as_text(params),
        space={parameter.key: str(parameter) for parameter in space},
        metric=start.metric,
        processed="" if processed is None else str(processed),
        versions={} if namespace is None else installed_versions(),
    )
    plan = Plan(start.trials, start.parallel, start.seed, start.registers)
    if start.dry_run:
        _show(start, space)
    if namespace is not None:
        from pipelines.sweeps import katib

        experiment = katib.experiment(sweep, space, plan, cluster, namespace)
        if start.dry_run:
            print(f"---\n{katib.as_yaml(experiment)}", end="")
        else:
            katib.run_sweep(sweep, experiment, plan, cluster, namespace)
    elif not start.dry_run:
        from pipelines.sweeps import local

        local.run_sweep(sweep, space, plan, output / sweep.name)


def _check(start: Start) -> None:
    if start.metric not in METRICS:
        raise SettingsError(f"--metric {start.metric}: no such metric; there are: {', '.join(METRICS)}")
    if not NAME.fullmatch(start.name):
        raise SettingsError(
            f"--name {start.name}: must be at most 40 lower-case letters, digits and -, a letter first, no - at the end"
        )
    if start.parallel > start.trials:
        raise SettingsError(f"--parallel {start.parallel}: is above --trials {start.trials}; lower it")


def _show(start: Start, space: list[Parameter]) -> None:
    width = max(len(parameter.key) for parameter in space)
    for parameter in space:
        print(f"{parameter.key:{width}s}  {parameter}")
    print(f"{start.trials} trials, {start.parallel} at a time, for the largest {start.metric}, seed {start.seed}")
