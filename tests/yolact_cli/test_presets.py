"""`yolact preset`: composing, errors, writing params.yaml."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from yolact.errors import SettingsError
from yolact.models.published import PUBLISHED_MODELS
from yolact.settings import PUBLISHED_DETECTION
from yolact_cli import presets
from yolact_cli.main import app
from yolact_ops.settings.params import Params, load_params, parse_params

PRESETS = ["lite0-320", "lite2-512", "regnet-550", "sample-cpu", "voc2012-r101", "voc2012-r50", "voc2012-r50-bf16"]
PUBLISHED = list(PUBLISHED_MODELS)


@pytest.fixture
def workspace(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's presets and no params.yaml, made the current one."""
    shutil.copytree(repository / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["preset", *arguments])


def merged(base: dict[str, Any], difference: dict[str, Any]) -> dict[str, Any]:
    """The oracle for composing: a deep merge on plain mappings."""
    result = dict(base)
    for key, value in difference.items():
        result[key] = merged(base[key], value) if isinstance(value, dict) else value
    return result


def read_plain(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree


def composed(name: str, *overrides: str, conf: Path = presets.CONF, model: str | None = None) -> Params:
    return parse_params(yaml.safe_load(presets.compose(name, overrides, conf, model)))


def test_the_presets_that_the_documents_name_exist(repository: Path) -> None:
    assert set(PRESETS) <= set(presets.preset_names(repository / "conf"))


def test_every_preset_is_valid_and_described(repository: Path) -> None:
    conf = repository / "conf"
    for name in presets.preset_names(conf):
        parse_params(yaml.safe_load(presets.compose(name, conf=conf)), origin=name)
        assert presets.describe(name, conf)


def test_committed_params_yaml_is_the_sample_preset(repository: Path) -> None:
    composed = presets.compose("sample-cpu", conf=repository / "conf")
    assert (repository / "params.yaml").read_text(encoding="utf-8") == composed, "run: yolact preset use sample-cpu"


@pytest.mark.parametrize("name", PRESETS)
def test_composing_is_a_deep_merge_over_the_base(repository: Path, name: str) -> None:
    conf = repository / "conf"
    expected = merged(read_plain(conf / "base.yaml"), read_plain(conf / f"{name}.yaml"))
    assert yaml.safe_load(presets.compose(name, conf=conf)) == expected


@pytest.mark.parametrize("first", ["voc2012-r50", "yolact_im700"])
def test_presets_are_combined_in_their_order(workspace: Path, first: str) -> None:
    alone, modern = composed(first), composed("modern")
    both = composed(f"{first}+modern")
    assert both.model == alone.model
    assert both.train.augment == modern.train.augment
    assert both.train.optimizer == "adamw"
    assert both.train.epochs == alone.train.epochs
    assert composed(f"modern+{first}").train.loss.assignment == "atss"
    assert run("use", f"{first}+modern").exit_code == 0
    assert load_params(Path("params.yaml")) == both
    assert f"yolact preset use {first}+modern" in Path("params.yaml").read_text(encoding="utf-8")
    failed = run("use", f"{first}+moderm")
    assert failed.exit_code != 0
    assert "did you mean 'modern'?" in failed.output or "did you mean 'modern'?" in str(failed.exception)


def test_lists_replace_and_the_bases_comments_and_order_stay(workspace: Path) -> None:
    text = presets.compose("base", ["model.anchor_scales=[[1],[2],[3],[4],[5]]"])
    assert yaml.safe_load(text)["model"]["anchor_scales"] == [[1], [2], [3], [4], [5]]
    comment = "# pixels, levels P3 to P7"
    line = next(line for line in text.splitlines() if "anchor_scales" in line and not line.startswith("#"))
    assert line.endswith(comment)
    base = (workspace / "conf" / "base.yaml").read_text(encoding="utf-8")
    body = base.split("\n\n", 1)[1]
    assert text.split("\n\n", 1)[1].count("#") == body.count("#")
    assert list(yaml.safe_load(text)) == list(yaml.safe_load(base))


def test_the_first_line_names_the_preset_and_the_command_that_writes_it(workspace: Path) -> None:
    first = presets.compose("sample-cpu", ["train.lr=2e-3"]).splitlines()[0]
    assert first.startswith("# Preset sample-cpu, written by `yolact preset use sample-cpu -S train.lr=2e-3`.")


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.lr=2e-3", "train", "lr", 2e-3),
        ("train.lr=0.002", "train", "lr", 2e-3),
        ("train.epochs=3", "train", "epochs", 3),
        ("model.square_anchors=true", "model", "square_anchors", True),
        ("model.backbone_weights=none", "model", "backbone_weights", "none"),
        ("data.source=../a=b/VOC", "data", "source", "../a=b/VOC"),
        ("train.lr_milestones=[0.6,0.9]", "train", "lr_milestones", [0.6, 0.9]),
    ],
)
def test_an_override_sets_its_key(workspace: Path, override: str, section: str, key: str, value: Any) -> None:
    presets.use("sample-cpu", [override])
    params = load_params("params.yaml")
    assert getattr(getattr(params, section), key) == value


