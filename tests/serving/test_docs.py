"""`docs/serving.md` names all settings, routes and metrics, with their true defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests

from serving.metrics import Metrics
from serving.settings import PREFIX, ServerSettings


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "serving.md").read_text(encoding="utf-8")


def test_every_setting_is_listed_with_its_default(page: str) -> None:
    listed: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`YOLACT_SERVE_[^|]*) \| ([^|]*) \|", page, flags=re.MULTILINE):
        fields = [name.removeprefix(PREFIX).strip("_").lower() for name in re.findall(r"`(\w+)`", names)]
        values = [value.strip("` ") for value in defaults.split(", ")]
        listed |= dict(zip(fields, values * (len(fields) // len(values)), strict=True))
    assert listed.keys() == ServerSettings.model_fields.keys()
    for name, field in ServerSettings.model_fields.items():
        if field.default is not None:
            assert listed[name] == str(field.default), name


def test_parameters_are_listed_with_the_predictions_that_take_them(page: str, url: str) -> None:
    rows = re.findall(r"^\| (`[^|]*) \| (yes|no) \| (yes|no) \|", page, flags=re.MULTILINE)
    paths = requests.get(f"{url}/openapi.json", timeout=10).json()["paths"]
    for column, path in ((1, "/predict"), (2, "/predict/overlay")):
        listed = {name for row in rows if row[column] == "yes" for name in re.findall(r"`(\w+)`", row[0])}
        assert listed == {each["name"] for each in paths[path]["post"]["parameters"] if each["in"] == "query"}


def test_every_route_and_metric_is_named(page: str, url: str) -> None:
    for path in requests.get(f"{url}/openapi.json", timeout=10).json()["paths"]:
        assert path.replace("{name}", "NAME") in page, path
    metrics = {metric.name for metric in Metrics().registry.collect() if metric.name.startswith("yolact_")}
    assert [name for name in metrics if name not in page] == []
