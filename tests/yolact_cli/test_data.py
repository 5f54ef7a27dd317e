"""`yolact data`: what it says of a folder, that it says what `preprocess` does, and that it writes nothing else."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from components.preprocess.step import run as preprocess
from yolact.errors import DataError
from yolact_cli import train
from yolact_cli.main import app
from yolact_ops.settings.params import DataConfig, load_params
from yolact_ops.settings.presets import change

TRIANGLE = [4, 5, 16, 5, 4, 17]
OTHER_TRIANGLE = [20, 5, 32, 5, 20, 17]

Command = Callable[..., Result]


def write_image(path: Path, seed: int) -> None:
    """An image of 40 x 30 pixels that is no near-duplicate of another seed's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(cells).resize((40, 30), Image.Resampling.BICUBIC).save(path)


def write_coco(folder: Path, outlines: Sequence[Sequence[list[int]]], name: str = "bolt") -> Path:
    """COCO without splits: an image for each list of outlines, of which the first is a bolt, others are nuts."""
    rows, annotations = [], []
    for place, found in enumerate(outlines):
        write_image(folder / f"images/{place}.png", place)
        rows.append({"id": place + 1, "file_name": f"{place}.png", "width": 40, "height": 30})
        annotations += [
            {"image_id": place + 1, "category_id": min(number, 2), "segmentation": [outline] if outline else []}
            for number, outline in enumerate(found, 1)
        ]
    for number, row in enumerate(annotations, 1):
        row["id"] = number
    categories = [{"id": 1, "name": name}, {"id": 2, "name": "nut"}]
    tree = {"images": rows, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(tree))
    return folder


CLEAN = [[TRIANGLE, OTHER_TRIANGLE]] * 4
WITH_FINDINGS = [[], [TRIANGLE, []], [TRIANGLE, OTHER_TRIANGLE, OTHER_TRIANGLE], *CLEAN, [TRIANGLE], [TRIANGLE]]
"""An image without objects, an object without outline, and an object twice."""