def test_overrides_are_checked_together_not_one_by_one(workspace: Path) -> None:
    text = presets.compose("base", ["data.sample.min_size=300", "data.sample.max_size=400"])
    assert yaml.safe_load(text)["data"]["sample"]["min_size"] == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sampel-cpu"], "no preset 'sampel-cpu'; did you mean 'sample-cpu'?"),
        (["yolact_plus"], "no preset 'yolact_plus'; did you mean 'yolact_plus_base'?"),
        (
            ["../secret"],
            "no preset '../secret'; there are: lite0-320, lite2-512, modern, regnet-550, sample-cpu, smoke,",
        ),
        (["base", "--model", "yolact_bsae"], "no published configuration 'yolact_bsae'; did you mean 'yolact_base'?"),
        (["base", "--model", "sample-cpu"], "no published configuration 'sample-cpu'; there are: yolact_base,"),
        (["sample-cpu", "-S", "train.lrr=1"], "-S train.lrr=1: train.lrr: unknown key; did you mean 'lr'?"),
        (["sample-cpu", "-S", "trian.lr=1"], "trian: unknown key; did you mean 'train'?"),
        (["sample-cpu", "-S", "train.lr=fast"], "train.lr: input should be a valid number (found 'fast')"),
        (["sample-cpu", "-S", "train.lr="], "train.lr: input should be a valid number"),
        (["sample-cpu", "-S", "train=1"], "-S train=1: train: is a section, it cannot be set to 1"),
        (["sample-cpu", "-S", "train.loss=1"], "-S train.loss=1: train.loss: is a section"),
        (["sample-cpu", "-S", "train.lr"], "-S train.lr: must be KEY=VALUE"),
        (["sample-cpu", "-S", "train..lr=1"], "-S train..lr=1: must be KEY=VALUE"),
        (["sample-cpu", "-S", "train.lr=[1"], "-S train.lr=[1: not valid YAML"),
    ],
)
def test_an_invalid_command_is_refused_without_a_traceback_and_writes_nothing(
    workspace: Path, arguments: list[str], message: str
) -> None:
    result = run("use", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (workspace / "params.yaml").exists()


def test_what_a_combination_lacks_may_come_from_a_later_preset_or_an_override(workspace: Path) -> None:
    refused = run("use", "sample-cpu+modern")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("conf/modern.yaml: train.layer_decay: is 0.15, with which")
    assert run("use", "sample-cpu+modern", "-S", "train.layer_decay=1").exit_code == 0
    assert run("use", "sample-cpu+modern+yolact_im700").exit_code == 0
    other = run("use", "sample-cpu+modern", "-S", "train.layer_decay=0.5")
    assert other.stderr.startswith("conf/modern.yaml: train.layer_decay: is 0.15, with which")
    unmended = run("use", "sample-cpu+modern+yolact_im700", "-S", "model.backbone_weights=none")
    assert unmended.stderr.startswith("-S model.backbone_weights=none: train.layer_decay: is 0.15, with which")
    slip = run("use", "sample-cpu+modern", "-S", "train.layer_decay=1", "-S", "train.layr=1")
    assert "train.layr: unknown key" in slip.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  epoch: 3\n", "conf/mine.yaml: train.epoch: unknown key; did you mean 'epochs'?"),
        ("train: 3\n", "conf/mine.yaml: train: is a section"),
        ("train: [1\n", "conf/mine.yaml: not valid YAML"),
        ("- train\n", "conf/mine.yaml: must be a mapping"),
    ],
)
def test_an_invalid_preset_file_is_named_with_its_key(workspace: Path, text: str, message: str) -> None:
    (workspace / "conf" / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        presets.compose("mine")
    assert message in str(caught.value)


def test_use_shows_what_changed_and_only_that(workspace: Path) -> None:
    assert run("use", "sample-cpu").exit_code == 0
    result = run("use", "sample-cpu", "-S", "train.epochs=77")
    assert result.exit_code == 0
    rows = [line for line in result.stdout.splitlines() if "77" in line]
    assert len(rows) == 1
    assert "train.epochs" in rows[0]
    assert "train.lr" not in result.stdout


def test_use_reports_that_nothing_changed(workspace: Path) -> None:
    run("use", "sample-cpu")
    before = (workspace / "params.yaml").read_bytes()
    result = run("use", "sample-cpu")
    assert "no setting changed" in result.stdout
    assert (workspace / "params.yaml").read_bytes() == before


def test_use_replaces_a_broken_params_file(workspace: Path) -> None:
    (workspace / "params.yaml").write_text("train: [", encoding="utf-8")
    assert run("use", "voc2012-r50").exit_code == 0
    assert load_params("params.yaml").data.source == "voc2012"


def test_changes_name_added_removed_and_changed_keys() -> None:
    old = {"a": 1, "b": {"c": True, "d": [1]}, "gone": "x"}
    new = {"a": 1, "b": {"c": False, "d": [1]}, "extra": 2}
    assert presets.changes(old, new) == [
        presets.Change("b.c", "true", "false"),
        presets.Change("extra", None, "2"),
        presets.Change("gone", "x", None),
    ]


def test_list_names_each_preset_the_projects_first_then_the_published(workspace: Path) -> None:
    result = run("list")
    assert result.exit_code == 0
    project, published = result.stdout.split("published preset")
    assert all(f" {name} " in project for name in PRESETS)
    assert all(f" {name} " in published for name in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_sets_its_network_training_length_and_detection_and_nothing_else(
    workspace: Path, name: str
) -> None:
    published, base = PUBLISHED_MODELS[name], composed("base")
    params = composed(name)
    assert params.model == published.model
    assert params.evaluate.detect == PUBLISHED_DETECTION
    assert params.train.epochs == published.epochs
    assert params.train.lr_milestones == pytest.approx(
        [step / published.iterations for step in published.lr_steps], abs=1e-4
    )
    assert params.train.loss.max_masks_per_image == published.max_masks_per_image
    changed = {
        "epochs": base.train.epochs,
        "lr_milestones": base.train.lr_milestones,
        "loss": base.train.loss,
    }
    assert params.train.model_copy(update=changed) == base.train
    loss = params.train.loss.model_copy(update={"max_masks_per_image": base.train.loss.max_masks_per_image})
    assert loss == base.train.loss
    assert params.evaluate.model_copy(update={"detect": base.evaluate.detect}) == base.evaluate
    assert (params.data, params.register_, params.runtime) == (base.data, base.register_, base.runtime)


@pytest.mark.parametrize(("name", "epochs"), [("yolact_im700", 55), ("yolact_resnet50_pascal", 113)])
def test_published_steps_are_epochs_of_the_published_data_set(workspace: Path, name: str, epochs: int) -> None:
    assert composed(name).train.epochs == epochs  # 800,000 x 8 / 117,266 and 120,000 x 8 / 8,498


def test_a_published_preset_is_written_like_any_other(workspace: Path) -> None:
    result = run("use", "yolact_plus_base", "-S", "data.source=images")
    assert result.exit_code == 0
    params = load_params("params.yaml")
    assert params.data.source == "images"
    assert params.model == PUBLISHED_MODELS["yolact_plus_base"].model
    head = " ".join(line.lstrip("# ") for line in (workspace / "params.yaml").read_text().split("\n\n")[0].splitlines())
    assert head.startswith("Preset yolact_plus_base, written by `yolact preset use yolact_plus_base -S data.source=")
    assert "The published YOLACT++, ResNet-101 at 550 px, for COCO 2017" in head
    assert "bugs included" in head


@pytest.mark.parametrize("name", ["base", *PRESETS, *PUBLISHED])
def test_a_written_file_keeps_every_comment_of_the_base_and_its_line_length(workspace: Path, name: str) -> None:
    text = presets.compose(name)
    body = (workspace / "conf" / "base.yaml").read_text(encoding="utf-8").split("\n\n", 1)[1]
    comments = [line.partition("# ")[2] for line in body.splitlines() if "# " in line]
    assert comments
    for comment in comments:
        assert f"# {comment}" in text
    assert max(map(len, text.splitlines())) <= 120


def test_an_unchanged_setting_keeps_the_bases_spelling(workspace: Path) -> None:
    base = (workspace / "conf" / "base.yaml").read_text(encoding="utf-8").split("\n\n", 1)[1]
    changed = {"train.epochs", "evaluate.detect.low_score_tail", "evaluate.detect.integer_boxes"}
    changed |= {"evaluate.detect.crop_before_enlarging"}
    differences = set(presets.compose("yolact_resnet50_pascal").splitlines()) - set(base.splitlines())
    keys = {line.split(":")[0].strip() for line in differences if line and not line.startswith("#")}
    assert keys == {key.rpartition(".")[2] for key in changed}


def test_long_lists_of_lists_have_a_row_per_line(workspace: Path) -> None:
    lines = presets.compose("yolact_plus_base").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  anchor_scales:"))
    assert lines[start].endswith("# pixels, levels P3 to P7")
    assert lines[start + 1] == f"    - [24, {24 * 2 ** (1 / 3)!r}, {24 * 2 ** (2 / 3)!r}]"
    short = [line.partition("#")[0].rstrip() for line in presets.compose("yolact_im400").splitlines()]
    assert "  anchor_scales: [[17], [34], [69], [139], [279]]" in short
    assert "  anchor_ratios: [1, 0.5, 2]" in short


def test_null_is_written_out(workspace: Path) -> None:
    assert "  backbone_blocks: null         # " in presets.compose("yolact_base")


def test_showing_a_published_preset_gives_the_difference_from_the_base(workspace: Path) -> None:
    text = run("show", "yolact_im700").stdout
    assert text.startswith("yolact_im700: The published YOLACT, ResNet-101 at 700 px, for COCO 2017")
    rows = {line.split("│")[1].strip(): line.split("│")[3].strip() for line in text.splitlines() if "│" in line}
    assert rows["model.backbone"] == "resnet101"
    assert rows["train.loss.max_masks_per_image"] == "300"
    assert rows["evaluate.detect.integer_boxes"] == "true"
    assert "model.num_prototypes" not in rows


def test_the_network_of_a_published_preset_overrides_another_preset(workspace: Path) -> None:
    result = run("use", "voc2012-r50", "--model", "yolact_plus_resnet50", "-S", "model.backbone_weights=none")
    assert result.exit_code == 0
    params, alone = load_params("params.yaml"), composed("voc2012-r50")
    network = PUBLISHED_MODELS["yolact_plus_resnet50"].model
    assert params.model == network.model_copy(update={"backbone_weights": "none"})
    assert params.model_copy(update={"model": alone.model}) == alone
    first = (workspace / "params.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert "`yolact preset use voc2012-r50 --model yolact_plus_resnet50 -S" in first
    assert "params.yaml written from preset voc2012-r50 with the network yolact_plus_resnet50" in result.stdout


def test_the_network_replaces_all_that_the_preset_says_of_it(workspace: Path) -> None:
    assert composed("sample-cpu", model="yolact_darknet53").model == PUBLISHED_MODELS["yolact_darknet53"].model


def test_the_voc_preset_has_the_published_pascal_network_without_repeating_it(workspace: Path) -> None:
    assert composed("voc2012-r50").model == PUBLISHED_MODELS["yolact_resnet50_pascal"].model
    assert "model" not in read_plain(workspace / "conf" / "voc2012-r50.yaml")


def test_a_file_with_the_name_of_a_published_configuration_is_refused(workspace: Path) -> None:
    shutil.copy(workspace / "conf" / "smoke.yaml", workspace / "conf" / "yolact_base.yaml")
    result = run("list")
    assert result.exit_code == 1
    assert "conf/yolact_base.yaml: yolact_base is a published configuration; give the file another" in result.stderr


def test_show_prints_the_difference_or_the_whole_file(workspace: Path) -> None:
    difference = run("show", "voc2012-r101")
    assert "resnet101" in difference.stdout
    assert "momentum" not in difference.stdout
    assert run("show", "voc2012-r101", "--yaml").stdout == presets.compose("voc2012-r101")


def test_outside_the_repository_the_error_says_where_to_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["list"], ["use", "yolact_base"], ["show", "yolact_base"]):
        result = run(*arguments)
        assert result.exit_code == 1
        assert "from the repository's root" in result.stderr


@pytest.mark.parametrize("count", [12, 40])
@pytest.mark.parametrize("name", ["part", "[/b] é: #1, {x}", "x" * 140])
def test_long_mappings_are_written_so_that_they_can_be_read(workspace: Path, count: int, name: str) -> None:
    classes = {f"{name} {i:02}": f"teil {i:02}" for i in range(count)}
    for _ in range(2):  # the second time there is a file to compare with
        assert run("use", "smoke", "-S", f"data.classes={json.dumps(classes, ensure_ascii=False)}").exit_code == 0
        assert load_params(Path("params.yaml")).data.classes == classes
        assert read_plain(Path("params.yaml"))["data"]["classes"] == classes


def test_where_there_is_no_conf_the_presets_are_those_of_the_installed_package(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run("show", "smoke", "--yaml").stdout
    (workspace / "conf").rename(workspace / "installed")
    assert "conf/base.yaml: no such file" in run("show", "smoke", "--yaml").output
    monkeypatch.setattr("yolact_ops.settings.presets.PACKAGED", workspace / "installed")
    assert run("show", "smoke", "--yaml").stdout == expected
    assert "lite0-320" in run("list").stdout
    (workspace / "conf").mkdir()  # a project's own folder is never mixed with them
    assert "conf/base.yaml: no such file" in run("show", "smoke", "--yaml").output
