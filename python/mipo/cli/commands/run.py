"""`mipo run`: from a recipe to a trained model and a report."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mipo.cli.options import keywords, mirrors
from mipo.cli.values import paths_by_name
from mipo.errors import InputError
from mipo.run.pipeline import run_recipe
from mipo.run.preview import dry_run as preview


@mirrors(run_recipe)
def command(
    recipe: Annotated[Path, Parameter(help="a YAML file")],
    /,
    *,
    dry_run: Annotated[bool, Parameter(help="show three pairs and an estimate, and stop", show_default=False)] = False,
    ask: Annotated[int, Parameter(help="with `dry_run`, prompts to ask for the estimate; answers are kept")] = 0,
    **options: Any,
) -> None:
    """Runs a recipe, or shows its first pairs with `dry_run`."""
    if ask and not dry_run:
        raise InputError(f"--ask: expected --dry-run with it, got --ask {ask} alone")
    if dry_run:
        print(preview(recipe, ask=ask, **keywords(preview, options)))
    else:
        run_recipe(recipe, **options | {"beside": paths_by_name(options.get("beside", ()))})
