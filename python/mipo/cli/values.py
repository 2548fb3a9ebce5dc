"""Values: how arguments are written on the command line, for types that cyclopts reads in another way.

Knows types and the words of a command line, and no option.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from mipo.errors import InputError


def column_and_number(_: Any, tokens: Sequence[Token]) -> tuple[str, float]:
    """`prompt=50` as ("prompt", 50.0)."""
    column, _, number = tokens[0].value.rpartition("=")
    try:
        return column, float(number)
    except ValueError:
        raise ValueError(f"expected COLUMN=NUMBER, got {tokens[0].value!r}.") from None


def paths_by_name(words: Sequence[str]) -> dict[str, Path]:
    """`a=runs/a` and `b=runs/b` as a dictionary; commands call it, since cyclopts cannot convert repeated options."""
    paths = {}
    for word in words:
        name, _, path = word.partition("=")
        if not name or not path:
            raise InputError(f"--beside: expected NAME=RUN, got {word!r}; for example --beside shuffled=runs/shuffled")
        if name in paths:
            raise InputError(f"--beside: expected each name once, got {name!r} again; name the runs apart")
        paths[name] = Path(path)
    return paths


def json_object(_: Any, tokens: Sequence[Token]) -> dict[str, Any]:
    """`{"a": 1}` as a dictionary."""
    try:
        value = json.loads(tokens[0].value)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {tokens[0].value!r}.")
    return value


def whole_number(_: Any, tokens: Sequence[Token]) -> int:
    """`3` as 3; `2.7`, which cyclopts would round, is refused."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"expected a whole number, got {tokens[0].value!r}.") from None


WholeNumber = Annotated[int, Parameter(converter=whole_number)]

# A type in a function's signature, and how it is read; other types are read as cyclopts reads them.
WRITTEN: dict[Any, Any] = {
    bool: Annotated[bool, Parameter(show_default=False)],
    str | Path: Annotated[str | Path, Parameter(metavar="PATH")],
    str | Path | None: Annotated[str | Path | None, Parameter(metavar="PATH")],
    int: WholeNumber,
    int | None: Annotated[int | None, Parameter(converter=whole_number)],
    Sequence[str]: Annotated[Sequence[str], Parameter(consume_multiple=True, metavar="COLUMN ...", show_default=False)],
    tuple[str, float] | None: Annotated[
        tuple[str, float] | None, Parameter(converter=column_and_number, n_tokens=1, metavar="COLUMN=NUMBER")
    ],
    tuple[str, ...]: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, metavar="URL ...", show_default=False)
    ],
    Mapping[str, Any] | None: Annotated[
        Mapping[str, Any] | None, Parameter(converter=json_object, n_tokens=1, accepts_keys=False, metavar="JSON")
    ],
    Mapping[str, Path] | None: Annotated[list[str] | None, Parameter(metavar="NAME=RUN")],
}
