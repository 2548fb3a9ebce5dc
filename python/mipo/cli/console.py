"""Console: how commands read tables, and what they print about rows.

Knows a command's options, and no command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mipo.cli.options import keywords
from mipo.errors import NotThereError
from mipo.io import columns, sources, streams, tables
from mipo.io.columns import Kind
from mipo.io.lazy import pl
from mipo.prompts.rows import read, read_batches
from mipo.reasons import HALF_CHARACTER

if TYPE_CHECKING:
    from mipo.io.tables import Table

NO_ROW: Mapping[str, int] = {}


def read_prompts(source: str | Path, options: Mapping[str, Any]) -> pl.DataFrame:
    """The prompts in a file or dataset; prints how many rows were dropped, and why."""
    prompts = read(source, **keywords(read, options))
    print_rows(source, prompts.rows_in, prompts.dropped, prompts.first)
    return prompts.frame


def batches_of_prompts(source: str | Path, rows: int, options: Mapping[str, Any]) -> Iterator[pl.DataFrame]:
    """The ids, prompts and contexts in a source, `rows` rows at a time where it can be read so (`read_batches`).

    After the last, prints what `read_prompts` prints.
    """
    dropped, first, rows_in = Counter[str](), dict[str, int](), 0
    for prompts in read_batches(source, rows, **keywords(read_batches, options)):
        dropped.update(prompts.dropped)
        first = prompts.first | first
        rows_in += prompts.rows_in
        yield prompts.frame.select(c for c in prompts.frame.columns if c in ("prompt_id", "prompt", "context"))
    print_rows(source, rows_in, dropped, first)


def read_held_out(source: str | Path, split: str | None, options: Mapping[str, Any]) -> pl.DataFrame:
    """The held-out prompts in a file or dataset, read like the prompts; of another split if one is named."""
    return read(source, **keywords(read, options) | ({} if split is None else {"split": split})).frame


def scan_table(path: Path, kinds: Mapping[str, Kind]) -> Table:
    """The table in a Parquet file or a folder of these, read in batches; or the whole table in a JSONL or CSV file.

    `kinds` says what its columns hold; see `mipo.io.columns.read`.
    """
    if not path.exists():
        raise NotThereError(f"{path}: no such file")
    return columns.read(sources.scan(path, kinds), kinds, path)


def batches_of_table(path: Path, rows: int, kinds: Mapping[str, Kind], needed: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The table that `scan_table` reads, `rows` rows at a time. What is wrong is refused before the first is read.

    `needed` are columns that it must have.
    """
    table = scan_table(path, kinds)
    tables.check_columns(table, needed, path)
    if isinstance(table, pl.DataFrame) or not path.is_file():
        return tables.batches(table, rows)
    # polars would hold several row groups at once.
    return (cast("pl.DataFrame", columns.read(batch, kinds, path)) for batch in streams.of_parquet(path, rows))


def print_rows(where: str | Path, rows_in: int, dropped: Mapping[str, int], first: Mapping[str, int] = NO_ROW) -> None:
    """Prints how many rows went in and out, and how many were dropped for which reason.

    `first` is the first row of each reason; it is printed for half a character, which an editor does not show.
    """
    place = f", first in row {first[HALF_CHARACTER]:,}" if HALF_CHARACTER in first else ""
    reasons = "".join(f"; {why}: {rows:,}{place * (why == HALF_CHARACTER)}" for why, rows in dropped.items())
    print(f"{where}: {rows_in:,} rows in, {rows_in - sum(dropped.values()):,} out{reasons}")
