"""Promotion, refusal and rollback in a real MLflow store, with versions made without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow import environment_variables as variables
from mlflow.exceptions import RestException
from typer.testing import CliRunner

from components.promote import evidence, step
from components.promote.promotion import Outcome, RefusedError, Request, promote, rollback
from tests.components.registry_versions import add_version
from tests.servers.model_registry import small_model_registry
from yolact.errors import DataError
from yolact_cli.main import app
from yolact_ops.registry import lock
from yolact_ops.registry.history import History, read_history
from yolact_ops.registry.model_registry import ModelRegistryError
from yolact_ops.registry.versions import CHAMPION, RegisteredModel, RegistryError
from yolact_ops.settings.params import Params, parse_params
from yolact_ops.tracking.evaluations import hash_ground_truth
from yolact_ops.tracking.store import TrackingError


@pytest.fixture(scope="module")
def params(repository: Path) -> Params:
    """The defaults with few bootstrap samples."""
    tree = yaml.safe_load((repository / "conf" / "base.yaml").read_text())
    tree["promote"] |= {"samples": 200}
    return parse_params(tree)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> MlflowClient:
    """A client of a new store in the working folder."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, "mlflow.db")
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


def with_gate(params: Params, **changes: Any) -> Params:
    return params.model_copy(update={"promote": params.promote.model_copy(update=changes)})


def ask(params: Params, version: int | None = None, **options: Any) -> Outcome:
    return promote(params, Request(version=version, **options), eval_data_dir=Path("data/processed/eval"))


def history_of(client: MlflowClient) -> History:
    return read_history(RegisteredModel.open(client, "yolact"))


def champion(client: MlflowClient) -> int | None:
    return RegisteredModel.open(client, "yolact").alias(CHAMPION)


def registry_state(client: MlflowClient) -> Any:
    """The whole content of the registry."""
    models = client.search_registered_models()
    return (
        [(model.name, dict(model.aliases), dict(model.tags)) for model in models],
        {number: dict(version.tags) for number, version in RegisteredModel.open(client, "yolact").versions().items()},
    )


def test_a_first_champion_must_reach_the_minimum(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 20, "dog": 20})
    refused = ask(with_gate(params, min_first=0.9))
    assert refused.status == "refused"
    assert champion(client) is None
    (rule,) = refused.assessment.refusals
    assert (rule.name, rule.limit) == ("promote.min_first", 0.9)
    assert rule.value == pytest.approx(0.5, abs=0.02)  # half of the objects: recall 0.5 at precision 1
    assert rule.shortfall == pytest.approx(0.9 - rule.value)

    outcome = ask(params)
    assert (outcome.status, outcome.version, outcome.previous) == ("promoted", 1, None)
    assert champion(client) == 1
    (decision,) = history_of(client).decisions
    assert (decision.action, decision.state, decision.version, decision.previous) == ("promote", "done", 1, None)
    assert decision.metrics["candidate"] == rule.value
    assert decision.who
    assert decision.host


def test_a_better_candidate_is_promoted_with_its_gain_and_interval(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 20, "dog": 20})
    ask(params)
    add_version(client, {"cat": 32, "dog": 32})
    outcome = ask(params)
    assert (outcome.status, outcome.version, outcome.previous) == ("promoted", 2, 1)
    assert champion(client) == 2
    metrics = history_of(client).decisions[-1].metrics
    assert metrics["gain"]["value"] == pytest.approx(metrics["candidate"] - metrics["champion"])
    assert 0 < metrics["gain"]["low"] < metrics["gain"]["value"] < metrics["gain"]["high"]
    assert metrics["images"] == 40
    assert outcome.to_json()["metrics"]["per_class"]["cat"][2] == 40
    json.dumps(outcome.to_json(), allow_nan=False)


def test_a_refusal_names_each_rule_with_value_limit_and_shortfall_and_changes_nothing(
    client: MlflowClient, params: Params
) -> None:
    add_version(client, {"cat": 20, "dog": 30})
    ask(params)
    add_version(client, {"cat": 26, "dog": 20})
    before = registry_state(client)
    outcome = ask(params)
    assert outcome.status == "refused"
    assert registry_state(client) == before
    refusals = {rule.name: rule for rule in outcome.assessment.refusals}
    assert set(refusals) == {"promote.min_gain", "promote.max_doubt", "promote.max_class_loss"}
    loss = refusals["promote.max_class_loss"]
    assert "dog (40 objects) loses" in loss.text
    assert loss.value == pytest.approx(0.25, abs=0.02)  # 10 of 40 objects
    assert loss.shortfall == pytest.approx(loss.value - params.promote.max_class_loss)
    gain = refusals["promote.min_gain"]
    assert gain.shortfall == pytest.approx(-gain.value)
    assert "-0.0" in gain.text


