"""The scans of any number of parts, merged, give the bytes that preprocess writes in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.preprocess import step as preprocess
from components.scan import step as scan
from yolact.errors import DataError, SettingsError
from yolact.formats.sample import generate_sample
from yolact.settings import SampleConfig
from yolact_ops.scanning.scan import Scan
from yolact_ops.settings.params import Params, load_params

SAMPLE = SampleConfig(seed=5, train_images=19, val_images=8, min_size=64, max_size=96, max_objects=3)

ORIENTATION = 0x0112


@pytest.fixture
def params(repository: Path) -> Callable[..., Params]:
    base = load_params(repository / "conf" / "base.yaml")

    def with_data(**changes: Any) -> Params:
        split = base.data.split.model_copy(update={"val": 0.3, "test": 0.2})
        data = base.data.model_copy(update={"split": split, "max_problems": 100, "max_dropped": 1.0, **changes})
        return base.model_copy(update={"data": data})

    return with_data


@dataclass(frozen=True)
class Written:
    """What preprocess wrote into a folder, and the message with which it stopped, if it did."""

    folder: Path
    error: str

    @property
    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


def written(call: Callable[..., None], folder: Path, **arguments: Any) -> Written:
    error = ""
    try:
        call(processed_dir=folder / "processed", report_dir=folder / "report", workers=1, **arguments)
    except DataError as found:
        error = str(found).replace(str(folder), "")
    return Written(folder, error)


def scans(params: Params, raw: Path, folder: Path, parts: int, workers: int = 1) -> list[Path]:
    folders = [folder / f"part-{part}" for part in range(parts)]
    for part, target in enumerate(folders):
        scan.run(params, raw_dir=raw, scan_dir=target, part=part, parts=parts, workers=workers)
    return folders


def in_one(params: Params, raw: Path, folder: Path) -> Written:
    return written(preprocess.run, folder / "one", params=params, raw_dir=raw)


def in_parts(params: Params, raw: Path, folder: Path, parts: int) -> Written:
    """The scans are merged in another order, and without the source."""
    found = scans(params, raw, folder / f"scans-{parts}", parts)
    hidden = raw.rename(raw.with_name("hidden"))
    try:
        return written(preprocess.run, folder / f"merged-{parts}", params=params, scans=found[::-1])
    finally:
        hidden.rename(raw)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    generate_sample(tmp_path / "sample", SAMPLE)
    return tmp_path / "sample"


@pytest.mark.parametrize("shard_size", [0, 4])
def test_any_number_of_parts_gives_the_bytes_of_one_process(
    sample: Path, params: Callable[..., Params], tmp_path: Path, shard_size: int
) -> None:
    settings = params(shard_size=shard_size, max_side=80)
    expected = in_one(settings, sample, tmp_path)
    assert not expected.error
    folder, least, most = ("shards", 7, 9) if shard_size else ("images", 27, 27)
    assert (
        least
        <= sum(name.startswith((f"processed/train/{folder}/", f"processed/eval/{folder}/")) for name in expected.files)
        <= most
    )
    for parts in (1, 3, 16, 40):  # 40: more than there are images
        assert in_parts(settings, sample, tmp_path, parts).files == expected.files


def test_each_part_may_be_read_from_a_copy_of_its_own(
    sample: Path, params: Callable[..., Params], tmp_path: Path
) -> None:
    found = []
    for part in range(2):
        copy = tmp_path / f"copy-{part}"
        shutil.copytree(sample, copy)
        found.append(tmp_path / f"part-{part}")
        scan.run(params(), raw_dir=copy, scan_dir=found[-1], part=part, parts=2, workers=1)
        shutil.rmtree(copy)
    merged = written(preprocess.run, tmp_path / "merged", params=params(), scans=found)
    assert merged.files == in_one(params(), sample, tmp_path).files


class Source:
    """A COCO data set of images with one rectangle each; some have an EXIF orientation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(
        self, name: str, size: tuple[int, int] = (60, 40), orientation: int = 1, masks_upright: bool = True
    ) -> None:
        number = len(self.images) + 1
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, exif=exif)
        width, height = size[::-1] if orientation >= 5 and masks_upright else size
        self.images.append({"id": number, "file_name": name, "width": width, "height": height})
        for category in (1, 1 + number % 2):
            outline = [2, 3, 12 + number, 3, 12 + number, 20 + category, 2, 20 + category]
            row = {"id": len(self.annotations) + 1, "image_id": number, "category_id": category}
            self.annotations.append(row | {"segmentation": [outline]})

    def write(self) -> Path:
        categories = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
        tree = {"images": self.images, "annotations": self.annotations, "categories": categories}
        (self.root / "labels.json").write_text(json.dumps(tree))
        return self.root


