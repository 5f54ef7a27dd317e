"""Promote a version to champion, or roll back to an earlier one.

1. Compare candidate and champion on the same images (`components.promote.evidence`) and let the gate decide
   (`components.promote.gate`). This may take minutes; nothing is locked and nothing in the registry changes.
2. A refusal ends here.
3. If `promote.service` names a service, it must answer (`components.promote.rollout`).
4. With exclusive access (`yolact_ops.registry.champion`) check that the champion is still the one that was compared; if
   not, start over. Then record the decision, which moves the alias.
5. Wait until the service answers with the new champion. If it does not, go back to the former one, recorded as a
   rollback.

A process killed at any moment leaves one champion, the old or the new, and the next promotion or rollback settles its
decision.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.promote.evidence import Evaluator, Evidence
from components.promote.gate import Latency, Rule, judge, judge_first, refused, split_metric
from components.promote.latency import measure_latency
from components.promote.rollout import Rollout, Service
from yolact.devices import computing_threads
from yolact.errors import YolactError
from yolact.evaluation.bootstrap import Comparison, compare_detections
from yolact_ops.registry.champion import exclusive
from yolact_ops.registry.history import Decision, History, champions, ever_champions, read_history, rolled_back
from yolact_ops.registry.packaged_model import PackagedModel, fetch_classes
from yolact_ops.registry.versions import CANDIDATE, CHAMPION, RegisteredModel, RegistryError
from yolact_ops.settings.params import Params, PromoteConfig
from yolact_ops.tracking.store import connect

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Most comparisons per promotion; each repeats because another process changed the champion meanwhile."""

NOT_SERVED = "promote.service"
"""Rule that refuses a version which was rolled back because the service did not take it up."""

Status = Literal["promoted", "refused", "unchanged", "possible", "not_served"]


class RefusedError(YolactError, RuntimeError):
    """The gate refused, and the settings say that the step then fails."""

    exit_code = 3


@dataclass(frozen=True)
class Assessment:
    """The gate's verdict on a version."""

    rules: list[Rule]
    metrics: dict[str, Any]
    """What was compared: data, metric, values, gain with its interval, latency, and values per class (which decisions
    leave out: their runs have them)."""
    notes: list[str]
    """Caveats for the reader."""

    @property
    def refusals(self) -> list[Rule]:
        """Rules that did not pass."""
        return refused(self.rules)


