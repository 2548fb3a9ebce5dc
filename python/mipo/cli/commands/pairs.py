"""`mipo pairs`: preference pairs from prompts, counterparts and responses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mipo.cli.console import batches_of_prompts, print_rows, scan_table
from mipo.cli.options import HELP, Counterparts, Output, Prompts, mirrors
from mipo.cli.values import WholeNumber
from mipo.io import outputs, tables
from mipo.io.lazy import pl
from mipo.pairing.filter import BATCH_ROWS, KINDS
from mipo.pairing.join import COUNTERPARTS, join
from mipo.prompts.rows import read


@mirrors(read)
def command(
    prompts: Prompts,
    /,
    *,
    counterparts: Counterparts,
    responses: Annotated[Path, Parameter(help="what `mipo generate` wrote")],
    output: Output,
    batch_rows: Annotated[WholeNumber, Parameter(help=HELP["batch_rows"])] = BATCH_ROWS,
    **options: Any,
) -> None:
    """Writes the pairs; the tables may be of any size."""
    tables.check_name(output)
    outputs.check_file(output)
    with _on_disk(prompts, output, batch_rows, options) as table:
        others = scan_table(counterparts, COUNTERPARTS), scan_table(responses, KINDS)
        rows_in, _, dropped = join(table, *others, output, batch_rows=batch_rows)
    print_rows(output, rows_in, dropped)


@contextmanager
def _on_disk(source: str | Path, output: Path, batch_rows: int, options: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
    """The prompts in a temporary file beside the output, so that memory holds `batch_rows` rows of a Parquet file."""
    folder = output.with_name(f".{output.name}.prompts.{os.getpid()}.tmp")
    try:
        tables.write(batches_of_prompts(source, batch_rows, options), folder / "prompts.parquet")
        yield tables.scan(folder / "prompts.parquet")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
