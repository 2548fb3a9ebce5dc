"""`mipo report`: a run's page and table."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mipo.cli.options import keywords, mirrors
from mipo.cli.values import paths_by_name
from mipo.report import page


@mirrors(page.write)
def command(run: Annotated[Path, Parameter(help="a run folder")], /, **options: Any) -> None:
    """Writes the page again and prints the table."""
    options["beside"] = paths_by_name(options.get("beside", ()))
    path = page.write(run, **options)
    print(f"{page.table(run, **keywords(page.table, options))}\n\nreport: {path}")
