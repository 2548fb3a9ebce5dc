"""JSON Lines: the table in a file exactly, or the row that is refused.

polars reads it, and what polars would change is read from the lines themselves: values of many shapes, which stay the
row's own JSON, and what is no JSON to it. Knows nothing of prompts or chat messages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mipo.errors import InputError
from mipo.io import columns, nested
from mipo.io.columns import Kind
from mipo.io.lazy import pl
from mipo.io.lines import BOM, not_utf8, utf8_error

HALVES = "\0halves"  # a column that no file has: whether a text in the row has half of a surrogate pair
TOO_DEEP = "its JSON is nested too deeply to be read; give it flatter"
# Texts that polars may have converted from a number, a truth value, an object or a list in the JSON, or from half of a
# surrogate pair, which it turns into \0. Few real texts look like this; only these are compared with the file.
_SUSPECT = r'^(?:-?\d[\d.eE+-]*|true|false)$|^(?:\{["}]|\[(?:[\[{\]"\d-]|true|false|null))|\x00'


def load(
    source: str | Path, data: bytes | None, texts: Mapping[str, Kind], before: tuple[int, int] = (0, 0), *,
    marks_halves: bool = False,
) -> pl.DataFrame:  # fmt: skip
    """The table in a file, or in the part of it after so many rows and lines.

    No table holds half of a surrogate pair. With `marks_halves` a text or chat with one is null, and the column
    `HALVES` is there and true in its row; without, it is refused.
    """
    texts = {column: kind for column, kind in texts.items() if kind in ("text", "chat", "data")}
    try:
        frame = _read_ndjson(source if data is None else data)
    except pl.exceptions.PolarsError as error:
        data = (Path(source).read_bytes() if data is None else data).removeprefix(BOM)
        if not data.strip():
            raise InputError(f"{source}: the file is empty") from None
        return _parse(data, source, str(error), before, texts, marks_halves)
    names = [column for column in texts if column in frame.columns]
    free = {column for column in names if texts[column] == "data" or columns.is_nested(frame.schema[column])}
    suspects = frame.select(pl.any_horizontal(pl.lit(False), *(_suspect(frame, c) for c in names))).to_series()
    if free or suspects.any():
        data = (Path(source).read_bytes() if data is None else data).removeprefix(BOM)
        free |= _converted(frame, set(suspects.arg_true()), _lines(data, source, before), set(names) - free)
    if free:
        # The values of these columns as the file has them, without the fields of other rows.
        places, lines = zip(*_lines(data or b"", source, before), strict=True)
        own = _own([json.loads(line) for line in lines], {name: texts[name] for name in free}, places, marks_halves)
        frame = frame.with_columns(own)
    return frame


def _read_ndjson(source: str | Path | bytes) -> pl.DataFrame:
    if isinstance(source, bytes):
        return pl.read_ndjson(source, infer_schema_length=None)
    with Path(source).open("rb") as file:  # of a path, polars makes a pattern
        return pl.read_ndjson(file, infer_schema_length=None)


def _parse(
    data: bytes, source: str | Path, complaint: str, before: tuple[int, int], texts: Mapping[str, Kind],
    marks_halves: bool,
) -> pl.DataFrame:  # fmt: skip
    """The table of a file that polars refused with `complaint`; InputError names the row that is broken, if one is."""
    rows, places, constants = [], list[str](), list[str]()
    for place, line in _lines(data, source, before):
        known = len(constants)
        if (problem := utf8_error(line)) is not None:
            raise InputError(f"{place}: {not_utf8(problem)}")
        try:
            row = json.loads(line, parse_constant=constants.append)  # NaN is null: what pandas means by it
        except ValueError as error:
            raise InputError(f"{place}: not valid JSON ({error})") from None
        except RecursionError:
            raise InputError(f"{place}: {TOO_DEEP}") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected a JSON object, got {columns.kind_of(row)}")
        if len(constants) > known:
            _check_constants(json.loads(line), place, texts)
        rows.append(row)
        places.append(place)
    own = _own(
        rows, {name: kind for name, kind in texts.items() if any(name in row for row in rows)}, places, marks_halves
    )
    names = dict.fromkeys(name for row in rows for name in row)
    others = [{name: value for name, value in row.items() if name not in texts} for row in rows]
    is_all = names.keys() <= texts.keys()
    frame = pl.DataFrame(height=len(rows)) if is_all else _table_of(others, source, complaint)
    return frame.with_columns(own).select(*names, *(column.name for column in own if column.name == HALVES))


def _own(
    rows: Sequence[dict[str, Any]], texts: Mapping[str, Kind], places: Sequence[str], marks_halves: bool
) -> list[pl.Series]:
    """The columns of texts, chats or data that rows of JSON make, and `HALVES` where it is wanted and needed."""
    values = {column: [row.get(column) for row in rows] for column in texts}
    broken = set[int]()
    if marks_halves:
        for cells in (values[column] for column, kind in texts.items() if kind != "data"):
            halves = [row for row, value in enumerate(cells) if not nested.is_encodable(value)]
            for row in halves:
                cells[row] = None
            broken.update(halves)
    own = [columns.of_values(values[name], name, kind, places.__getitem__) for name, kind in texts.items()]
    return own + ([pl.Series(HALVES, [row in broken for row in range(len(rows))])] if broken else [])


def _table_of(rows: list[dict[str, Any]], source: str | Path, complaint: str) -> pl.DataFrame:
    """The table of rows, where polars refused their lines with `complaint`."""
    try:
        return _read_ndjson(b"\n".join(json.dumps(row).encode() for row in rows))
    except pl.exceptions.PolarsError:
        pass
    try:
        return pl.DataFrame(rows, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise InputError(f"{source}: its rows do not form a table ({complaint}; {error})") from None


def _check_constants(row: dict[str, Any], place: str, texts: Mapping[str, Kind]) -> None:
    """InputError for Infinity, which JSON does not have, and for NaN within a chat, where null is no missing value."""
    for column, value in row.items():
        wrong = [number for number in _floats(value) if not math.isfinite(number)]
        if column in texts and wrong and (isinstance(value, list) or not math.isnan(wrong[0])):
            raise columns.refused(place, column, texts[column], value)
        if infinite := [number for number in wrong if math.isinf(number)]:
            shown = json.dumps(infinite[0])
            raise InputError(f"{place}: column {column!r}: expected a finite number, got {shown}; write null")


def _floats(value: Any) -> Iterator[float]:
    """The floats in a JSON value, at any depth."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _floats(inner)


