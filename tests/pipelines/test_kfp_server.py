"""The fake server's validation finds invalid requests: otherwise tests against it would prove nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import SHARED
from tests.pipelines.kfp_server import API, Definition, check_known

FILE = SHARED / "kfp" / "kfp-api-v2beta1-2.17.0.swagger.json"

RUN = {
    "display_name": "r",
    "experiment_id": "e",
    "runtime_config": {"parameters": {"anything": [1, {"x": None}]}},
    "pipeline_version_reference": {"pipeline_id": "p", "pipeline_version_id": "v"},
}
RECURRING = {
    **RUN,
    "max_concurrency": "1",
    "mode": "ENABLE",
    "trigger": {"cron_schedule": {"cron": "0 0 3 * * *", "start_time": "2027-01-31T00:00:00+00:00"}},
}
FILTER = json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": "x"}]})


@pytest.fixture(scope="module")
def definition() -> Definition:
    if not FILE.is_file():
        pytest.skip("the API's definition is not here: no folder ../shared/kfp next to the checkout")
    return Definition(FILE)


@pytest.mark.parametrize(
    ("method", "path", "query", "body"),
    [
        ("GET", "/healthz", {}, None),
        ("GET", "/pipelines/names/training", {"namespace": ["team"]}, None),
        ("GET", "/runs", {"filter": [FILTER], "page_size": ["10"], "sort_by": ["created_at desc"]}, None),
        ("POST", "/runs", {}, RUN),
        ("POST", "/recurringruns", {}, RECURRING),
        ("POST", "/recurringruns/an-id:disable", {}, None),
        ("POST", "/pipelines/upload_version", {"name": ["a"], "pipelineid": ["b"]}, ["uploadfile"]),
    ],
)
def test_right_requests_pass(definition: Definition, method: str, path: str, query: Any, body: Any) -> None:
    assert list(definition.check_request(method, API + path, query, body)) == []


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "problem"),
    [
        ("GET", "/jobs", {}, None, "no such operation"),
        ("PUT", "/runs", {}, RUN, "no such operation"),
        ("GET", "/runs/an-id:stop", {}, None, "no such operation"),
        ("GET", "/healthz", {}, {"a": 1}, "takes no body"),
        ("GET", "/runs", {"page": ["1"]}, None, "unknown query parameter page"),
        ("GET", "/runs", {"page_size": ["ten"]}, None, "no integer"),
        ("GET", "/runs", {"page_size": ["1", "2"]}, None, "2 times"),
        ("GET", "/runs", {"sort_by": ["created_at down"]}, None, "sort_by"),
        ("GET", "/runs", {"filter": [FILTER.replace("EQUALS", "IS")]}, None, "'IS' is none of"),
        (
            "GET",
            "/runs",
            {"filter": [FILTER.replace("string_value", "stringvalue")]},
            None,
            "unknown field stringvalue",
        ),
        ("POST", "/runs", {}, None, "None is no object"),
        ("POST", "/runs", {}, {**RUN, "name": "r"}, "unknown field name"),
        ("POST", "/runs", {}, {**RUN, "display_name": 3}, "3 is no string"),
        ("POST", "/runs", {}, {**RUN, "run_id": "x"}, "field run_id is the server's to give"),
        ("POST", "/runs", {}, {**RUN, "runtime_config": {"params": {}}}, "unknown field params"),
        ("POST", "/recurringruns", {}, {**RECURRING, "max_concurrency": 1}, "1 is no string"),
        ("POST", "/recurringruns", {}, {**RECURRING, "max_concurrency": "one"}, "no int64"),
        ("POST", "/recurringruns", {}, {**RECURRING, "mode": "ON"}, "'ON' is none of"),
        ("POST", "/recurringruns", {}, {**RECURRING, "no_catchup": "true"}, "'true' is no boolean"),
        (
            *("POST", "/recurringruns", {}),
            {**RECURRING, "trigger": {"cron_schedule": {"start_time": "2027-01-31T00:00:00"}}},
            "has no time zone",
        ),
        ("POST", "/pipelines/upload_version", {"pipeline_id": ["b"]}, ["uploadfile"], "unknown query parameter"),
        ("POST", "/pipelines/upload_version", {}, ["file"], "form parts"),
    ],
)
def test_wrong_requests_are_found(
    definition: Definition, method: str, path: str, query: Any, body: Any, problem: str
) -> None:
    problems = list(definition.check_request(method, API + path, query, body))
    assert len(problems) == 1
    assert problem in problems[0]


def test_wrong_answers_are_found(definition: Definition) -> None:
    assert list(definition.check_answer("GET", f"{API}/recurringruns", {"recurringRuns": [RECURRING]})) == []
    assert len(list(definition.check_answer("GET", f"{API}/recurringruns", {"recurring_runs": []}))) == 1


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "count"),
    [
        ("GET", "/runs", {"filter": [FILTER]}, None, 0),
        ("POST", "/runs", {}, RUN, 0),
        ("POST", "/runs", {}, {**RUN, "name": "r"}, 1),
        ("GET", "/runs", {"page": ["1"]}, None, 1),
        ("POST", "/recurringruns/an-id:disable", {}, None, 1),
    ],
)
def test_without_the_definition_unknown_requests_are_found(
    method: str, path: str, query: Any, body: Any, count: int
) -> None:
    assert len(list(check_known(method, API + path, query, body))) == count