@pytest.fixture
def difficult(tmp_path: Path) -> Source:
    """Equal files, a broken image, a missing one, equal output names, an object without area, an orphan annotation."""
    source = Source(tmp_path / "raw")
    for number in range(8):
        source.add(f"{number}.png")
    source.add("a.bmp")
    source.add("a.bmp.png")  # what a.bmp becomes
    for name in ("broken.png", "missing.png", "twin.png"):
        source.add(name)
    shutil.copyfile(source.root / "0.png", source.root / "twin.png")
    (source.root / "broken.png").write_bytes(b"no image")
    (source.root / "missing.png").unlink()
    source.annotations[2]["segmentation"] = [[1, 1, 1, 1, 1, 1]]
    source.annotations.append(source.annotations[0] | {"id": 999, "image_id": 999})
    return source


@pytest.mark.parametrize("parts", [1, 3, 16])
@pytest.mark.parametrize("orientations", ["inferred", "stored", "undecided", "none"])
def test_problems_duplicates_and_orientations_are_those_of_one_process(
    difficult: Source, params: Callable[..., Params], tmp_path: Path, orientations: str, parts: int
) -> None:
    if orientations != "none":
        for number in range(4):
            difficult.add(f"turned-{number}.jpg", (48, 48), 6)
        difficult.add("3-half.jpg", orientation=3)
    if orientations in ("inferred", "stored"):
        difficult.add("x-voter.jpg", orientation=6, masks_upright=orientations == "inferred")
    raw = difficult.write()
    expected = in_one(params(), raw, tmp_path)
    merged = in_parts(params(), raw, tmp_path, parts)
    assert merged.files == expected.files
    assert merged.error == expected.error
    assert ("data.exif=upright or data.exif=as_stored" in expected.error) == (orientations == "undecided")
    stats = json.loads((expected.folder / "report/stats.json").read_text())
    reasons = "\n".join(f"{entry['file']}: {entry['reason']}" for entry in stats["problems"])
    for name in ("broken.png", "missing.png"):
        assert name in reasons
    assert "a.bmp.png: another image is written as 'a.bmp.png'" in reasons
    assert stats["dropped"]
    if orientations in ("inferred", "stored"):
        frame = "taken as drawn on the upright image" if orientations == "inferred" else "turned with it"
        assert f"are {frame}, as in the images whose size says so" in json.dumps(stats["findings"])


@pytest.fixture
def three(sample: Path, params: Callable[..., Params], tmp_path: Path) -> list[Path]:
    return scans(params(), sample, tmp_path / "scans", 3)


def test_the_number_of_workers_changes_no_byte_of_a_scan(
    sample: Path, params: Callable[..., Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolact_ops.scanning.workers.CHUNK", 2)
    monkeypatch.setattr("yolact_ops.scanning.scan.IMAGES_PER_TAR", 5)
    [one] = scans(params(), sample, tmp_path / "a", 1, workers=1)
    [two] = scans(params(), sample, tmp_path / "b", 1, workers=3)
    assert Written(one, "").files == Written(two, "").files
    assert len(list(one.glob("images-*.tar"))) == 6, "27 images"


def test_a_part_holds_its_own_images_alone(three: list[Path]) -> None:
    counts = [len(list(Scan.open(folder).results())) for folder in three]
    assert counts == [9, 9, 9]
    assert {path.name for path in three[1].iterdir()} == {"scan.json", "images.jsonl", "images-000000.tar"}


@pytest.mark.parametrize("chosen", [[], [0, 1], [1, 2], [0, 1, 1, 2]])
def test_missing_and_repeated_parts_are_refused(
    three: list[Path], params: Callable[..., Params], tmp_path: Path, chosen: list[int]
) -> None:
    with pytest.raises(DataError, match="the scans are not all parts of one data set, but parts"):
        preprocess.run(
            params(), scans=[three[n] for n in chosen], processed_dir=tmp_path / "p", report_dir=tmp_path / "r"
        )
    assert not (tmp_path / "p").exists()


def test_parts_of_different_data_are_refused(
    three: list[Path], params: Callable[..., Params], tmp_path: Path, sample: Path
) -> None:
    next(sample.rglob("*.jpg")).unlink()
    generate_sample(sample, SAMPLE.model_copy(update={"train_images": 20}))
    three[2] = scans(params(), sample, tmp_path / "new", 3)[2]
    with pytest.raises(DataError, match=r"not all parts of one data set, but parts 0 of 3 \(\w+\), 1 of 3"):
        preprocess.run(params(), scans=three, processed_dir=tmp_path / "p", report_dir=tmp_path / "r")


@pytest.mark.parametrize("file", ["scan.json", "images.jsonl", "images-000000.tar"])
def test_a_damaged_scan_is_named(three: list[Path], params: Callable[..., Params], tmp_path: Path, file: str) -> None:
    path = three[1] / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match=f"{file}: not what the scan step writes"):
        preprocess.run(params(), scans=three, processed_dir=tmp_path / "p", report_dir=tmp_path / "r")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("part", "parts"), [(3, 3), (-1, 3), (0, 0)])
def test_a_part_that_does_not_exist_is_refused(
    sample: Path, params: Callable[..., Params], tmp_path: Path, part: int, parts: int
) -> None:
    with pytest.raises(SettingsError, match=f"part: .*{part}"):
        scan.run(params(), raw_dir=sample, scan_dir=tmp_path / "scan", part=part, parts=parts)
