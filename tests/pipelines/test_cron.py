"""Cron expressions as the cluster reads them."""

from __future__ import annotations

import pytest

from pipelines.cron import to_kubeflow
from yolact.errors import SettingsError


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("0 3 * * *", "0 0 3 * * *"),
        ("  */15   8-18/2 * * mon-fri ", "0 */15 8-18/2 * * mon-fri"),
        ("30 0 3 1,15 JAN ?", "30 0 3 1,15 JAN ?"),
        ("5/10 * ? * 0,6", "0 5/10 * ? * 0,6"),
        ("@daily", "@daily"),
        ("@every 1h30m", "@every 1h30m"),
    ],
)
def test_five_fields_get_seconds_and_all_else_stays(written: str, sent: str) -> None:
    assert to_kubeflow(written) == sent


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "has 1 fields"),
        ("0 3 * *", "has 4 fields"),
        ("0 0 3 * * * 2027", "has 7 fields"),
        ("60 3 * * *", "'60' is no minute; it is 0 to 59"),
        ("0 3 0 * *", "'0' is no day of the month; it is 1 to 31"),
        ("0 3 * 13 *", "'13' is no month; it is 1 to 12 or jan"),
        ("0 3 * * 7", "'7' is no day of the week; it is 0 to 6 or sun"),
        ("0 3 * * fri-mon", "'fri-mon' is no day of the week"),
        ("0 18-8 * * *", "'18-8' is no hour"),
        ("*/0 3 * * *", "'*/0' is no minute"),
        ("*-5 3 * * *", "'*-5' is no minute"),
        ("0 3 * jan-mar-may *", "is no month"),
        ("0 3,, * * *", "'' is no hour"),
        ("0 mon * * *", "'mon' is no hour"),
        ("-5 3 * * *", "'-5' is no minute"),
        ("@noon", "unknown word"),
        ("@every day", "unknown word"),
    ],
)
def test_what_is_impossible_is_refused_by_name(written: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        to_kubeflow(written)
    assert message in str(caught.value)
