"""`yolact promote`, `yolact rollback`, `yolact history` and `yolact publish`."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from components.promote.promotion import Outcome, RefusedError, Request
from components.promote.promotion import promote as promote_version
from components.promote.promotion import rollback as roll_back
from components.promote.report import headline
from components.promote.rollout import NotServedError
from yolact.data.processed import EVAL, PROCESSED
from yolact.errors import SettingsError
from yolact_cli.runs import make_console
from yolact_ops.registry.history import Decision, History, read_history
from yolact_ops.registry.publication import publish as publish_versions
from yolact_ops.registry.versions import RegisteredModel
from yolact_ops.settings.params import load_params
from yolact_ops.tracking.store import connect

PARAMS = Path("params.yaml")

HEADINGS = ("when (UTC)", "what", "champion", "gain", "who", "reason")


def promote(request: Request, *, as_json: bool) -> int:
    """Promote a version; return the exit code: 0, or that of `RefusedError` or `NotServedError`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    params = load_params(PARAMS)
    outcome = promote_version(params, request, eval_data_dir=PROCESSED / EVAL)
    if as_json:
        print(json.dumps(outcome.to_json(), indent=2, allow_nan=False))
    else:
        _print_outcome(outcome, make_console(), name=request.name)
    if not request.dry_run:
        publish_versions(params.register_, outcome.name)
    return {"refused": RefusedError.exit_code, "not_served": NotServedError.exit_code}.get(outcome.status, 0)


def rollback(name: str | None, to: int | None, reason: str | None, *, as_json: bool) -> None:
    """Roll back to an earlier champion and report it."""
    params = load_params(PARAMS)
    decision = roll_back(params, name=name, to=to, reason=reason)
    model = name or params.register_.model_name
    if as_json:
        print(json.dumps(asdict(decision), indent=2, allow_nan=False))
    else:
        print(f"{model}: version {decision.version} is the champion again (was: {decision.previous or 'none'})")
    publish_versions(params.register_, model)


def publish(name: str | None) -> None:
    """Copy all versions to Kubeflow's Model Registry.

    Raises:
        SettingsError: the settings name none.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = load_params(PARAMS).register_
    if config.model_registry == "none":
        raise SettingsError(f"{PARAMS}: register.model_registry is none; set it to the address of a Model Registry")
    publish_versions(config, name or config.model_name)


def history(name: str | None, *, as_json: bool) -> None:
    """Show all decisions, oldest first, and the current champion."""
    model = name or load_params(PARAMS).register_.model_name
    found = read_history(RegisteredModel.open(connect(), model))
    if as_json:
        decisions = [asdict(decision) for decision in found.decisions]
        tree = {
            "name": model,
            "champion": found.champion,
            "moved_by_hand": found.moved_by_hand,
            "missing": found.missing,
            "decisions": decisions,
        }
        print(json.dumps(tree, indent=2, allow_nan=False))
        return
    _print_history(found, make_console())


def _print_outcome(outcome: Outcome, console: Console, *, name: str | None) -> None:
    """Print the outcome; ``name`` is the registered model if the command line named one."""
    console.print(headline(outcome), style="bold", soft_wrap=True)
    if outcome.rollout is not None:
        said = outcome.rollout.problem or "answers with this version"
        console.print(f"{outcome.rollout.service} {said}", markup=False, soft_wrap=True)
    if outcome.assessment is None:
        return
    for rule in outcome.assessment.rules:
        mark = "[green]passed [/green]" if rule.passed else "[red]REFUSED[/red]"
        console.print(f"  {mark}  {rule.name}: ", end="")
        console.print(rule.text, markup=False, soft_wrap=True)
    for note in outcome.assessment.notes:
        console.print(f"  note: {note}", markup=False, soft_wrap=True)
    if outcome.status == "refused":
        named = f"--name {shlex.quote(name)} " if name else ""
        text = f'To promote it anyway: yolact promote {named}--version {outcome.version} --force --reason "..."'
        console.print(text, markup=False, soft_wrap=True)


def _print_history(found: History, console: Console) -> None:
    if found.decisions:
        table = Table("#", *(Column(title, overflow="fold") for title in HEADINGS))
        for decision in found.decisions:
            table.add_row(*map(escape, _row(decision)))
        console.print(table)
    else:
        console.print(f"{found.name}: nothing was promoted yet")
    console.print(f"champion of {found.name}: {found.champion or 'none'}", soft_wrap=True)
    if found.missing:
        console.print(
            f"missing: decision {', '.join(map(str, found.missing))}. Decisions are deleted with the version that "
            "they made champion.",
            soft_wrap=True,
        )
    for decision in found.unsettled:
        console.print(
            f"decision {decision.number} ({decision.action} of version {decision.version}) is running, or its "
            "process died; the next promotion or rollback settles it",
            soft_wrap=True,
        )
    if found.moved_by_hand:
        decided = found.decided_champion
        console.print(
            f"the alias was moved without this program: according to the decisions the champion is {decided or 'none'}",
            soft_wrap=True,
        )


def _row(decision: Decision) -> list[str]:
    what = f"forced {decision.action}" if decision.forced else decision.action
    if decision.state != "done":
        what += f" ({decision.state})"
    gain = decision.metrics.get("gain")
    shown = f"{gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})" if gain else "-"
    return [
        str(decision.number),
        decision.time[:19].replace("T", " "),
        what,
        f"{decision.previous or 'none'} -> {decision.version}",
        shown,
        decision.who,
        decision.reason or "",
    ]
