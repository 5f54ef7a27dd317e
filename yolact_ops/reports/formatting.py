"""Settings, metrics and numbers as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys, as ``{"train.lr": 0.001}``; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


def flatten_text(tree: Mapping[str, Any]) -> dict[str, str]:
    """`flatten` with values as text: strings unchanged, all others as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(tree).items()}


def percent(fraction: float | None, missing: str = "-") -> str:
    """A fraction, such as an AP, in percent with one decimal, as papers print it; ``missing`` for None."""
    return missing if fraction is None else f"{100 * fraction:.1f}"


def percentage_points(difference: float | None) -> str:
    """A difference of fractions in percentage points with its sign; ``-`` for None."""
    if difference is None:
        return "-"
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with that many decimals; ``-`` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """A duration as ``42 s``, ``7 min`` or ``3 h 05``; ``-`` for None."""
    if seconds is None:
        return "-"
    if seconds < 59.5:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d}"
