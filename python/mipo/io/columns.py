"""Columns: what a text, a chat, a flag and an id are, in every table that mipo reads; any other value is refused.

Knows types, and what to do about a wrong one. Knows no file formats, and not which columns a stage needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mipo.errors import InputError
from mipo.io import nested
from mipo.io.lazy import pl

if TYPE_CHECKING:
    from mipo.io.tables import Table

Kind: TypeAlias = Literal["text", "chat", "flag", "id", "data"]
EXPECTED: dict[Kind, str] = {
    "text": "text",
    "chat": "text or a list of messages [{role, content}, …]",
    "flag": "true or false",
    "id": "a whole number from 0",
    "data": "lists, structs, numbers and texts",
}


def read(table: Table, kinds: Mapping[str, Kind], name: object, *, before: int = 0) -> Table:
    """The table with these of its columns, where it has them, in one type each: String, lists of structs with a role,
    Boolean, UInt64. `data` is of any type that Arrow itself has.

    Categorical, enum and dictionary texts become text, and arrays become lists. Texts and chats that are stored as JSON
    (`mipo.io.nested`) are read from it. A flag may be 0 or 1, an id a whole float, and both may be text, as in a CSV
    file. NaN is null. Raises InputError for any other value, with `name`, the row (the first one is `before` + 1) and
    the column. Of a LazyFrame only flags and ids of other types are read here, and what is stored as JSON.
    """
    schema = table.lazy().collect_schema()
    changed = list[pl.Expr | pl.Series]()
    for column, kind in kinds.items():
        if column not in schema:
            continue
        if unknown := nested.extensions(schema[column]) - {nested.NAME}:
            raise InputError(
                f"{name}: column {column!r}: expected {EXPECTED[kind]}, got the Arrow extension type {min(unknown)!r}, "
                "of which only its storage is known; write the rows as JSON Lines with the values themselves"
            )
        if _is_stored_as_json(schema[column], kind):
            changed.append(_read_json(table.lazy().select(column).collect()[column], kind, name, before))
        elif (own := _expression(table, column, schema[column], kind, name, before)) is not None:
            changed.append(own)
    return table.with_columns(changed) if changed else table


def refused(place: object, column: str, kind: Kind, value: Any) -> InputError:
    """The error for a value in the row `place` that is not of its column's kind."""
    expected, remedy = EXPECTED[kind], _remedy(kind, value)
    return InputError(f"{place}: column {column!r}: expected {expected}, got {_shown(value)}; {remedy}")


def kind_of(value: Any) -> str:
    """The name of a JSON value's type, with its article."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    names |= {type(None): "null", int: "a number", float: "a number", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")


def of_values(values: Sequence[Any], column: str, kind: Kind, place: Callable[[int], object]) -> pl.Series:
    """The column of texts, chats or data that JSON values make; `place` names a row in the InputError for another."""

    def refuse(row: int) -> InputError:
        return refused(place(row), column, kind, values[row])

    if kind == "data":
        for row, value in enumerate(values):
            if not nested.is_encodable(value):
                raise refuse(row)
        return nested.of_json(values, column)
    if kind == "text":
        for row, value in enumerate(values):
            if not isinstance(value, str | None):
                raise refuse(row)
    return nested.of_chats(values, refuse, column)


def is_nested(dtype: pl.DataType) -> bool:
    """Whether lists of this type hold anything but messages whose fields are all text."""
    if not isinstance(dtype, pl.List):
        return False
    inner: Any = dtype.inner
    fields = inner.fields if isinstance(inner, pl.Struct) else []
    return inner != pl.Null and not (fields and all(field.dtype in (pl.String, pl.Null) for field in fields))


def _is_stored_as_json(dtype: pl.DataType, kind: Kind) -> bool:
    """Whether texts, chats, or the role or content of messages are JSON."""
    if kind not in ("text", "chat") or nested.NAME not in nested.extensions(dtype):
        return False
    inner: Any = dtype.inner if isinstance(dtype, pl.List) else None
    fields = {field.name: field.dtype for field in inner.fields} if isinstance(inner, pl.Struct) else {}
    return fields.get("role") != pl.String or nested.is_json(fields.get("content", pl.Null()))


def _read_json(column: pl.Series, kind: Kind, name: object, before: int) -> pl.Series:
    """The texts or chats in a column that is stored as JSON."""
    try:
        values = nested.values(column)
    except ValueError as error:
        raise InputError(f"{name}: column {column.name!r}: not valid JSON ({error})") from None
    return of_values(values, column.name, kind, lambda row: f"{name}: row {before + row + 1}")


def _expression(table: Table, column: str, dtype: pl.DataType, kind: Kind, name: object, before: int) -> pl.Expr | None:
    """What turns a column into its kind's type; None where it has this type. InputError for a value that is not one."""
    if kind == "data":
        return None
    if kind in ("flag", "id"):
        if dtype == (pl.Boolean if kind == "flag" else pl.UInt64):
            return None
        value, wrong = (_flag if kind == "flag" else _id)(column, dtype)
    else:
        plain = _plain(dtype)
        if plain == pl.String or (kind == "chat" and _is_chat(plain)):
            return None if plain == dtype else pl.col(column).cast(plain)
        present = pl.col(column).is_not_null()
        # Of a column without values only the type is wrong.
        value, wrong = pl.lit(None, pl.String), present & pl.col(column).is_not_nan() if dtype.is_float() else present
    first = table.lazy().select(column).with_row_index("row").filter(wrong).head(1).collect().rows()
    if first:
        raise refused(f"{name}: row {before + first[0][0] + 1}", column, kind, first[0][1])
    return value.alias(column)


