"""A reference in place of the raw data: what reads it gets the files that ingest would have written, or a message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.servers import s3_server, use_s3
from yolact.errors import DataError
from yolact.formats.sample import generate_sample
from yolact.settings import SampleConfig
from yolact_ops.settings.params import Params, load_params
from yolact_ops.sources import raw
from yolact_ops.sources.data_source import find_source, state_of
from yolact_ops.sources.raw import REFERENCE, bring, opened, write_reference
from yolact_ops.transfer.storage import make_client

FEW = SampleConfig(seed=3, train_images=6, val_images=3, min_size=64, max_size=96, max_objects=2)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a bucket with a data set, and with files that ingest leaves out."""
    folder = tmp_path / "s3" / "bucket"
    generate_sample(folder / "set", FEW)
    (folder / "set" / REFERENCE).write_text('{"fingerprint": "of another"}')
    (folder / "set" / "notes.txt").write_text("not read by any format")
    with s3_server(tmp_path / "s3") as address:
        use_s3(monkeypatch, address)
        yield folder


@pytest.fixture
def params(repository: Path) -> Params:
    base = load_params(repository / "conf" / "base.yaml")
    return base.model_copy(update={"data": base.data.model_copy(update={"source": "s3://bucket/set"})})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_reference_opens_as_the_files_that_ingest_brings(bucket: Path, params: Params, tmp_path: Path) -> None:
    bring(params, tmp_path / "copied", tmp_path / "downloads")
    expected = contents(tmp_path / "copied")
    assert sum(name.endswith(".jpg") for name in expected) == 9
    with opened(tmp_path / "copied", params) as folder:
        assert folder == tmp_path / "copied"
    write_reference(tmp_path / "referred", state_of(find_source(params.data)).fingerprint)
    assert list(contents(tmp_path / "referred")) == [REFERENCE]
    with opened(tmp_path / "referred", params) as folder:
        assert contents(folder) == expected
    assert not folder.exists()


@pytest.mark.parametrize("during", [False, True], ids=["before", "while it is fetched"])
def test_a_source_that_has_changed_since_is_refused(
    bucket: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: bool
) -> None:
    write_reference(tmp_path / "referred", state_of(find_source(params.data)).fingerprint)
    image = min(bucket.rglob("*.jpg"))

    def change() -> None:
        changed = image.read_bytes() + b"more"
        make_client().put_object(Bucket="bucket", Key=image.relative_to(bucket).as_posix(), Body=changed)

    def bring_and_change(*arguments: Any) -> None:
        bring(*arguments)
        change()

    if during:
        monkeypatch.setattr(raw, "bring", bring_and_change)
    else:
        change()
    with (
        pytest.raises(DataError, match=r"s3://bucket/set has changed since ingest .* Run the pipeline again"),
        opened(tmp_path / "referred", params),
    ):
        pytest.fail("must not be read")
