"""Values: how an argument of some type is written on the command line, where cyclopts' way is not ours.

Knows types and words of a command line. Knows no option.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token


def column_and_number(_: Any, tokens: Sequence[Token]) -> tuple[str, float]:
    """`prompt=50` as ("prompt", 50.0)."""
    column, _, number = tokens[0].value.rpartition("=")
    try:
        return column, float(number)
    except ValueError:
        raise ValueError(f"expected COLUMN=NUMBER, got {tokens[0].value!r}.") from None


def paths_by_name(_: Any, tokens: Sequence[Token]) -> dict[str, Path]:
    """`a=runs/a` and `b=runs/b`, each from an option of its own, as a dictionary."""
    paths = {}
    for token in tokens:
        name, _, path = token.value.partition("=")
        if not name or not path:
            raise ValueError(f"expected NAME=RUN, got {token.value!r}.")
        paths[name] = Path(path)
    return paths


def whole_number(_: Any, tokens: Sequence[Token]) -> int:
    """`3` as 3; `2.7`, which cyclopts would round, is refused."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"expected a whole number, got {tokens[0].value!r}.") from None


WholeNumber = Annotated[int, Parameter(converter=whole_number)]

# A type as functions have it, and as it is read; types that are not here are read as what they are.
WRITTEN: dict[Any, Any] = {
    bool: Annotated[bool, Parameter(show_default=False)],
    str | Path: Annotated[str | Path, Parameter(metavar="PATH")],
    str | Path | None: Annotated[str | Path | None, Parameter(metavar="PATH")],
    int: WholeNumber,
    int | None: Annotated[int | None, Parameter(converter=whole_number)],
    Sequence[str]: Annotated[Sequence[str], Parameter(consume_multiple=True, metavar="COLUMN ...", show_default=False)],
    tuple[str, float] | None: Annotated[str | None, Parameter(converter=column_and_number, metavar="COLUMN=NUMBER")],
    Mapping[str, Path] | None: Annotated[list[str] | None, Parameter(converter=paths_by_name, metavar="NAME=RUN")],
}
