"""Console: the tables that commands are given, and what they print of rows.

Knows a command's options. Knows no command.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.cli.options import keywords
from mipo.errors import NotThereError
from mipo.io import sources
from mipo.prompts.rows import read

if TYPE_CHECKING:
    import polars as pl

    from mipo.io.tables import Table


def read_prompts(source: str | Path, options: Mapping[str, Any]) -> pl.DataFrame:
    """The prompts in a file or dataset, after it was printed which rows were dropped."""
    prompts = read(source, **keywords(read, options))
    print_rows(source, prompts.rows_in, prompts.dropped)
    return prompts.frame


def read_table(path: Path) -> pl.DataFrame:
    """The table in a file, or in a folder of Parquet parts."""
    return scan_table(path).lazy().collect()


def scan_table(path: Path) -> Table:
    """The table in a Parquet file or a folder of such, to be read as it goes; or that in a JSONL or CSV file."""
    if not path.exists():
        raise NotThereError(f"{path}: no such file")
    return sources.scan(path)


def print_rows(where: str | Path, rows_in: int, dropped: Mapping[str, int]) -> None:
    """Prints how many rows went in and out, and why the others did not."""
    reasons = "".join(f"; {reason}: {rows:,}" for reason, rows in dropped.items())
    print(f"{where}: {rows_in:,} rows in, {rows_in - sum(dropped.values()):,} out{reasons}")
