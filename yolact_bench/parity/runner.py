"""Finds the fixtures of a directory, recognises their kinds by content, and runs the checks of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yolact.devices import computing_threads
from yolact.errors import DataError
from yolact_bench.parity.configurations import (
    Configurations,
    check_anchor_rows,
    check_anchor_settings,
    check_state_dicts,
    is_anchor_rows,
    is_anchor_settings,
    is_state_dict_shapes,
)
from yolact_bench.parity.fixture import Fixture, read_json, read_npz
from yolact_bench.parity.losses import check_losses, is_losses
from yolact_bench.parity.network import check_network, is_network
from yolact_bench.parity.report import Checks, Comparison, FileReport, ParityReport
from yolact_bench.parity.units import check_units, is_units


@dataclass(frozen=True)
class Kind:
    """A kind of fixture, recognised by its content."""

    name: str
    recognise: Callable[[Fixture], bool]
    check: Callable[[Checks, Configurations], None]


KINDS = (
    Kind("network", is_network, lambda checks, _: check_network(checks)),
    Kind("losses", is_losses, lambda checks, _: check_losses(checks)),
    Kind("unit vectors", is_units, lambda checks, _: check_units(checks)),
    Kind("anchor rows", is_anchor_rows, check_anchor_rows),
    Kind("anchor settings", is_anchor_settings, check_anchor_settings),
    Kind("state dict shapes", is_state_dict_shapes, check_state_dicts),
)


def run_parity(directory: Path) -> ParityReport:
    """Check every fixture in a directory, whatever its file name; subfolders are ignored.

    Raises:
        DataError: the directory is missing, or nothing in it could be checked.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory")
    report = ParityReport(files=[], unrecognised=[])
    fixtures: dict[str, Fixture] = {}
    for path in sorted(path for path in directory.iterdir() if path.is_file()):
        try:
            fixture = _read(path)
        except DataError as error:
            damaged = Comparison(path.name, None, None, None, passed=False, note=str(error))
            report.files.append(FileReport(path.name, "not readable", [damaged]))
            continue
        if fixture is None:
            report.unrecognised.append(f"{path.name}: neither .npz nor JSON")
        elif not any(kind.recognise(fixture) for kind in KINDS):
            report.unrecognised.append(f"{path.name}: content of unknown kind ({_names(fixture)})")
        else:
            fixtures[path.name] = fixture
    configurations = Configurations(fixtures.values())
    with computing_threads(1):
        for name, fixture in fixtures.items():
            report.files.append(_check(name, fixture, configurations))
    if not report.comparisons:
        found = "".join(f"\n  {line}" for line in report.unrecognised) or " (it has no files)"
        raise DataError(
            f"{directory}: nothing here can be checked{found}\n"
            f"Name a directory with .npz or JSON fixtures: {', '.join(kind.name for kind in KINDS)}."
        )
    return report


def _read(path: Path) -> Fixture | None:
    """A file's content; None if it is neither ``.npz`` nor JSON.

    Raises:
        DataError: by its name or first byte it is one of them, but it is damaged.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK") or path.suffix == ".npz":
        return read_npz(path)
    if start.lstrip()[:1] in (b"{", b"[") or path.suffix == ".json":
        return read_json(path)
    return None


def _names(fixture: Fixture) -> str:
    names = fixture.children()
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "empty"


def _check(name: str, fixture: Fixture, configurations: Configurations) -> FileReport:
    checks = Checks(fixture)
    kinds = [kind for kind in KINDS if kind.recognise(fixture)]
    for kind in kinds:
        with checks.part(kind.name):
            kind.check(checks, configurations)
    return FileReport(name, ", ".join(kind.name for kind in kinds), checks.rows, fixture.unused)