def _flag(column: str, dtype: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """A column as truth values, and which of its values are none."""
    if not (dtype.is_numeric() or _plain(dtype) == pl.String):
        return pl.lit(None, pl.Boolean), pl.col(column).is_not_null()
    text = _number(column, dtype).cast(pl.String).str.to_lowercase()
    true, false = text.is_in(["true", "1", "1.0"]), text.is_in(["false", "0", "0.0"])
    return pl.when(text.is_not_null()).then(true), (~(true | false)).fill_null(False)


def _id(column: str, dtype: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """A column as whole numbers, and which of its values are none."""
    if not (dtype.is_numeric() or dtype == pl.Null or _plain(dtype) == pl.String):
        return pl.lit(None, pl.UInt64), pl.col(column).is_not_null()
    number = _number(column, dtype)
    whole = number.cast(pl.UInt64, strict=False)
    cut = number != number.floor() if dtype.is_float() else pl.lit(False)
    return whole, number.is_not_null() & (whole.is_null() | cut)


def _number(column: str, dtype: pl.DataType) -> pl.Expr:
    """A column of numbers or text with NaN, and the text that CSV has in place of a missing value, as null."""
    if dtype.is_float():
        return pl.col(column).fill_nan(None)
    return pl.col(column) if dtype.is_numeric() else pl.col(column).cast(pl.String).replace("", None)


def _plain(dtype: pl.DataType) -> pl.DataType:
    """The type with String for other types of text, and lists for arrays."""
    if isinstance(dtype, pl.Categorical | pl.Enum | pl.Null):
        return pl.String()
    if isinstance(dtype, pl.List | pl.Array):
        inner: Any = dtype.inner
        return pl.List(inner if inner == pl.Null else _plain(inner))
    if isinstance(dtype, pl.Struct):
        fields: list[Any] = dtype.fields
        return pl.Struct(
            {field.name: field.dtype if field.dtype == pl.Null else _plain(field.dtype) for field in fields}
        )
    return dtype


def _is_chat(dtype: pl.DataType) -> bool:
    """Whether a type is that of lists of messages, or of empty lists."""
    inner: Any = dtype.inner if isinstance(dtype, pl.List) else None
    if isinstance(inner, pl.Struct):
        return any(field.name == "role" and field.dtype in (pl.String, pl.Null) for field in inner.fields)
    return isinstance(inner, pl.Null)


def _is_of_texts(message: Any) -> bool:
    """Whether a value is a message whose role and content are text."""
    return isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))


def _shown(value: Any) -> str:
    """A wrong value, for a message; a text is wrong only where it has no characters."""
    if isinstance(value, str):
        lone = any("\ud800" <= character <= "\udfff" for character in value)
        return "half of a surrogate pair, which is not a character" if lone else f"text: {value[:80]!r}"
    text = json.dumps(value, default=str, ensure_ascii=False)
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"{kind_of(value)}: {text if len(text) < 80 else text[:80] + '…'}"


def _remedy(kind: Kind, value: Any) -> str:
    """What to do about a value that is not of its kind."""
    if kind in ("flag", "id"):
        return "correct it, or leave the column out"
    if isinstance(value, str) or (kind == "chat" and isinstance(value, list) and all(map(_is_of_texts, value))):
        # Right by itself, but other rows are chats or texts.
        mixed = "write all rows as text, or all as lists of messages"
        return mixed if nested.is_encodable(value) else "write the whole character"
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            if kind == "text":
                return "give the text of the message alone"
            named = {"role", "content"} <= value[0].keys()
            return "write role and content as text" if named else "name the fields of a message role and content"
        return "give one text a row"
    if isinstance(value, dict):
        if kind == "chat" and value.keys() & {"role", "from"}:
            also = "" if "role" in value else ", and name its fields role and content"
            return f"wrap it in a list{also}"
        return "give its text alone"
    return "write it as text"
