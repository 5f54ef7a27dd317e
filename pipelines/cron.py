"""Cron expressions as Kubeflow Pipelines reads them, checked before they are sent.

Its format (github.com/robfig/cron, version 1) has a field for seconds in front: second, minute, hour, day of the month,
month, day of the week. It takes five fields too, but means then that the last one is missing: ``0 3 * * *``, which is
3 o'clock everywhere else, would be the third minute of each hour.
"""

from __future__ import annotations

import re

from yolact.errors import SettingsError

_MONTHS = dict(jan=1, feb=2, mar=3, apr=4, may=5, jun=6, jul=7, aug=8, sep=9, oct=10, nov=11, dec=12)  # noqa: C408
_DAYS = dict(sun=0, mon=1, tue=2, wed=3, thu=4, fri=5, sat=6)  # noqa: C408

_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("second", 0, 59, {}),
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)
"""Name, least and largest value, names of values."""

_PART = re.compile(r"(?P<first>\*|\?|\w+)(-(?P<last>\w+))?(/(?P<step>\d+))?")
_WORDS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_EVERY = re.compile(r"@every (\d+(\.\d+)?(h|m|s))+")


def to_kubeflow(expression: str) -> str:
    """The expression with six fields; one with five, as in a crontab, gets seconds (0) in front.

    ``@daily`` and its like, and ``@every 6h``, stay as they are.

    Raises:
        SettingsError: it has another number of fields, or a field is not possible.
    """
    text = " ".join(expression.split())
    if text.startswith("@"):
        if text not in _WORDS and not _EVERY.fullmatch(text):
            raise SettingsError(f"--cron {expression!r}: unknown word; there are {', '.join(_WORDS)}, '@every 6h'")
        return text
    fields = text.split(" ")
    if len(fields) == 5:
        fields.insert(0, "0")
    if len(fields) != 6:
        raise SettingsError(
            f"--cron {expression!r}: has {len(fields)} fields, not 5 (minute, hour, day of the month, month, day of "
            "the week) or 6 (second in front). Put it in quotes: --cron '0 3 * * *' is 3 o'clock each day"
        )
    for field, (name, least, largest, names) in zip(fields, _FIELDS, strict=True):
        for part in field.split(","):
            if not _is_possible(part, least, largest, names):
                also = f" or {', '.join(names)}" if names else ""
                raise SettingsError(
                    f"--cron {expression!r}: {part!r} is no {name}; it is {least} to {largest}{also}, a range as "
                    f"{least}-{largest}, * or */2"
                )
    return " ".join(fields)


def _is_possible(part: str, least: int, largest: int, names: dict[str, int]) -> bool:
    match = _PART.fullmatch(part)
    if match is None:
        return False
    first, last, step = match["first"], match["last"], match["step"]
    if step is not None and int(step) == 0:
        return False
    if first in "*?":
        return last is None
    bounds = [_number(word, names) for word in (first, last) if word is not None]
    if any(bound is None or not least <= bound <= largest for bound in bounds):
        return False
    return bounds == sorted(bound for bound in bounds if bound is not None)


def _number(word: str, names: dict[str, int]) -> int | None:
    return int(word) if word.isdigit() else names.get(word.lower())