def test_force_needs_a_reason_which_is_recorded(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 20})
    ask(params)
    add_version(client, {"cat": 4})
    with pytest.raises(RegistryError, match="--reason"):
        ask(params, force=True)
    assert champion(client) == 1
    outcome = ask(params, force=True, reason="the old one leaks")
    assert outcome.status == "promoted"
    assert champion(client) == 2
    decision = history_of(client).decisions[-1]
    assert (decision.forced, decision.reason) == (True, "the old one leaks")
    assert [rule["name"] for rule in decision.gate if not rule["passed"]]


def test_force_without_a_refusal_is_not_a_forced_decision(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 20})
    assert not ask(params, force=True, reason="to be sure").decision.forced


def test_a_dry_run_changes_nothing(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 20})
    before = registry_state(client)
    outcome = ask(params, dry_run=True)
    assert (outcome.status, outcome.decision) == ("possible", None)
    assert registry_state(client) == before


def test_the_champion_is_not_promoted_again(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 20})
    ask(params)
    before = registry_state(client)
    assert ask(params).status == "unchanged"
    assert registry_state(client) == before


def test_a_version_without_the_alias_can_be_promoted_by_number(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 20})
    add_version(client, {"cat": 30})
    assert ask(params, version=1).version == 1
    assert champion(client) == 1
    with pytest.raises(RegistryError, match="no version 7; it has: 1, 2"):
        ask(params, version=7)


def test_classes_that_the_candidate_does_not_know_are_a_refusal(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 20, "dog": 20})
    ask(params)
    # Classes are matched by name; the champion's evaluation on the candidate's data is invented here.
    add_version(client, {"cat": 30})
    evaluated = add_version(client, {"cat": 10}, name="helper")
    run = client.get_model_version("helper", str(evaluated)).run_id
    tags = RegisteredModel.open(client, "yolact").version(1).tags
    tree, _ = evidence.read_evaluation(client, run)
    for tag, value in (
        (evidence.MODEL_TAG, tags["model_digest"]),
        (evidence.DETECTION_TAG, tags["detect_hash"]),
        (evidence.GROUND_TRUTH_TAG, hash_ground_truth(tree)),
    ):
        client.set_tag(run, tag, value)
    outcome = ask(params)
    (rule,) = outcome.assessment.refusals
    assert (rule.name, rule.value) == ("classes", 1)
    assert rule.text.endswith("dog")
    assert any(run in note for note in outcome.assessment.notes)


def test_a_champion_of_other_data_is_not_compared_without_the_candidates_data(
    client: MlflowClient, params: Params
) -> None:
    add_version(client, {"cat": 20})
    ask(params)
    add_version(client, {"cat": 30}, shift=2, data_digest="data-2")
    with pytest.raises(
        RegistryError, match=r"version 1 must be evaluated again: .*stats\.json: no such file.*dvc pull"
    ):
        ask(params)
    Path("data/processed/eval").mkdir(parents=True)
    Path("data/processed/eval/stats.json").write_text(json.dumps({"digest": "data-3"}))
    with pytest.raises(RegistryError, match=r"digest data-2, but data/processed/eval has data-3"):
        ask(params)
    assert champion(client) == 1
    outcome = ask(params, force=True, reason="urgent")
    assert outcome.status == "promoted"
    assert "nothing could be compared" in history_of(client).decisions[-1].gate[0]["text"]


def test_a_ground_truth_with_other_ids_is_the_same(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 20, "dog": 20})
    ask(params)
    add_version(client, {"cat": 32, "dog": 32}, first=500)
    outcome = ask(params)
    assert outcome.status == "promoted"
    metrics = outcome.assessment.metrics
    assert (metrics["champion"], metrics["candidate"]) == pytest.approx((0.5, 0.8), abs=0.02)
    assert outcome.assessment.notes == []


