"""Tables too large for memory: read and written a batch of rows at a time, and kept apart in buckets on disk.

Knows rows and files. Knows nothing of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from mipo.errors import InputError
from mipo.io import files
from mipo.io.lazy import lazy

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    Table: TypeAlias = pl.DataFrame | pl.LazyFrame
else:
    pa = lazy("pyarrow")
    pl = lazy("polars")
    pq = lazy("pyarrow.parquet")

T = TypeVar("T")
# A pass splits its table into at most this many buckets: each row of a batch goes to any of them, and pieces of less
# than a thousandth of a batch would be mostly file headers. It bounds n at MOST_BUCKETS times the rows of a batch.
MOST_BUCKETS = 4096
ROW_GROUP = 65_536  # rows of a row group in what is written: readers hold several row groups at once


def height(table: Table) -> int:
    """How many rows the table has, without holding them."""
    if isinstance(table, pl.DataFrame):
        return table.height
    rows: int = table.select(pl.len()).collect().item()
    return rows


def digests(values: pl.Series) -> pl.Series:
    """128 bits of each value, as text: equal for equal values on any machine; null for null.

    Two of 10⁹ different values are equal in them with a chance below 10⁻²⁰.
    """
    text = pl.concat_str(values.hash(seed=1), values.hash(seed=2), separator=" ")
    return pl.select(pl.when(values.is_not_null()).then(text).alias(values.name)).to_series()


def batches(table: Table, rows: int) -> Iterator[pl.DataFrame]:
    """The rows of `table` in their order, `rows` at a time, the last batch less; a LazyFrame is read as it goes.

    A table without rows is one batch without rows.
    """
    held = table.clear() if isinstance(table, pl.DataFrame) else table.collect_schema().to_frame()
    whole = [table] if isinstance(table, pl.DataFrame) else table.collect_batches(chunk_size=rows, lazy=True)
    none = True
    # polars may give the last rows of a batch apart.
    for frame in whole:
        held = pl.concat([held, frame]) if held.height else frame
        while held.height >= rows:
            yield held[:rows]
            held, none = held[rows:], False
    if held.height or none:
        yield held


def ahead(batches: Iterator[T]) -> Generator[T, None, None]:
    """The same, each made by a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        end = object()
        made = thread.submit(next, batches, end)
        while (batch := made.result()) is not end:
            made = thread.submit(next, batches, end)
            yield cast("T", batch)


def check_name(path: Path) -> None:
    """InputError unless `write` knows the format that the name of `path` asks for."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: expected a name that ends in .jsonl or .parquet, got {path.name!r}")


def write(frames: Iterable[pl.DataFrame], path: Path) -> None:
    """Writes frames of one schema, at least one, one after another as JSONL or Parquet (zstd), by the name of `path`.

    Holds one frame at a time. Whole or not at all, as `mipo.io.files.whole`.
    """
    check_name(path)
    with files.whole(path) as temporary:
        if path.suffix == ".jsonl":
            with temporary.open("wb") as file:
                for frame in frames:
                    frame.write_ndjson(file)
            return
        writer = None
        try:
            for frame in frames:
                table = _arrow(frame)
                writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=ROW_GROUP)
        finally:
            if writer:
                writer.close()


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Writes one frame as `write` does."""
    write([frame], path)


class Buckets:
    """A table on disk, its rows in `count` buckets by a column of uint64: row r is in bucket r[column] mod count.

    Rows of a bucket keep the order in which they were put. Buckets are files under `folder`, which must be new.
    """

    def __init__(self, folder: Path, count: int, column: str) -> None:
        self.folder, self.count, self.column = folder, count, column
        self.empty: pl.DataFrame | None = None
        folder.mkdir()

    def put(self, frame: pl.DataFrame) -> None:
        """Adds the rows of a frame; all frames have one schema."""
        self.empty = frame.clear()
        bucket = (frame[self.column] % self.count).alias("bucket")
        if bucket.n_unique() > 1:
            frame = frame[bucket.to_frame().select(pl.arg_sort_by("bucket", maintain_order=True)).to_series()]
        table = _arrow(frame)
        start = 0
        for name, rows in bucket.value_counts().sort("bucket").iter_rows():
            # Appended, not held open: a process may have a thousand files open, and there may be more buckets.
            with pa.OSFile(str(self.folder / str(name)), "ab") as file, _stream(file, table.schema) as stream:
                stream.write_table(table.slice(start, rows))
            start += rows

    def take(self, bucket: int) -> pl.DataFrame:
        """The rows of one bucket, which are removed from the disk."""
        frame = self.read(bucket)
        (self.folder / str(bucket)).unlink(missing_ok=True)
        return frame

    def read(self, bucket: int) -> pl.DataFrame:
        """The rows of one bucket."""
        assert self.empty is not None, "nothing was put"
        path = self.folder / str(bucket)
        if not path.exists():
            return self.empty
        pieces = []
        with pa.OSFile(str(path)) as file:
            while file.tell() < file.size():
                pieces.append(pa.ipc.open_stream(file).read_all())
        frame = pl.from_arrow(pa.concat_tables(pieces), rechunk=False)
        assert isinstance(frame, pl.DataFrame)
        return frame


def _arrow(frame: pl.DataFrame) -> pa.Table:
    # Not as views: those of a gathered column bring along every buffer of the column that they were gathered from.
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _stream(file: pa.NativeFile, schema: pa.Schema) -> pa.RecordBatchStreamWriter:
    return pa.ipc.new_stream(file, schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
