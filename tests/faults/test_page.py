"""docs/reliability.md names tests that exist, and all of this folder's; they have the marker `fault`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.page import functions_of, named_tests

HERE = Path(__file__)


def test_the_page_names_only_tests_that_exist(repository: Path) -> None:
    named = named_tests()
    assert len(named) > 100
    assert [f"{file}::{name}" for file, name in sorted(named) if name not in functions_of(repository / file)] == []


def test_the_page_names_every_test_of_a_fault_that_is_in_this_folder(repository: Path) -> None:
    files = [file for file in HERE.parent.glob("test_*.py") if file != HERE]
    here = {(file.relative_to(repository).as_posix(), name) for file in files for name in functions_of(file)}
    assert here - named_tests() == set()


def test_a_test_that_the_page_names_has_the_marker_and_others_have_not(request: pytest.FixtureRequest) -> None:
    """`make test-faults` runs what has it; those that are collected together with this test stand for all."""
    named = named_tests()
    for item in request.session.items:
        name = item.nodeid.partition("[")[0].partition("::")
        assert (item.get_closest_marker("fault") is not None) == ((name[0], name[2]) in named), item.nodeid
