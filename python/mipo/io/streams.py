"""Streams: the rows of a source, a batch at a time and from any row on, without reading those before again.

Knows where in each file the rows are. What a source is, and what is refused in it, is in `mipo.io.sources`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from mipo.errors import InputError
from mipo.io import checksum, hub, jsonl, lines, sources, tables
from mipo.io.columns import Kind
from mipo.io.lazy import pa, pl, pq
from mipo.io.lines import Lines

_BUFFER = 1 << 20  # bytes of a Parquet column that are read at once


@dataclass(frozen=True)
class File:
    """A file of a source: how many rows it has, and where they are, if they are lines."""

    path: Path
    rows: int
    fields: tuple[str, ...]
    lines: Lines | None = None

    @property
    def is_parquet(self) -> bool:
        """Whether row groups can be read by themselves."""
        return self.path.suffix == ".parquet"

    def batches(
        self, rows: int, start: int, stop: int, texts: Mapping[str, Kind], marks_halves: bool = False
    ) -> Iterator[pl.DataFrame]:
        """Rows `start` to `stop`, at most `rows` at a time."""
        if self.is_parquet:
            return _parquet_batches(self.path, rows, start, stop)
        if self.lines:
            return _line_batches(self.path, self.lines, rows, start, stop, texts, marks_halves)
        return tables.batches(sources.load_file(self.path, texts, marks_halves=marks_halves)[start:stop], rows)


@dataclass(frozen=True)
class Stream:
    """A source that was opened with `open_stream`. It can be sent to another machine that has the same files.

    `fields` are the columns: of JSON Lines those of the first row, and those sought that any row has. `content` is as
    in `mipo.io.sources.content`. A source without `files` is a dataset.
    """

    source: str
    split: str
    content: str
    rows: int
    fields: tuple[str, ...]
    files: tuple[File, ...] | None

    @property
    def is_seekable(self) -> bool:
        """Whether rows can be read without reading all of a file."""
        return self.files is None or all(file.is_parquet or file.lines for file in self.files)

    def batches(
        self, rows: int, *, start: int = 0, stop: int | None = None, texts: Mapping[str, Kind] = sources.NO_TEXTS,
        marks_halves: bool = False,
    ) -> Iterator[pl.DataFrame]:  # fmt: skip
        """Rows `start` to `stop` of the table that `mipo.io.sources.load` reads, in order, at most `rows` at a time.

        Of Parquet, JSON Lines and datasets, little more than a batch is held in memory. A batch of JSON Lines has only
        the columns that occur in it, so batches may differ. For `marks_halves` see `mipo.io.jsonl.load`. Raises the
        errors of `load`.
        """
        stop = self.rows if stop is None else min(stop, self.rows)
        if self.files is None:
            for first in range(start, stop, rows):
                yield sources.frame_of(self._dataset, first, min(first + rows, stop))
            return
        before = 0
        for file in self.files:
            first, last = max(start - before, 0), min(stop - before, file.rows)
            if first < last:
                yield from file.batches(rows, first, last, texts, marks_halves)
            before += file.rows

    @cached_property
    def _dataset(self) -> Any:
        dataset = hub.load(self.source, self.split)
        if not Path(self.source).exists() and hub.fingerprint(dataset) != self.content:
            raise InputError(f"{self.source}: was changed on the hub meanwhile; run the same command again")
        return dataset

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_dataset"}


def of_parquet(path: Path, rows: int) -> Iterator[pl.DataFrame]:
    """The rows of a Parquet file in order, `rows` at a time (the last batch may have fewer)."""
    return tables.regroup(_open(path, (), None).batches(rows, 0, sys.maxsize, sources.NO_TEXTS), rows)


def open_stream(
    source: str | Path, *, split: str = "train", sought: Sequence[str] = (), scratch: Path | None = None
) -> Stream:
    """Reads JSON Lines once, to count rows, to note where they are, and to find which of the fields `sought` any has.

    Compressed files are unpacked into the folder `scratch`, which the caller cleans; without one, they are unpacked
    again by each call of `batches`. Raises the errors of `mipo.io.sources.load`.
    """
    files = sources.files_of(source, split)
    if files is None:
        dataset = hub.load(source, split)
        content = sources.content(source, split) if Path(source).exists() else hub.fingerprint(dataset)
        stream = Stream(str(source), split, content, len(dataset), tuple(dataset.column_names), None)
        stream.__dict__["_dataset"] = dataset
        return stream
    opened = tuple(_open(path, sought, scratch) for path in files)
    sources.check_same(files, [file.fields for file in opened], sought)
    fields = dict.fromkeys(name for file in opened for name in file.fields)
    rows = sum(file.rows for file in opened)
    return Stream(str(source), split, sources.content(source, split), rows, tuple(fields), opened)


def _open(path: Path, sought: Sequence[str], scratch: Path | None) -> File:
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty")
    if path.suffix == ".parquet":
        with _open_parquet(path) as file:
            return File(path, file.metadata.num_rows, tuple(file.schema_arrow.names))
    if sources.is_jsonl(path):
        copy = None
        if scratch and path.suffix in (".gz", ".xz"):
            scratch.mkdir(exist_ok=True)
            copy = scratch / checksum.of_value(str(path.absolute()))
        known = lines.survey(path, sought=sought, copy=copy)
        return File(path, known.rows, known.fields, known)
    frame = sources.load_file(path)
    return File(path, frame.height, tuple(frame.columns))


@contextmanager
def _open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, read in small pieces; polars would read several row groups at once."""
    tables.verify(path)
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
            sources.check_schema(file.schema_arrow, path)
            yield file
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({' '.join(str(error).split())})") from None


def _parquet_batches(path: Path, rows: int, start: int, stop: int) -> Iterator[pl.DataFrame]:
    with _open_parquet(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(accumulate(sizes, initial=0))
        wanted = [group for group in range(len(sizes)) if ends[group] < stop and ends[group + 1] > start]
        row = ends[wanted[0]] if wanted else 0
        for batch in file.iter_batches(rows, row_groups=wanted):
            first, last = max(start - row, 0), min(stop - row, len(batch))
            if first < last:
                yield _valid_frame(batch.slice(first, last - first), path, row + first)
            row += len(batch)


def _valid_frame(batch: pa.RecordBatch, path: Path, before: int) -> pl.DataFrame:
    """The batch as a frame. polars trusts that texts are UTF-8, so InputError names the row of one that is not."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        for row in range(len(batch)):
            try:
                batch.slice(row, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: row {before + row + 1}: not valid UTF-8 ({error})") from None
        raise
    return tables.from_arrow(batch)


def _line_batches(
    path: Path, known: Lines, rows: int, start: int, stop: int, texts: Mapping[str, Kind], marks_halves: bool
) -> Iterator[pl.DataFrame]:
    with known.at(start) as (file, number):
        row = start
        while row < stop and (block := list(islice(file, rows))):
            data = b"".join(block)
            if not lines.is_blank(data):
                frame = jsonl.load(path, data, texts, (row, number), marks_halves=marks_halves)
                yield frame.head(stop - row)  # a slice of rows without a field has none
                row += frame.height
            number += len(block)
