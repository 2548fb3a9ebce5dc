"""Tables too large for memory: read and written a batch of rows at a time.

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
                table = to_arrow(frame)
                writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=ROW_GROUP)
        finally:
            if writer:
                writer.close()


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Writes one frame as `write` does."""
    write([frame], path)


def to_arrow(frame: pl.DataFrame) -> pa.Table:
    """The frame as an Arrow table whose texts are no views."""
    # Not as views: those of a gathered column bring along every buffer of the column that they were gathered from.
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
