"""`yolact models`: the published configurations in a table, in full, as JSON and as Markdown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from yolact.backbone_registry import backbones
from yolact.models.published import PUBLISHED_MODELS
from yolact_cli.main import app

NAMES = [
    "yolact_base",
    "yolact_im400",
    "yolact_im700",
    "yolact_resnet50",
    "yolact_darknet53",
    "yolact_resnet50_pascal",
    "yolact_plus_base",
    "yolact_plus_resnet50",
]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


@pytest.fixture(scope="module")
def listed() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(run("--json").stdout)
    return entries


@pytest.fixture(scope="module")
def table() -> str:
    """What the command prints into a pipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        result = run()
    assert result.exit_code == 0
    return result.stdout


def test_the_list_has_a_whole_row_for_each_and_fits_100_columns_when_piped(table: str) -> None:
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] and line.split()[0] in NAMES}
    assert list(rows) == NAMES
    assert rows["yolact_resnet50"] == (
        ["resnet50", "550", "19248", "31.16", "118.3", "138x138", "COCO", "2017", "28.2", "a", "45.0"]
    )
    assert rows["yolact_plus_base"][-3:] == ["34.6", "c", "27.3"]


def test_the_list_names_the_source_of_each_metric(table: str) -> None:
    text = " ".join(table.split())
    assert "AP (percent) and fps are the authors' and were not measured here; fps on a Titan Xp" in text
    for model in PUBLISHED_MODELS.values():
        assert f"{model.metrics.metric}: {model.metrics.source}" in text


@pytest.mark.parametrize(
    ("name", "parameters", "anchors", "prototypes", "mask_ap", "fps"),
    [
        ("yolact_base", 50_157_071, 19_248, [138, 138, 32], 29.8, 33.5),
        ("yolact_im400", 50_157_071, 10_077, [100, 100, 32], 24.9, 45.3),
        ("yolact_im700", 50_157_071, 30_963, [176, 176, 32], 31.2, 23.4),
        ("yolact_resnet50", 31_164_943, 19_248, [138, 138, 32], 28.2, 45.0),
        ("yolact_darknet53", 47_783_087, 19_248, [138, 138, 32], 28.7, 40.7),
        ("yolact_resnet50_pascal", 30_734_623, 19_248, [138, 138, 32], 72.3, 47.6),
        ("yolact_plus_base", 52_571_142, 57_744, [138, 138, 32], 34.6, 27.3),
        ("yolact_plus_resnet50", 33_766_460, 57_744, [138, 138, 32], 34.1, 33.5),
    ],
)
def test_json_gives_the_size_of_the_published_network_and_the_published_metrics(
    listed: list[dict[str, Any]],
    name: str,
    parameters: int,
    anchors: int,
    prototypes: list[int],
    mask_ap: float,
    fps: float,
) -> None:
    (entry,) = [entry for entry in listed if entry["name"] == name]
    assert entry["parameters"] == parameters
    assert entry["anchors"] == anchors
    assert entry["prototypes"] == prototypes
    assert (entry["published"]["mask_ap"], entry["published"]["fps"]) == (mask_ap, fps)


def test_json_of_one_is_its_entry_in_the_list(listed: list[dict[str, Any]]) -> None:
    assert [entry["name"] for entry in listed] == NAMES
    assert json.loads(run("yolact_im400", "--json").stdout) == listed[1]


def test_only_models_with_rescoring_have_its_cost(listed: list[dict[str, Any]]) -> None:
    assert {entry["name"] for entry in listed if entry["rescoring_flops_per_mask"]} == {
        "yolact_plus_base",
        "yolact_plus_resnet50",
    }


def test_one_in_full_shows_every_setting_the_classes_and_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = run("yolact_resnet50_pascal")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for expected in (
        "model.backbone resnet50",
        "model.backbone_blocks null",
        "model.square_anchors false",
        "model.anchor_scales [[32.0], [64.0], [128.0], [256.0], [512.0]]",
        "train.epochs 113",
        "evaluate.detect.low_score_tail true",
        "mask AP50 on the val split of PASCAL SBD 72.3",
        "120,000 of 8 images",
        "60,000, 100,000 steps",
        "PASCAL SBD, 8,498 images",
        "Classes (20) aeroplane, bicycle,",
        "train, tvmonitor",
    ):
        assert expected in text, expected
    for key in PUBLISHED_MODELS["yolact_resnet50_pascal"].model.model_dump():
        assert f"model.{key} " in text


def test_one_with_deformable_convolutions_says_how_many_and_what_rescoring_costs() -> None:
    text = " ".join(run("yolact_plus_base").stdout.split())
    assert "deformable convolutions 11" in text
    assert "MFLOPs more per mask" in text


def test_the_table_of_the_document_is_what_the_command_prints(repository: Path) -> None:
    document = (repository / "docs" / "models.md").read_text(encoding="utf-8")
    assert run("--markdown").stdout.strip() in document, "put the output of `yolact models --markdown` there"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolact_bsae", "no published configuration 'yolact_bsae'; did you mean 'yolact_base'?"),
        ("mask2former", "no published configuration 'mask2former'; there are: yolact_base, yolact_im400"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, message: str) -> None:
    for arguments in ([name], [name, "--json"]):
        result = run(*arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith(message)
        assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["--markdown", "--json"], ["yolact_base", "--markdown"]])
def test_markdown_excludes_other_options(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "--markdown prints the table of all" in " ".join(result.stderr.replace("│", " ").split())


def test_a_new_process_counts_deformable_convolutions(repository: Path) -> None:
    """Here other tests have long made torchvision's operations known."""
    command = [sys.executable, "-m", "yolact_cli.main", "models", "yolact_plus_resnet50", "--json"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(run("yolact_plus_resnet50", "--json").stdout)


# --- backbones ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_backbones_are_listed_as_in_the_docs(repository: Path) -> None:
    markdown = run("--backbones", "--markdown").stdout
    rows = {cells[1].strip(): cells[2:-1] for cells in (line.split("|") for line in markdown.splitlines())}
    assert [cell.strip() for cell in rows["resnet50"]][:2] == ["23.51", "8.34"]
    assert set(rows) >= {spec.name for spec in backbones() if spec.implementation.startswith("yolact.")}
    assert markdown in (repository / "docs" / "models.md").read_text(encoding="utf-8")
    listed = run("--backbones").stdout
    assert all(name in listed for name in rows if name not in ("---", "backbone"))
    assert run("--backbones", "--json").exit_code == 2