@pytest.fixture
def work(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which has only settings: a fifth of all objects may be dropped."""
    folder = tmp_path / "work"
    shutil.copytree(repository / "conf", folder / "conf")
    text = (repository / "params.yaml").read_text(encoding="utf-8").replace("max_dropped: 0.05", "max_dropped: 0.2")
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("yolact_ops.scanning.workers.CHUNK", 10_000)  # no processes
    return folder


@pytest.fixture
def command(work: Path) -> Command:
    def call(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, ["data", *map(str, arguments)])

    return call


def contents(*folders: Path) -> dict[str, tuple[int, bytes]]:
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in paths}


def test_the_numbers_and_findings_are_those_of_preprocess(command: Command, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", WITH_FINDINGS)
    shown = json.loads(command(folder, "--json").stdout)
    out = tmp_path / "processed"
    preprocess(
        load_params(Path("params.yaml")), raw_dir=folder, processed_dir=out, report_dir=tmp_path / "r", workers=1
    )
    stats = json.loads((out / "eval/stats.json").read_text())
    same = ("format", "split_by", "splits", "classes", "other_classes", "findings")
    assert {key: shown[key] for key in same} == {key: stats[key] for key in same}
    assert (shown["images"], shown["images_read"]) == (9, 9)
    assert {finding["severity"] for finding in shown["findings"]} >= {"dropped", "changed"}


def test_a_folder_is_the_callers_in_a_sub_folder_of_the_project(
    command: Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "dvc.yaml").touch()
    write_coco(work / "inside/set", CLEAN)
    monkeypatch.chdir(work / "inside")
    for folder in ("set", str(work / "inside/set")):
        done = command(folder)
        assert done.exit_code == 0, done.output
        assert f"\n  yolact train {folder} -S" in done.stdout
        monkeypatch.chdir(work / "inside")
    monkeypatch.chdir(work / "inside/set")
    assert "\n  yolact train . -S" in command(".").stdout
    refused = command("s3://bucket/set")
    assert refused.exit_code == 1
    assert "s3://bucket/set: is an address" in refused.output


def test_nothing_is_written_but_the_page(command: Command, work: Path, tmp_path: Path) -> None:
    folder, page = write_coco(tmp_path / "set", WITH_FINDINGS), tmp_path / "page.html"
    before = contents(folder, work)
    done = command(folder, "--report", page)
    assert done.exit_code == 0, done.output
    assert contents(folder, work) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "set", "work"]


def test_the_page_shows_four_images_with_objects_and_needs_no_other_file(command: Command, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = command(write_coco(tmp_path / "set", WITH_FINDINGS), "--report", page, "-S", "data.max_side=64")
    text = page.read_text(encoding="utf-8")
    assert text.count('<img src="data:image/jpeg;base64,') == text.count("<img") == 4
    assert "0 objects" not in text
    assert "problems.csv" not in text
    assert "Digest" not in text
    assert "All 9 images were read." in text
    assert f"drawn in {page}" in done.stdout.replace("\n", "")


def test_the_terminal_names_format_classes_splits_findings_and_the_command(command: Command, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", WITH_FINDINGS)
    lines = command(folder).stdout.splitlines()
    assert lines[0].startswith("COCO: ")
    assert any("bolt" in line for line in lines)
    assert any(line.startswith("│ dropped") for line in lines)
    assert lines[-1].strip() == f"yolact train {folder} -S data.max_dropped=0.2"


def test_of_a_large_set_evenly_spaced_images_are_read_and_the_numbers_say_so(command: Command, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", [[TRIANGLE, OTHER_TRIANGLE]] * 30)
    shown = json.loads(command(folder, "--images", "6", "--json").stdout)
    assert (shown["images"], shown["images_read"]) == (30, 6)
    assert sum(part["images"] for part in shown["splits"].values()) == 6
    page = tmp_path / "page.html"
    done = command(folder, "--images", "6", "--report", page)
    note = "6 of 30 images were read, evenly spaced: counts and findings are those of these images"
    assert note in done.stdout.replace("\n", " ")
    assert note in page.read_text(encoding="utf-8")


def test_orphan_annotations_of_a_large_set_count_in_proportion_to_the_images_read(
    command: Command, tmp_path: Path
) -> None:
    folder = write_coco(tmp_path / "set", [[TRIANGLE, OTHER_TRIANGLE]] * 30)
    tree = json.loads((folder / "labels.json").read_text())
    orphans = [{"id": 900 + n, "image_id": 900 + n, "category_id": 1, "segmentation": [TRIANGLE]} for n in range(5)]
    (folder / "labels.json").write_text(json.dumps({**tree, "annotations": tree["annotations"] + orphans}))
    shown = json.loads(command(folder, "--images", "6", "--json").stdout)
    [dropped] = [finding for finding in shown["findings"] if finding["severity"] == "dropped"]
    assert (dropped["count"], dropped["total"]) == (1, 13)


def write_masks(folder: Path) -> Path:
    """Numbered masks with gaps between the values, so that only data.class_names makes objects of them."""
    for place in range(4):
        write_image(folder / f"images/{place}.png", place)
        mask = np.zeros((30, 40), np.uint8)
        mask[4:12, 4:12], mask[16:26, 20:30] = 3, 7
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / f"masks/{place}.png")
    return folder


def test_a_setting_that_the_reader_asked_for_is_tried_and_is_in_the_command(
    command: Command, trained: Callable[[str], DataConfig], tmp_path: Path
) -> None:
    folder = write_masks(tmp_path / "set")
    refused = command(folder)
    assert refused.exit_code == 1
    assert "data.class_names" in refused.stderr
    done = command(folder, "-S", "data.class_names=[M4 bolt]")
    assert done.exit_code == 0, done.stderr
    assert "M4 bolt" in done.stdout
    config = trained(done.stdout)
    assert (config.source, config.class_names) == (str(folder), ["M4 bolt"])


@pytest.fixture
def trained(work: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DataConfig]:
    """Runs the printed command, read by a shell, up to `dvc repro`, and returns the settings that it wrote."""
    monkeypatch.setattr(train.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 0))
    monkeypatch.setattr(train, "print_summary", lambda: None)

    def run(output: str) -> DataConfig:
        (work / "dvc.yaml").touch()
        words = shlex.split(output.splitlines()[-1])
        assert words[:2] == ["yolact", "train"]
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, done.output
        return load_params(Path("params.yaml")).data

    return run


def test_what_the_printed_command_prepares_is_what_was_shown(
    command: Command, trained: Callable[[str], DataConfig], tmp_path: Path
) -> None:
    """Also a setting of params.yaml, which `yolact train` would replace by that of its preset."""
    folder = write_coco(tmp_path / "set", CLEAN)
    settings = ["data.classes={bolt: 'M4, screw', nut: nut}", "data.annotations=[labels.json]", "data.crowds=objects"]
    settings += ["data.split.val=0.3", "data.max_side=64"]
    options = [word for setting in settings for word in ("-S", setting)]
    shown = change(load_params(Path("params.yaml")), settings).data
    done = command(folder, *options)
    assert done.exit_code == 0, done.stderr
    without = {"source", "mirrors", "sample"}
    assert trained(done.stdout).model_dump(exclude=without) == shown.model_dump(exclude=without)
    assert shown.max_dropped == 0.2


@pytest.mark.parametrize("name", ["it's [a], $b", "null", "-x", "a${b}"])
def test_the_printed_command_names_any_folder(
    command: Command, trained: Callable[[str], DataConfig], work: Path, name: str
) -> None:
    write_coco(work / name, CLEAN)
    assert Path(trained(command("--", name).stdout).source) == Path(name)


@pytest.mark.parametrize("name", ["sample", "~x", "dvc:a#b@c"])
def test_a_folder_with_the_name_of_another_source_is_named_as_a_folder(
    command: Command, trained: Callable[[str], DataConfig], work: Path, name: str
) -> None:
    write_coco(work / name, CLEAN)
    assert trained(command(name).stdout).source == f"./{name}"


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb"])
def test_a_name_that_no_terminal_can_show_is_said_and_not_sent_to_it(
    command: Command, tmp_path: Path, name: str
) -> None:
    done = command(write_coco(tmp_path / name, CLEAN, name="bolt\x1b[2J"))
    assert done.exit_code == 0
    assert "yolact train" not in done.stdout
    assert "rename it" in done.stdout
    assert "\x1b" not in done.stdout


def message(result: Result) -> str:
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def test_what_preprocess_refuses_is_shown_and_then_refused_with_its_message(command: Command, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", WITH_FINDINGS)
    (folder / "images/3.png").write_bytes(b"no image")
    done = command(folder)
    with pytest.raises(DataError) as refused:
        preprocess(
            load_params(Path("params.yaml")),
            raw_dir=folder,
            processed_dir=tmp_path / "p",
            report_dir=tmp_path / "r",
            workers=1,
        )
    assert "bolt" in done.stdout
    assert message(done).splitlines()[:2] == str(refused.value).splitlines()[:2]
    assert "yolact train" not in done.stdout


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("set.zip", ["Unpack", "dvc repro"]),
        ("s3://bucket/set", ["is an address", "dvc repro"]),
        ("dvc:somewhere#data@v1", ["is an address", "dvc repro"]),
        ("missing", ["no such folder"]),
        ("empty", ["has no annotated images in a known format"]),
    ],
)
def test_what_is_no_folder_with_data_is_refused_in_one_message(
    command: Command, work: Path, source: str, words: Sequence[str]
) -> None:
    (work / "set.zip").write_bytes(b"")
    (work / "empty").mkdir()
    said = message(command(source))
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--report", "page.pdf"],
        ["--report", "nowhere/page.html"],
        ["-S", "data.source=elsewhere"],
        ["-S", "data.clases=[bolt]"],
        ["-S", "data.classes=[screw]"],
    ],
)
def test_a_wrong_argument_is_named(command: Command, tmp_path: Path, arguments: Sequence[str]) -> None:
    folder = write_coco(tmp_path / "set", CLEAN)
    named = {"page.pdf": "page.pdf", "nowhere/page.html": "nowhere"}.get(arguments[1], arguments[1].partition("=")[0])
    assert named.removesuffix("s") in message(command(folder, *arguments))
