"""`mipo recipe`: every setting that a recipe may hold."""

from typing import Annotated

from cyclopts import Parameter

from mipo.run import recipe_text


def command(
    *, schema: Annotated[bool, Parameter(help="print the JSON Schema for editors instead", show_default=False)] = False
) -> None:
    """Prints a commented recipe with all defaults."""
    print(recipe_text.schema() if schema else recipe_text.commented(), end="")