def test_detections_that_do_not_give_the_versions_metrics_are_not_used(client: MlflowClient, params: Params) -> None:
    number = add_version(client, {"cat": 20})
    client.set_model_version_tag("yolact", str(number), "mask_AP", "0.75")  # as if its run was evaluated again
    with pytest.raises(RegistryError, match="version 1 must be evaluated again"):
        ask(params)


def test_rollback_goes_back_one_champion_each_time(client: MlflowClient, params: Params) -> None:
    for found in (10, 20, 30):
        add_version(client, {"cat": found})
        ask(params)
    assert rollback(params, reason="3 is slow").version == 2
    assert champion(client) == 2
    assert rollback(params).version == 1
    with pytest.raises(RegistryError, match="version 1 is the first champion"):
        rollback(params)
    assert champion(client) == 1
    decisions = history_of(client).decisions
    assert [(d.action, d.previous, d.version) for d in decisions] == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("promote", 2, 3),
        ("rollback", 3, 2),
        ("rollback", 2, 1),
    ]
    assert decisions[3].reason == "3 is slow"
    assert [d.number for d in decisions] == [1, 2, 3, 4, 5]


def test_after_a_rollback_and_a_promotion_a_rollback_returns_to_the_previous_champion(
    client: MlflowClient, params: Params
) -> None:
    for found in (10, 20, 30):
        add_version(client, {"cat": found})
        ask(params)
    rollback(params, to=1)
    add_version(client, {"cat": 15})
    assert ask(params).version == 4
    assert rollback(params).version == 1
    assert rollback(params, to=3).version == 3
    assert rollback(params).version == 1
    with pytest.raises(RegistryError, match=r"version 9 was never champion of yolact \(1, 2, 3, 4\)"):
        rollback(params, to=9)


def test_only_force_promotes_a_version_that_was_rolled_back(client: MlflowClient, params: Params) -> None:
    for found in (10, 20):
        add_version(client, {"cat": found})
        ask(params)
    rollback(params, reason="it stumbles")
    outcome = ask(params)
    (rule,) = outcome.assessment.refusals
    assert rule.name == "rollback"
    assert ": it stumbles; only --force" in rule.text
    assert champion(client) == 1
    assert ask(params, force=True, reason="it was the camera").status == "promoted"
    add_version(client, {"cat": 30})
    assert ask(params).version == 3
    assert rollback(params, to=1).previous == 3
    assert ask(params, version=2).assessment.rules[0].name != "rollback"  # superseded, not rolled back


def test_rollback_without_any_champion_says_so(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 10})
    with pytest.raises(RegistryError, match="has no champion"):
        rollback(params)


def test_a_deleted_champion_is_skipped(client: MlflowClient, params: Params) -> None:
    for found in (10, 20, 30):
        add_version(client, {"cat": found})
        ask(params)
    client.delete_model_version("yolact", "2")
    assert rollback(params).version == 1


def test_after_the_champion_was_deleted_a_rollback_returns_to_the_previous_one(
    client: MlflowClient, params: Params
) -> None:
    for found in (10, 20, 30):
        add_version(client, {"cat": found})
        ask(params)
    client.delete_model_version("yolact", "3")
    assert champion(client) is None
    assert rollback(params).version == 2
    assert rollback(params).version == 1


def test_deleting_a_version_deletes_its_decisions_but_their_numbers_are_not_reused(
    client: MlflowClient, params: Params
) -> None:
    for found in (10, 20):
        add_version(client, {"cat": found})
        ask(params)
    assert history_of(client).missing == []
    client.delete_model_version("yolact", "2")
    assert rollback(params).version == 1
    history = history_of(client)
    assert [(decision.number, decision.action) for decision in history.decisions] == [(1, "promote"), (3, "rollback")]
    assert history.missing == [2]
    assert (
        "missing: decision 2. Decisions are deleted with the version"
        in CliRunner().invoke(app, ["history", "--name", "yolact"]).output
    )


def test_an_alias_that_was_moved_by_hand_is_noticed_and_can_be_rolled_back(
    client: MlflowClient, params: Params
) -> None:
    add_version(client, {"cat": 10})
    ask(params)
    add_version(client, {"cat": 5})
    client.set_registered_model_alias("yolact", "champion", "2")
    history = history_of(client)
    assert (history.moved_by_hand, history.champion, history.decided_champion) == (True, 2, 1)
    assert rollback(params).version == 1
    assert not history_of(client).moved_by_hand


