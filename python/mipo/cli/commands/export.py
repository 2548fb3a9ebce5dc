"""`mipo export`: pairs for another trainer."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mipo.cli.console import scan_table
from mipo.cli.options import Output, mirrors
from mipo.io import outputs, tables
from mipo.pairing.export import KINDS, export
from mipo.pairing.stored import StoredPairs


@mirrors(export)
def command(
    pairs: Annotated[Path, Parameter(help="a run's folder, or a file of pairs")], /, *, output: Output, **options: Any
) -> None:
    """Writes the pairs with the columns that the trainer reads."""
    tables.check_name(output)
    outputs.check_file(output)
    export(StoredPairs.find(pairs) or scan_table(pairs, KINDS), output, **options)
    print(f"pairs in {output}")
