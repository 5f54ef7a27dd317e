"""Settings in the form that `dvc exp run -S` takes: DVC itself reads them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides, to_hydra_overrides
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_ops.settings.overrides import hydra_override
from yolact_ops.settings.yaml_text import plain, read_yaml

TEXT = [
    *("path/to/folder", "my set", "it's", 'a"b', "a\\b", "a\\", 'a\\"b', '\\\\"', '"', "a,b", "a#b", "[x]", "{a: b}"),
    *(
        "1e3",
        "12",
        ".5",
        "0x1f",
        "1_000",
        "null",
        "TRUE",
        "on",
        ".nan",
        "~x",
        "a=b",
        "a:b",
        "ünï",
        "日本",
        "*",
        "choice(1)",
    ),
    *("$HOME", "`ls`", "a;b", "-x", "./sample", "  a ", "}{", "2024-01-01"),
]

VALUES: list[Any] = [
    *(None, True, 3, 0.5, 1e-05),
    *(["M4 bolt", "nut, small"], {"dog": "pet", "cat": "my pet"}, {"train": ["a.json", "b*.json"], "val": ["c.json"]}),
]


def as_dvc_sets_it(override: str, folder: Path) -> Any:
    assert not any(found.is_sweep_override() for found in to_hydra_overrides([override]))
    file = folder / "params.yaml"
    file.write_text("data:\n  key: null\n", encoding="utf-8")
    apply_overrides(file, [override])
    return plain(read_yaml(file))["data"]["key"]


@pytest.mark.parametrize("value", [*TEXT, *VALUES])
def test_dvc_takes_it_as_the_value(value: Any, tmp_path: Path) -> None:
    override = hydra_override("data.key", value)
    assert override is not None
    assert as_dvc_sets_it(override, tmp_path) == value


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab1 .,:;=#~*?\\'\"()[]{}$|&<>!%@-_/"), min_size=1, max_size=12))
def test_dvc_takes_any_text_or_there_is_no_form(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    override = hydra_override("data.key", [text])
    if override is None:
        assert "${" in text
    else:
        assert as_dvc_sets_it(override, tmp_path_factory.getbasetemp()) == [text]


@pytest.mark.parametrize("value", ["a${b}", "a\nb", "\x1b[31m", "\udcfc", {"two words:": "b"}, ["a", "b\t"]])
def test_what_has_no_form_is_none(value: Any) -> None:
    assert hydra_override("data.key", value) is None