def test_a_missing_model_and_a_missing_candidate_are_reported(client: MlflowClient, params: Params) -> None:
    with pytest.raises(RegistryError, match="has no model 'yolact'"):
        ask(params)
    add_version(client, {"cat": 10})
    client.delete_registered_model_alias("yolact", "candidate")
    with pytest.raises(RegistryError, match="no version of yolact has the alias candidate"):
        ask(params)


def test_a_name_taken_by_another_model_is_refused(client: MlflowClient, params: Params) -> None:
    client.create_registered_model("yolact")
    client.create_model_version("yolact", "s3://elsewhere/forecast")
    for attempt in (
        lambda: ask(params),
        lambda: rollback(params),
        lambda: RegisteredModel.open_or_create(client, "yolact"),
    ):
        with pytest.raises(RegistryError, match="taken by another model: its version 1 was not registered by this"):
            attempt()


def test_a_name_taken_by_a_prompt_is_refused(client: MlflowClient) -> None:
    client.register_prompt("yolact", "Say {{this}}")
    with pytest.raises(RegistryError, match="taken by a prompt"):
        RegisteredModel.open_or_create(client, "yolact")


def test_a_version_that_was_made_by_hand_is_refused(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 10})
    client.create_model_version("yolact", "s3://elsewhere/weights")
    with pytest.raises(RegistryError, match="version 2 has no tag model_digest: it was not registered"):
        ask(params, version=2)


# The lock