def _lines(data: bytes, source: str | Path, before: tuple[int, int]) -> Iterator[tuple[str, bytes]]:
    """Each row's name in messages, and its line; blank lines are not rows."""
    row, lines = before
    for number, line in enumerate(data.split(b"\n"), start=lines + 1):
        if line.strip():
            row += 1
            yield f"{source}: row {row}" + (f" (line {number})" if number != row else ""), line


def _suspect(frame: pl.DataFrame, column: str) -> pl.Expr:
    """Whether polars may have converted a row's text from another type."""
    kind = frame.schema[column]
    if kind == pl.String:
        return pl.col(column).str.contains(_SUSPECT).fill_null(False)
    if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
        names = [field.name for field in kind.inner.fields if field.dtype == pl.String]
        fields = [pl.element().struct.field(name).str.contains(_SUSPECT).fill_null(False) for name in names]
        return pl.col(column).list.eval(pl.any_horizontal(pl.lit(False), *fields)).list.any().fill_null(False)
    return pl.lit(False)


def _converted(
    frame: pl.DataFrame, suspects: set[int], lines: Iterable[tuple[str, bytes]], names: Iterable[str]
) -> set[str]:
    """Those of the columns in which one of the rows `suspects` has another value in its line than in the table."""
    converted = set[str]()
    for row, (_, line) in enumerate(lines):
        if row in suspects:
            values = json.loads(line)
            converted |= {name for name in names if not _equal(values.get(name), frame[name][row])}
    return converted


def _equal(value: Any, cell: Any) -> bool:
    """Whether a cell of the table is the JSON value; a missing field is null in the table."""
    if isinstance(cell, dict):
        return isinstance(value, dict) and all(_equal(value.get(name), inner) for name, inner in cell.items())
    if isinstance(cell, list | pl.Series):
        return isinstance(value, list) and len(value) == len(cell) and all(map(_equal, value, cell))
    return type(value) is type(cell) and bool(value == cell)
