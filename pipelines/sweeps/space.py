"""The settings that a sweep tries: ``-S 'train.lr=loguniform(1e-4,1e-2)'``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yolact.errors import SettingsError
from yolact_ops.settings.params import Params
from yolact_ops.settings.presets import change
from yolact_ops.settings.yaml_text import parse_yaml, plain

FORMS = {
    "loguniform": "loguniform(1e-4,1e-2)",
    "uniform": "uniform(0.5,0.99)",
    "int": "int(1,8)",
    "choice": "choice(sgd,adamw)",
}
"""An example of each form."""

SECTIONS = ("model", "train", "evaluate")
"""Sections whose settings a sweep can try; all trials share the data, and the registry gets the best model only."""

_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*\((.*)\)\s*")


@dataclass(frozen=True)
class Parameter:
    """One setting and the values that it may take."""

    key: str
    """With dots, as ``train.lr``."""
    form: str
    """A key of `FORMS`."""
    values: tuple[Any, ...]
    """The two bounds, which are included: ``float``, or ``int`` for the form ``int``. Or the choices, as YAML text."""

    def __str__(self) -> str:
        return f"{self.form}({', '.join(map(str, self.values))})"


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[Parameter]]:
    """Separate settings that are the same in all trials from those that the sweep tries.

    Args:
        overrides: ``KEY=VALUE`` each. A value in the form of a call is a space: quote it to mean a text,
            ``key="'int(1,2)'"``.

    Returns:
        The plain overrides, and the parameters, both in their order.

    Raises:
        SettingsError: a space is not one of `FORMS`, a key is given twice, or no space is given.
    """
    fixed, space = [], []
    for override in overrides:
        key, _, text = override.partition("=")
        call = _CALL.fullmatch(text)
        if call is None:
            fixed.append(override)
        else:
            space.append(_parse(key.strip(), call[1], call[2]))
    for key in (keys := [parameter.key for parameter in space]):
        if keys.count(key) > 1 or any(other.partition("=")[0].strip() == key for other in fixed):
            raise SettingsError(f"-S {key}: is given twice; a sweep takes one value or one space for a key")
    if not space:
        raise SettingsError(
            f"a sweep needs a setting to try, as -S 'train.lr={FORMS['loguniform']}'; "
            f"forms: {', '.join(FORMS.values())}"
        )
    return fixed, space


def check_space(params: Params, space: Sequence[Parameter]) -> None:
    """Check the bounds and choices of each parameter, as if they had been given by ``-S``.

    Args:
        params: the settings of all trials.
        space: see `split_overrides`.

    Raises:
        SettingsError: a key is unknown or not of `SECTIONS`, or a value is not allowed.
    """
    for parameter in space:
        section = parameter.key.partition(".")[0]
        if section in Params.model_fields and section not in SECTIONS:
            raise SettingsError(
                f"-S {parameter.key}={parameter}: a sweep tries settings of {', '.join(SECTIONS)}; all its trials "
                f"share {section}"
            )
        for value in parameter.values:
            change(params, [override(parameter.key, value)])


def override(key: str, value: Any) -> str:
    """``KEY=VALUE`` for `yolact_ops.settings.presets.change`; ``value`` as in `Parameter.values`."""
    return f"{key}={value}"


def _parse(key: str, form: str, text: str) -> Parameter:
    given = f"-S {key}={form}({text})"
    if form not in FORMS:
        raise SettingsError(f"{given}: no such form; write one of {', '.join(f'{key}={a}' for a in FORMS.values())}")
    return Parameter(key, form, _choices(given, key, text) if form == "choice" else _bounds(given, key, form, text))


def _choices(given: str, key: str, text: str) -> tuple[str, ...]:
    values = tuple(_yaml_text(plain(item)) for item in parse_yaml(f"[{text}]", given))
    if len(set(values)) < 2 or len(set(values)) < len(values):
        raise SettingsError(f"{given}: must be two or more different values, as {key}={FORMS['choice']}")
    return values


def _yaml_text(value: Any) -> str:
    """The value as short YAML on one line."""
    if isinstance(value, str) and value.strip() == value and value and plain(parse_yaml(f"[{value}]", "")) == [value]:
        return value
    return json.dumps(value, ensure_ascii=False)


def _bounds(given: str, key: str, form: str, text: str) -> tuple[float, float]:
    number = int if form == "int" else float
    try:
        low, high = (number(part) for part in text.split(","))
    except ValueError:
        kind = "whole numbers" if form == "int" else "numbers"
        raise SettingsError(f"{given}: must be two {kind}, as {key}={FORMS[form]}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise SettingsError(f"{given}: the first number must be below the second, as {key}={FORMS[form]}")
    if form == "loguniform" and low <= 0:
        raise SettingsError(f"{given}: both numbers must be above 0, as {key}={FORMS[form]}")
    return low, high
