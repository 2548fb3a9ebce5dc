"""Console: the tables that commands are given, and what they say of rows and errors.

Knows a command's arguments. Knows no command.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import NotThereError

if TYPE_CHECKING:
    import polars as pl

    from mipo.io.tables import Table

READING = ("prompt", "context", "split")


def read_prompts(args: argparse.Namespace) -> pl.DataFrame:
    """The prompts that a command was given, after it said which rows were dropped."""
    from mipo.prompts.rows import read

    found = read(args.prompts, **{name: getattr(args, name) for name in READING})
    tell(found.dropped.items(), found.rows_in, args.prompts)
    return found.frame


def read_held_out(args: argparse.Namespace) -> pl.DataFrame:
    """The held-out prompts, read as the others."""
    from mipo.prompts.rows import read

    return read(args.held_out, **{name: getattr(args, name) for name in READING}).frame


@contextmanager
def prompts_on_disk(args: argparse.Namespace) -> Iterator[pl.LazyFrame]:
    """As `read_prompts`, with `batch_rows` rows of a Parquet file in memory: what was read lies beside the output."""
    import polars as pl

    from mipo.io import tables
    from mipo.prompts.rows import read_batches

    lost, rows_in = dict[str, int](), 0

    def frames() -> Iterator[pl.DataFrame]:
        nonlocal rows_in
        for found in read_batches(args.prompts, args.batch_rows, **{name: getattr(args, name) for name in READING}):
            lost.update({reason: lost.get(reason, 0) + rows for reason, rows in found.dropped.items()})
            rows_in += found.rows_in
            yield found.frame.select(c for c in found.frame.columns if c in ("prompt_id", "prompt", "context"))

    path = args.output.with_name(f".{args.output.name}.prompts.{os.getpid()}.parquet")
    try:
        tables.write(frames(), path)
        tell(lost.items(), rows_in, args.prompts)
        yield pl.scan_parquet(path)
    finally:
        path.unlink(missing_ok=True)


def read_table(path: Path) -> pl.DataFrame:
    """The table in a file, or in a folder of Parquet parts."""
    return scan_table(path).lazy().collect()


def scan_table(path: Path) -> Table:
    """The table in a Parquet file or a folder of such, to be read as it goes; or that in a JSONL or CSV file."""
    from mipo.io.sources import scan

    if not path.exists():
        raise NotThereError(f"{path}: no such file")
    return scan(path)


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Writes a table as Parquet or JSONL, by the name of `path`, whole or not at all."""
    from mipo.io import tables

    tables.write_frame(frame, path)


def tell(dropped: Any, rows: int, where: Any) -> None:
    """Says how many rows went in and out, and why the others did not."""
    by_reason = dict(dropped)
    told = "".join(f"; {reason}: {n:,}" for reason, n in by_reason.items())
    print(f"{where}: {rows:,} rows in, {rows - sum(by_reason.values()):,} out{told}")


def say(error: Exception) -> str:
    """An error in one line, with what to do."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = "ray" if error.name.partition(".")[0] == "ray" else "train"
        return f"{error.name} is not installed; this command needs `pip install 'mipo[{extra}]'`"
    return str(error)
