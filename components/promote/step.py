"""The promote step: make the version that was just registered the champion if the gate allows it.

The last step of the training pipeline; not part of ``dvc repro``, where a person decides (`yolact promote`).
Reads ``reports/registration.json`` and the registry, and ``data/processed/eval/`` if a version must be evaluated again;
writes ``reports/promotion.json`` and ``reports/promotion.md``. A refusal is a result, not a failure, unless
``promote.fail_on_refusal`` says otherwise: then the step ends with exit code 3, reports written. A new champion that
``promote.service`` does not take up is a failure, with exit code 4 and the reports.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from components.promote.gate import Rule
from components.promote.promotion import NOT_SERVED, Assessment, Outcome, RefusedError, Request, promote
from components.promote.report import headline, to_markdown
from components.promote.rollout import NotServedError
from yolact.data.processed import EVAL, PROCESSED
from yolact.errors import DataError
from yolact.files import write_json_atomic, write_text_atomic
from yolact_ops.commands.step import run_command
from yolact_ops.registry.publication import publish
from yolact_ops.registry.versions import CANDIDATE, CHAMPION, RegisteredModel
from yolact_ops.settings.params import Params
from yolact_ops.tracking.store import connect

log = logging.getLogger(__name__)


def run(params: Params, *, registration_path: Path, eval_data_dir: Path, report_path: Path, page_path: Path) -> Outcome:
    """Promote the version that register names.

    Args:
        params: ``promote`` is the gate.
        registration_path: what register wrote.
        eval_data_dir: what preprocess wrote for evaluation.
        report_path: gets the outcome as JSON: ``status`` (``promoted``, ``refused``, ``unchanged`` or
            ``not_served``), rules, metrics, what the service said.
        page_path: gets the same as human-readable Markdown.

    Returns:
        What was decided.

    Raises:
        DataError: ``registration_path`` is missing or damaged.
        RegistryError: the versions cannot be compared, or another process is promoting.
        TrackingError: the store fails.
        RefusedError: the gate refused and ``promote.fail_on_refusal`` is set; the reports are written.
        ServiceError: the service refuses, or serves something else; nothing was changed. `ServiceUnavailableError` if
            it does not answer.
        ModelRegistryError: the decision stands, but could not be copied to ``register.model_registry``; the reports are
            written.
        NotServedError: the service does not take up the version, or did not earlier; the reports are written.
    """
    name, version, alias, floor = _read(registration_path)
    if alias == CANDIDATE:
        outcome = promote(params, Request(version=version, name=name), eval_data_dir=eval_data_dir)
    else:
        outcome = _below_floor(name, version, floor)
    write_json_atomic(report_path, outcome.to_json())
    write_text_atomic(page_path, to_markdown(outcome))
    log.info("%s version %d: %s", name, version, outcome.status)
    for rule in outcome.assessment.refusals if outcome.assessment else []:
        log.warning("%s: %s", rule.name, rule.text)
    publish(params.register_, name)
    if outcome.status == "refused" and params.promote.fail_on_refusal:
        raise RefusedError(f"the gate refused {name} version {version}; see {page_path}")
    if outcome.status == "not_served" and outcome.rollout is not None:
        raise NotServedError(f"{headline(outcome)}. {outcome.rollout.service} {outcome.rollout.problem}")
    for rule in outcome.assessment.refusals if outcome.assessment else []:
        if rule.name == NOT_SERVED:  # the task is tried again, and must not end well now
            raise NotServedError(f"{headline(outcome)}. {rule.text}")
    return outcome


def _read(path: Path) -> tuple[str, int, str | None, float]:
    """Name, version, alias and floor from what register wrote."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return str(tree["name"]), int(tree["version"]), tree["alias"], float(tree["min_mask_ap50"])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Run the register step first: dvc repro register") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not what register writes ({error!r}). Run the register step again.") from error


def _below_floor(name: str, version: int, floor: float) -> Outcome:
    """The outcome for a version that is not a candidate, without a comparison."""
    text = f"the version did not reach the floor of {floor:g} and is not a candidate"
    rule = Rule("register.min_mask_ap50", False, None, floor, None, text)
    champion = RegisteredModel.open(connect(), name).alias(CHAMPION)
    return Outcome("refused", name, version, champion, Assessment([rule], {}, []))


if __name__ == "__main__":
    run_command(
        "promote",
        lambda params: run(
            params,
            registration_path=Path("reports/registration.json"),
            eval_data_dir=PROCESSED / EVAL,
            report_path=Path("reports/promotion.json"),
            page_path=Path("reports/promotion.md"),
        ),
    )
