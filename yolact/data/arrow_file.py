"""The index of a split in shards: its images, where each one is, and their objects, as a memory-mapped Arrow file.

An Arrow IPC file has one row per image, in record batches of `ROWS` images; pandas, Polars and DuckDB read it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact.data.columns import CocoImage, CocoObject, Columns, Rows, Texts
from yolact.errors import DataError

ROWS = 4096
"""Images in a record batch, the last one aside: what the writer holds in memory."""

VERSION = "2"
"""Of the columns and the metadata."""

FIX = "Run the preprocess step again: dvc repro -f preprocess"


def index_path(annotations: Path) -> Path:
    """Path of the index that belongs to an instances file."""
    return annotations.with_suffix(".arrow")


@dataclass(frozen=True)
class Facts:
    """What the index says of the whole split."""

    categories: Sequence[tuple[int, str]]
    """Id and name, in ascending order of the ids."""
    annotations_size: int
    """Size of the instances file with the same content, bytes."""
    shards_digest: str
    """SHA-256 (hex) over the images in the shards and their division, see `yolact.data.shards.shards_digest`."""


def write_index(path: Path, facts: Facts, images: Iterable[tuple[CocoImage, Sequence[CocoObject]]], count: int) -> None:
    """Write the index of ``count`` images; equal content gives equal bytes.

    Args:
        path: a new file.
        facts: its metadata.
        images: each image, in order, with its objects.
        count: their number.
    """
    import pyarrow as pa

    metadata = {"version": VERSION, "categories": json.dumps(list(facts.categories))}
    metadata |= {"annotations_size": str(facts.annotations_size), "shards_digest": facts.shards_digest}
    schema = _schema().with_metadata(metadata)
    rows = iter(images)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, count, ROWS):
            some = [next(rows) for _ in range(min(ROWS, count - start))]
            part = Columns.of([image for image, _ in some], [objects for _, objects in some])
            writer.write_batch(pa.RecordBatch.from_arrays(_arrays(part), schema=schema))


def _schema() -> Any:
    import pyarrow as pa

    box = pa.list_(pa.float64(), 4)
    return pa.schema(
        [
            ("id", pa.int64()),
            ("file_name", pa.large_string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("shard", pa.int32()),
            ("offset", pa.int64()),
            ("length", pa.int64()),
            ("crc32", pa.uint32()),
            ("label", pa.large_list(pa.field("item", pa.int32(), nullable=False))),
            ("box", pa.large_list(pa.field("item", box, nullable=False))),
            ("crowd", pa.large_list(pa.field("item", pa.int8(), nullable=False))),
            ("segmentation", pa.large_list(pa.field("item", pa.large_string(), nullable=False))),
            ("compressed", pa.large_list(pa.field("item", pa.int8(), nullable=False))),
        ]
    )


def _arrays(part: Columns) -> list[Any]:
    """Arrow arrays over a part's memory, in the order of the schema."""
    import pyarrow as pa

    schema = _schema()

    def texts(found: Texts) -> Any:
        return pa.LargeStringArray.from_buffers(
            len(found.ends) - 1, pa.py_buffer(found.ends), pa.py_buffer(found.block)
        )

    def lists(name: str, values: Any) -> Any:
        return pa.LargeListArray.from_arrays(part.first, values, type=schema.field(name).type)

    boxes = pa.FixedSizeListArray.from_arrays(part.boxes.reshape(-1), type=schema.field("box").type.value_type)
    return [
        pa.array(part.ids),
        texts(part.file_names),
        *(pa.array(found) for found in (part.widths, part.heights)),
        *(pa.array(found) for found in (part.shards, part.offsets, part.lengths, part.checksums)),
        lists("label", pa.array(part.labels)),
        lists("box", boxes),
        lists("crowd", pa.array(part.crowd)),
        lists("segmentation", texts(part.segmentations)),
        lists("compressed", pa.array(part.compressed)),
    ]


class MappedRows(Rows):
    """The rows of an index, in the memory that the file is mapped to; a pickled copy maps it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts, parts = _read(path)
        super().__init__(parts)

    def __reduce__(self) -> tuple[type[MappedRows], tuple[Path]]:
        return MappedRows, (self.path,)


def read_index(path: Path) -> MappedRows:
    """Map an index into memory.

    Raises:
        DataError: the file is damaged or has another version, or the instances file next to it has another size than
            the one that it was made from.
    """
    rows = MappedRows(path)
    annotations = path.with_suffix(".json")
    if annotations.is_file() and annotations.stat().st_size != rows.facts.annotations_size:
        raise DataError(f"{path}: was not made from {annotations.name}, which has changed. {FIX}")
    return rows


def _read(path: Path) -> tuple[Facts, list[Columns]]:
    import pyarrow as pa

    try:
        # Without threads: loader processes are forked later.
        reader = pa.ipc.open_file(pa.memory_map(str(path)), options=pa.ipc.IpcReadOptions(use_threads=False))
        metadata = reader.schema.metadata or {}
        if metadata.get(b"version") != VERSION.encode() or not reader.schema.equals(_schema()):
            raise DataError(f"{path}: is not an index of version {VERSION}. {FIX}")
        categories = [(number, name) for number, name in json.loads(metadata[b"categories"])]
        facts = Facts(categories, int(metadata[b"annotations_size"]), metadata[b"shards_digest"].decode())
        return facts, [_columns(reader.get_batch(number)) for number in range(reader.num_record_batches)]
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}. {FIX}") from error


def _columns(batch: Any) -> Columns:
    """Views of a record batch."""

    def values(name: str) -> Any:
        return batch.column(name).values

    label = batch.column("label")
    return Columns(
        ids=batch.column("id").to_numpy(),
        file_names=_texts(batch.column("file_name")),
        widths=batch.column("width").to_numpy(),
        heights=batch.column("height").to_numpy(),
        shards=batch.column("shard").to_numpy(),
        offsets=batch.column("offset").to_numpy(),
        lengths=batch.column("length").to_numpy(),
        checksums=batch.column("crc32").to_numpy(),
        first=label.offsets.to_numpy(),
        labels=label.values.to_numpy(),
        boxes=values("box").values.to_numpy().reshape(-1, 4),
        crowd=values("crowd").to_numpy(),
        segmentations=_texts(values("segmentation")),
        compressed=values("compressed").to_numpy(),
    )


def _texts(column: Any) -> Texts:
    _, ends, block = column.buffers()
    return Texts(np.frombuffer(ends, dtype=np.int64, count=len(column) + 1), memoryview(block or b""))