def test_if_the_lock_is_lost_after_the_alias_moved_the_next_promotion_settles_the_decision(
    client: MlflowClient, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(client, {"cat": 10})
    move = RegisteredModel.set_alias

    def moved_too_slowly(model: RegisteredModel, alias: str, version: int) -> None:
        move(model, alias, version)
        client.delete_registered_model("yolact.promotion-lock")  # as another process would break it

    with monkeypatch.context() as patch:
        patch.setattr(RegisteredModel, "set_alias", moved_too_slowly)
        with pytest.raises(lock.LockedError, match=r"was lost: .*yolact history"):
            ask(params)
    assert [decision.state for decision in history_of(client).decisions] == ["intended"]
    assert champion(client) == 1
    add_version(client, {"cat": 20})
    assert ask(params).previous == 1
    assert [decision.state for decision in history_of(client).decisions] == ["done", "done"]


def test_a_registry_that_forbids_breaking_an_expired_lock_is_reported_at_once(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock._create(client, "yolact.promotion-lock", "token", "Ada", -1)
    tries: list[str] = []

    def forbidden(name: str, _: str) -> None:
        tries.append(name)
        if len(tries) > 1:
            pytest.fail("asked again")
        raise RestException({"error_code": "PERMISSION_DENIED", "message": "not yours"})

    monkeypatch.setattr(client, "rename_registered_model", forbidden)
    with (
        pytest.raises(TrackingError, match=r"could not break yolact\.promotion-lock at .*: .*not yours"),
        lock.hold(client, "yolact", "Bob", patience=60),
    ):
        pytest.fail("two hold the lock")


def test_a_hidden_model_with_the_name_of_the_lock_is_not_waited_for_forever(client: MlflowClient) -> None:
    client.register_prompt("yolact.promotion-lock", "Say {{this}}")
    with (
        pytest.raises(lock.LockedError, match=r"could not get the lock .*: .* a prompt has that name"),
        lock.hold(client, "yolact", "Bob", patience=0.3),
    ):
        pytest.fail("there is no lock to hold")


def test_a_process_that_saw_an_expired_lock_long_ago_cannot_rename_the_current_one(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock._create(client, "yolact.promotion-lock", "dead", "Ada", -1)
    seen = client.get_registered_model("yolact.promotion-lock")
    with lock.hold(client, "yolact", "Bob", patience=0) as held:
        with monkeypatch.context() as patch:
            patch.setattr(client, "delete_registered_model", lambda _: pytest.fail("a lock is deleted"))
            find = lock._find
            patch.setattr(lock, "_find", lambda *a: pytest.fail("a lock was renamed") if "broken" in a[1] else find(*a))
            assert not lock._break(client, seen)
        held.check()
    assert client.search_registered_models() == []


def test_a_broken_lock_whose_breaker_died_is_deleted(client: MlflowClient) -> None:
    lock._create(client, "yolact.promotion-lock", "dead", "Ada", -1)
    assert lock._break(client, client.get_registered_model("yolact.promotion-lock"))
    client.create_registered_model("yolactXpromotion-lock.broken-pipe")  # not a lock's name
    with lock.hold(client, "yolact", "Bob"):
        pass
    assert [model.name for model in client.search_registered_models()] == ["yolactXpromotion-lock.broken-pipe"]


def test_requests_under_the_lock_end_before_it_expires(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    retries, timeout = variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES, variables.MLFLOW_HTTP_REQUEST_TIMEOUT
    default = retries.get()
    with lock.hold(client, "yolact", "Bob"):
        pauses = sum(variables.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get() * 2**k for k in range(retries.get() + 1))
        longest = (1 + retries.get()) * timeout.get() + pauses
        assert longest < lock.LIFETIME * (1 - lock.MARGIN)
    assert (retries.get(), timeout.get()) == (default, 600)


# As a step of a pipeline


def run_step(params: Params, version: int, alias: str | None) -> tuple[dict[str, Any], str]:
    Path("reports").mkdir(exist_ok=True)
    registration = {"name": "yolact", "version": version, "alias": alias, "min_mask_ap50": 0.5}
    Path("reports/registration.json").write_text(json.dumps(registration))
    paths = {"report_path": Path("reports/promotion.json"), "page_path": Path("reports/promotion.md")}
    try:
        step.run(
            params,
            registration_path=Path("reports/registration.json"),
            eval_data_dir=Path("data/processed/eval"),
            **paths,
        )
    finally:
        written = [path.read_text() for path in paths.values()]
    return json.loads(written[0]), written[1]


def test_the_step_promotes_what_was_registered_and_writes_its_reports(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 10, "dog": 20})
    tree, page = run_step(params, 1, "candidate")
    assert (tree["status"], tree["previous_champion"]) == ("promoted", None)
    add_version(client, {"cat": 11, "dog": 30})
    tree, page = run_step(params, 2, "candidate")
    assert (tree["status"], tree["previous_champion"], champion(client)) == ("promoted", 1, 2)
    assert page.startswith("# yolact: version 2 is the champion now (champion was: version 1)")
    assert page.index("| cat | 40 |") < page.index("| dog | 40 |")  # the smaller gain first
    assert run_step(params, 2, "candidate")[0]["status"] == "unchanged"


def test_a_refusal_fails_the_step_only_if_set(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 20})
    run_step(params, 1, "candidate")
    add_version(client, {"cat": 10})
    tree, page = run_step(params, 2, "candidate")
    assert tree["status"] == "refused"
    assert "REFUSED | `promote.min_gain`" in page
    with pytest.raises(RefusedError, match="refused yolact version 2") as raised:
        run_step(with_gate(params, fail_on_refusal=True), 2, "candidate")
    assert raised.value.exit_code == 3
    assert champion(client) == 1


def test_the_step_refuses_what_did_not_reach_the_floor(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 30})
    tree, _ = run_step(params, 1, None)
    assert tree["status"] == "refused"
    assert tree["rules"][0]["name"] == "register.min_mask_ap50"
    assert champion(client) is None


def test_the_step_writes_its_reports_before_a_copy_that_fails(client: MlflowClient, params: Params) -> None:
    add_version(client, {"cat": 30})
    with small_model_registry() as registry:
        copied = params.register_.model_copy(update={"model_registry": registry.address})
        with pytest.raises(ModelRegistryError, match="where KServe cannot fetch them"):  # files of a local store
            run_step(params.model_copy(update={"register_": copied}), 1, "candidate")
        assert registry.entries == []
    assert json.loads(Path("reports/promotion.json").read_text())["status"] == "promoted"
    assert champion(client) == 1


def test_the_step_names_a_missing_registration(client: MlflowClient, params: Params, tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("eval_data_dir", "report_path", "page_path")}
    with pytest.raises(DataError, match=r"no\.json: no such file\. Run the register step first"):
        step.run(params, registration_path=tmp_path / "no.json", **paths)