@dataclass(frozen=True)
class Outcome:
    """How a promotion ended."""

    status: Status
    """``possible``: a dry run found that it would be promoted; ``unchanged``: it is the champion already;
    ``not_served``: it was promoted, and the service did not take it up."""
    name: str
    version: int
    previous: int | None
    """The champion before."""
    assessment: Assessment | None = None
    """None if nothing was compared."""
    decision: Decision | None = None
    """None if nothing was decided."""
    rollout: Rollout | None = None
    """None if there is no service, or nothing new for it."""
    rollback: Decision | None = None
    """The way back from a version that is not served; None if there was none."""

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain values."""
        assessment, decision = self.assessment, self.decision
        return {
            "status": self.status,
            "name": self.name,
            "version": self.version,
            "model_uri": f"models:/{self.name}/{self.version}",
            "previous_champion": self.previous,
            "forced": decision is not None and decision.forced,
            "reason": None if decision is None else decision.reason,
            "decision": None if decision is None else decision.key,
            "service": None if self.rollout is None else vars(self.rollout),
            "rollback": None if self.rollback is None else self.rollback.key,
            "rules": [] if assessment is None else [rule.to_json() for rule in assessment.rules],
            "metrics": {} if assessment is None else assessment.metrics,
            "notes": [] if assessment is None else assessment.notes,
        }


@dataclass(frozen=True)
class Request:
    """What to promote, and how."""

    version: int | None = None
    """None: the candidate."""
    name: str | None = None
    """The registered model; None: ``register.model_name``."""
    force: bool = False
    """Promote even if the gate refuses or nothing can be compared."""
    reason: str | None = None
    """Recorded with the decision; required with ``force``."""
    dry_run: bool = False


def promote(params: Params, request: Request, *, eval_data_dir: Path) -> Outcome:
    """Make a version champion if the gate allows it, see the module docstring.

    Args:
        params: ``promote`` is the gate; ``register``, ``evaluate.batch_size`` and ``runtime`` are read too.
        request: what to promote, and how.
        eval_data_dir: what preprocess wrote for evaluation; read only if a version must be evaluated again.

    Raises:
        RegistryError: the registry has no such model, version or alias; the versions cannot be compared; another
            process holds the lock.
        ServiceError: the service refuses, or serves something else; nothing was changed. `ServiceUnavailableError` if
            it does not answer.
        TrackingError: the store fails.
    """
    if request.force and not request.reason:
        raise RegistryError("a forced promotion needs a reason, which is recorded: --force --reason '...'")
    model = RegisteredModel.open(connect(), request.name or params.register_.model_name)
    version = model.version(_wanted(model, request))
    number = int(version.version)
    evaluator = Evaluator(model, eval_data_dir, params.runtime, params.evaluate.batch_size)
    service = Service.from_settings(params.promote)
    for _ in range(ATTEMPTS):
        previous = model.alias(CHAMPION)
        if previous == number:
            outcome = Outcome("unchanged", model.name, number, previous)
            if service is None or request.dry_run:
                return outcome
            service.check(model.name)
            return _roll_out(service, model, outcome)  # the process that promoted it may have died before this
        assessment = _assess(params, evaluator, version, previous, request)
        outcome = Outcome("refused", model.name, number, previous, assessment)
        if assessment.refusals and not request.force:
            return outcome
        if request.dry_run:
            return replace(outcome, status="possible")
        if service is not None:
            service.check(model.name)
        decision = _carry_out(model, number, previous, assessment, request)
        if decision is not None:
            outcome = replace(outcome, status="promoted", decision=decision)
            return outcome if service is None else _roll_out(service, model, outcome)
        log.info("the champion of %s changed meanwhile: comparing version %d with the new one", model.name, number)
    raise RegistryError(f"the champion of {model.name} changed {ATTEMPTS} times meanwhile; run it again")


def rollback(params: Params, *, name: str | None = None, to: int | None = None, reason: str | None = None) -> Decision:
    """Make the previous champion the champion again, without measuring anything.

    Each repetition goes one champion further back. Deleted versions are skipped.

    Args:
        params: ``register.model_name`` is read.
        name: the registered model; None for that of ``params``.
        to: an earlier champion; None for the previous one.
        reason: recorded with the decision.

    Raises:
        RegistryError: there is no such champion to return to, or another process holds the lock.
        TrackingError: the store fails.
    """
    model = RegisteredModel.open(connect(), name or params.register_.model_name)
    with exclusive(model) as access:
        version = _earlier_champion(access.history) if to is None else _former_champion(access.history, to)
        return access.record("rollback", version, reason=reason)


def _wanted(model: RegisteredModel, request: Request) -> int:
    if request.version is not None:
        return request.version
    number = model.alias(CANDIDATE)
    if number is None:
        raise RegistryError(
            f"no version of {model.name} has the alias {CANDIDATE}: none reached register.min_mask_ap50. Name one with "
            "--version N (yolact runs lists them), or lower the floor in params.yaml and run: dvc repro register"
        )
    return number


def _carry_out(
    model: RegisteredModel, number: int, previous: int | None, assessment: Assessment, request: Request
) -> Decision | None:
    """Record the decision and move the alias; None if the champion is no longer ``previous``."""
    with exclusive(model) as access:
        if access.history.champion != previous:
            return None
        return access.record(
            "promote",
            number,
            forced=bool(assessment.refusals),
            reason=request.reason,
            metrics={key: value for key, value in assessment.metrics.items() if key != "per_class"},
            gate=[rule.to_json() for rule in assessment.rules],
        )


def _roll_out(service: Service, model: RegisteredModel, outcome: Outcome) -> Outcome:
    """Wait for the service; without success go back to the former champion."""
    rollout = service.wait(model.name, outcome.version)
    if rollout.problem is None:
        return replace(outcome, rollout=rollout)
    reason = f"not served: {rollout.service} {rollout.problem}"
    with exclusive(model) as access:
        earlier = _earlier_champions(access.history) if access.history.champion == outcome.version else []
        decision = access.record("rollback", earlier[-1], reason=reason, metrics=vars(rollout)) if earlier else None
    return replace(outcome, status="not_served", rollout=rollout, rollback=decision)


def _earlier_champions(history: History) -> list[int]:
    """The champions to go back to, the previous one last."""
    line = champions(history)
    if line and line[-1] == history.champion:  # it is not if the current champion was deleted
        del line[-1]
    return [version for version in line if version in history.versions]


def _earlier_champion(history: History) -> int:
    earlier = _earlier_champions(history)
    if earlier:
        return earlier[-1]
    if history.champion is None:
        raise RegistryError(
            f"{history.name} has no champion, and none of its versions was one. Promote a version first: yolact promote"
        )
    raise RegistryError(
        f"version {history.champion} is the first champion of {history.name} that still exists: there is no earlier one"
    )


def _former_champion(history: History, to: int) -> int:
    former = sorted(ever_champions(history) & set(history.versions))
    if to == history.champion:
        raise RegistryError(f"version {to} is the champion of {history.name}: there is nothing to roll back")
    if to not in former:
        were = ", ".join(map(str, former)) or "none"
        raise RegistryError(f"version {to} was never champion of {history.name} ({were}); use: yolact promote")
    return to


# Comparison


def _assess(
    params: Params, evaluator: Evaluator, version: ModelVersion, previous: int | None, request: Request
) -> Assessment:
    number = int(version.version)
    try:
        latency = _latency(params, evaluator.model.name, number)
        if previous is None:
            assessment = _assess_first(params.promote, evaluator, version, latency)
        else:
            champion = evaluator.model.version(previous)
            assessment = _assess_against(params.promote, evaluator, version, champion, latency)
        return replace(assessment, rules=[*_rolled_back(evaluator.model, number), *assessment.rules])
    except YolactError as error:
        if not request.force:
            raise
        text = f"nothing could be compared: {error}"
        return Assessment([Rule("comparison", False, None, None, None, text)], {}, [])


def _rolled_back(model: RegisteredModel, number: int) -> list[Rule]:
    """A scheduled pipeline must not promote a version that somebody rolled back."""
    decision = rolled_back(read_history(model), number)
    if decision is None:
        return []
    reason = f": {decision.reason}" if decision.reason else ""
    name = NOT_SERVED if "service" in decision.metrics else "rollback"
    text = f"the version was rolled back by {decision.who}, {decision.time}{reason}; only --force promotes it again"
    return [Rule(name, False, None, None, None, text)]


def _latency(params: Params, name: str, number: int) -> Latency | None:
    if not params.promote.max_latency_ms:
        return None
    with tempfile.TemporaryDirectory() as folder, computing_threads(params.runtime.threads):
        return measure_latency(PackagedModel.fetch(name, number, Path(folder)), params.runtime.device)


def _assess_first(
    config: PromoteConfig, evaluator: Evaluator, version: ModelVersion, latency: Latency | None
) -> Assessment:
    evidence = evaluator.of(version)
    kind, metric = split_metric(config.metric)
    value = evidence.measure(kind).metrics()[metric]
    metrics = _metrics(config, evidence, latency) | {"champion": None, "candidate": value, "gain": None}
    return Assessment(judge_first(config, value, latency), metrics, [])


def _assess_against(
    config: PromoteConfig,
    evaluator: Evaluator,
    version: ModelVersion,
    champion: ModelVersion,
    latency: Latency | None,
) -> Assessment:
    evidence = evaluator.of(version)
    other = evaluator.of(champion, on=evidence)
    kind, metric = split_metric(config.metric)
    comparison = compare_detections(
        evidence.ground_truth,
        other.rows,
        evidence.rows,
        iou_type=kind,
        samples=config.samples,
        confidence=config.confidence,
    )
    gain = comparison.metrics[metric]
    metrics = _metrics(config, evidence, latency) | {
        "champion": gain.a,
        "candidate": gain.b,
        "gain": None if gain.gain is None else vars(gain.gain),
        "confidence": config.confidence,
        "champion_evaluation_run": other.run_id,
        "per_class": _per_class(comparison),
    }
    lost = _lost_classes(evaluator.model.name, int(version.version), int(champion.version))
    return Assessment(judge(config, comparison, lost, latency), metrics, _notes(version, champion, other))


def _metrics(config: PromoteConfig, evidence: Evidence, latency: Latency | None) -> dict[str, Any]:
    return {
        "metric": config.metric,
        "images": len(evidence.ground_truth["images"]),
        "ground_truth": evidence.digest,
        "candidate_evaluation_run": evidence.run_id,
        "latency_ms": None if latency is None else latency.milliseconds,
        "latency_on": None if latency is None else latency.machine,
    }


def _per_class(comparison: Comparison) -> dict[str, list[float | int | None]]:
    """Champion's AP, candidate's AP and objects, by class."""
    return {label: [found.a, found.b, found.objects] for label, found in comparison.per_class.items()}


def _lost_classes(name: str, candidate: int, champion: int) -> Sequence[str]:
    with tempfile.TemporaryDirectory() as folder:
        known = fetch_classes(name, candidate, Path(folder) / "candidate")
        return [label for label in fetch_classes(name, champion, Path(folder) / "champion") if label not in known]


def _notes(version: ModelVersion, champion: ModelVersion, other: Evidence) -> list[str]:
    notes = []
    if other.run_id != champion.run_id:
        notes.append(
            f"the champion (version {champion.version}) was measured on other data, or its run has been evaluated "
            f"again since: its metrics come from run {other.run_id}"
        )
    if version.tags.get("data_digest") != champion.tags.get("data_digest"):
        notes.append(
            "the champion was trained on other data: if some of these images were among its training "
            "images, it looks better here than it is"
        )
    if version.tags.get("detect_hash") != champion.tags.get("detect_hash"):
        notes.append("the versions have different detection settings; each was measured with its own, as served")
    return notes
