"""Decisions as the tags stored in registries."""

from __future__ import annotations

import pytest

from yolact_ops.registry.history import Decision

KEY = "decision.000002-20261126T043103Z-0123abcd"
TAG = (
    '{"action": "promote", "figures": {"candidate": 0.5, "champion": 0.25}, "forced": false, "gate": [], '
    '"host": "a machine", "number": 2, "previous": 1, "reason": "it is better", "state": "done", '
    '"time": "2026-11-26T04:31:03+00:00", "version": 3, "who": "ada"}'
)
"""The form stored in registries: its keys must not change, or earlier decisions cannot be read."""


def test_a_stored_decision_is_read_and_written_unchanged() -> None:
    decision = Decision.from_tag(KEY, TAG)
    assert decision is not None
    assert (decision.key, decision.number, decision.version, decision.previous) == (KEY, 2, 3, 1)
    assert (decision.who, decision.reason, decision.state) == ("ada", "it is better", "done")
    assert decision.metrics == {"candidate": 0.5, "champion": 0.25}
    assert decision.to_tag() == TAG


@pytest.mark.parametrize("text", ["", "[]", "{}", '"text"', '{"figures": {}}', TAG.replace("who", "whom")])
def test_a_tag_that_was_edited_by_hand_is_ignored(text: str) -> None:
    assert Decision.from_tag(KEY, text) is None
