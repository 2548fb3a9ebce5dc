"""Tables too large for memory: reads and writes a batch of rows at a time. A Parquet file carries its own checksum.

Knows rows and files. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias, TypeVar, cast

from mipo.errors import InputError
from mipo.io import checksum, files, nested, outputs
from mipo.io.lazy import _native, pa, pl, pq

if TYPE_CHECKING:
    Table: TypeAlias = pl.DataFrame | pl.LazyFrame

T = TypeVar("T")
ROW_GROUP = 65_536  # rows of a row group in a written file: readers hold several row groups at once


def height(table: Table) -> int:
    """How many rows the table has, without holding them in memory."""
    if isinstance(table, pl.DataFrame):
        return table.height
    rows: int = table.select(pl.len()).collect().item()
    return rows


def check_columns(table: Table, columns: Iterable[str], name: object) -> None:
    """InputError for a table `name` without one of the columns."""
    present = table.lazy().collect_schema().names()
    for column in columns:
        if column not in present:
            raise InputError(f"{name}: no column {column!r}; it has {', '.join(present) or 'no columns'}")


def digests(texts: pl.Series) -> pl.Series:
    """128 bits of each text, as text: equal for equal texts on every machine; null for null.

    The chance that two of 10⁹ different texts share a digest is below 10⁻²⁰.
    """
    halves = [pl.Series(half) for half in _native.digests(texts.fill_null("")).T.copy()]
    digest = pl.concat_str(*halves, separator=" ")
    return pl.select(pl.when(texts.is_not_null()).then(digest).alias(texts.name)).to_series()


def batches(table: Table, rows: int) -> Iterator[pl.DataFrame]:
    """The rows of `table` in order, `rows` at a time (the last batch may have fewer); a LazyFrame is read in batches.

    A table without rows is one batch without rows.
    """
    none = table.clear() if isinstance(table, pl.DataFrame) else table.collect_schema().to_frame()
    frames = [table] if isinstance(table, pl.DataFrame) else table.collect_batches(chunk_size=rows, lazy=True)
    empty = True
    for batch in regroup(_read(frames), rows):  # polars may split a batch in two
        yield batch
        empty = False
    if empty:
        yield none


def regroup(frames: Iterable[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """The rows of the frames in order, `rows` at a time (the last batch may have fewer)."""
    rest: pl.DataFrame | None = None
    for frame in frames:
        rest = pl.concat([rest, frame]) if rest is not None and rest.height else frame
        while rest.height >= rows:
            yield rest[:rows]
            rest = rest[rows:]
    if rest is not None and rest.height:
        yield rest


def _read(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same frames; InputError where a Parquet file of a LazyFrame, which knows no more of it, is broken."""
    try:
        yield from frames
    except pl.exceptions.ComputeError as error:
        if not str(error).startswith("parquet"):
            raise
        raise InputError(f"a Parquet file is broken ({' '.join(str(error).split())}); write it again") from None


def ahead(batches: Iterator[T]) -> Generator[T, None, None]:
    """The same batches; a thread makes the next one while the current one is in use."""
    with ThreadPoolExecutor(1) as thread:
        end = object()
        future = thread.submit(next, batches, end)
        while (batch := future.result()) is not end:
            future = thread.submit(next, batches, end)
            yield cast("T", batch)


def check_name(path: Path) -> None:
    """InputError unless the name of `path` ends in a format that `write` knows."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: expected a name that ends in .jsonl or .parquet, got {path.name!r}")


def write(frames: Iterable[pl.DataFrame], path: Path) -> None:
    """Writes one or more frames of one schema, in order, as JSONL or Parquet (zstd), by the name of `path`.

    Holds one frame at a time. The file is written whole or not at all (`mipo.io.files.whole`).
    """
    check_name(path)
    with files.whole(path) as temporary:
        if path.suffix == ".jsonl":
            with temporary.open("wb") as file:
                for frame in frames:
                    _write_ndjson(frame, file)
            return
        writer = None
        try:
            for frame in frames:
                table = to_arrow(frame).replace_schema_metadata(outputs.PARQUET_MARK)
                writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=ROW_GROUP)
            if writer:
                writer.add_key_value_metadata({"checksum": checksum.MARK + b"0" * checksum.DIGITS})
        finally:
            if writer:
                writer.close()
        if place := _place_of_checksum(temporary):
            checksum.stamp(temporary, place)


def _write_ndjson(frame: pl.DataFrame, file: IO[bytes]) -> None:
    """Writes the rows as lines of JSON; of a column that holds JSON, its values and not their text."""
    if not any(nested.NAME in nested.extensions(dtype) for dtype in frame.dtypes):
        frame.write_ndjson(file)
        return
    columns = [nested.values(column) for column in frame]
    for row in zip(*columns, strict=True):
        line = json.dumps(dict(zip(frame.columns, row, strict=True)), ensure_ascii=False, separators=(",", ":"))
        file.write(line.encode() + b"\n")


def scan(path: Path) -> pl.LazyFrame:
    """The table in a Parquet file of `write`, read lazily once its checksum is compared; else InputError."""
    verify(path)
    frame = pl.scan_parquet(path, glob=False)
    try:
        frame.collect_schema()
    except pl.exceptions.PolarsError:
        raise InputError(f"{path}: is not as mipo wrote it, or was cut off; make it again") from None
    return frame


def is_own(path: Path) -> bool:
    """Whether a Parquet file is as `write` wrote it."""
    try:
        verify(path)
        return outputs.is_own(pq.read_schema(path))
    except (InputError, pa.ArrowException, OSError):
        return False


def verify(path: Path) -> None:
    """InputError for a Parquet file of `write` that is not as it was written; knows nothing of other files.

    Reads every byte once, at the speed of memory or of the disk, and not again while the file stays the same.
    """
    state = path.stat()
    _verify(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _verify(path: Path, *_: int) -> None:
    place = _place_of_checksum(path)
    if place is None:
        return
    with path.open("rb") as file:
        file.seek(place)
        digits = file.read(checksum.DIGITS).decode("latin-1")
    if not checksum.is_stamped(path, place, digits):
        raise InputError(f"{path}: is not as mipo wrote it, or was cut off; make it again")


def _place_of_checksum(path: Path) -> int | None:
    """Where in a Parquet file its checksum stands: in the footer, whose length the last eight bytes tell."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        end = file.read()
        length = int.from_bytes(end[:4], "little") + 8
        if end[4:] != b"PAR1" or length > size:
            return None
        file.seek(size - length)
        place = file.read(length).rfind(checksum.MARK)
    return None if place < 0 else size - length + place + len(checksum.MARK)


def to_arrow(frame: pl.DataFrame) -> pa.Table:
    """The frame as an Arrow table, without string views."""
    # The views of a gathered column keep every buffer of the column that they were gathered from.
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def from_arrow(table: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """An Arrow table or batch as a frame, without a copy."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
