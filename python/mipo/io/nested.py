"""Nested: values whose shape differs from row to row, kept as the JSON of each row.

One column type cannot hold them: each row would gain the keys of all others. They have Arrow's type for JSON,
`arrow.json`, which is also what `datasets` gives them. Knows what a chat is made of, and no file formats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mipo.io.lazy import pl

NAME = "arrow.json"


def json_type() -> pl.DataType:
    """The type of a column of JSON values."""
    return pl.Extension(NAME, pl.String(), "")


def is_json(dtype: Any) -> bool:
    """Whether a type is that of JSON values."""
    return isinstance(dtype, pl.BaseExtension) and dtype.ext_name() == NAME


def extensions(dtype: pl.DataType) -> set[str]:
    """The names of the Arrow extension types in a type, at any depth."""
    if isinstance(dtype, pl.BaseExtension):
        return {dtype.ext_name()}
    inner: list[Any] = [field.dtype for field in dtype.fields] if isinstance(dtype, pl.Struct) else []
    if isinstance(dtype, pl.List | pl.Array):
        inner = [dtype.inner]
    return set[str]().union(*map(extensions, inner))


def values(series: pl.Series) -> list[Any]:
    """The values as Python has them; JSON is parsed. Raises ValueError for a text that is not JSON."""
    cells, dtype = series.to_list(), series.dtype
    return [_parsed(cell, dtype) for cell in cells] if NAME in extensions(dtype) else cells


def of_json(values: Iterable[Any], name: str = "") -> pl.Series:
    """A column of JSON values. Raises UnicodeEncodeError for half of a surrogate pair."""
    texts = [None if value is None else _dumped(value) for value in values]
    return pl.Series(name, texts, dtype=pl.String).ext.to(json_type())


def of_chats(values: Sequence[Any], refuse: Callable[[int], Exception], name: str = "") -> pl.Series:
    """A column of texts or of chats, lists of messages whose fields are text where all of a field's values are.

    A message's other fields are JSON. Role is text, and content is text or a list of parts. Raises `refuse(row)` for
    any other value, and for half of a surrogate pair.
    """
    kind = next((type(value) for value in values if value is not None), str)
    if (wrong := next((row for row, value in enumerate(values) if not _is_chat(value, (str, list))), None)) is not None:
        raise refuse(wrong)
    if (other := next((row for row, value in enumerate(values) if not _is_chat(value, (kind,))), None)) is not None:
        raise refuse(other)
    if kind is str:
        return pl.Series(name, values, dtype=pl.String)
    mixed: dict[str, bool] = {"role": False}
    for message in (message for chat in values for message in chat or ()):
        for field, value in message.items():
            mixed[field] = mixed.get(field, False) or not isinstance(value, str | None)

    def cells(message: dict[str, Any]) -> dict[str, str | None]:
        return {field: _cell(message.get(field), mixed[field]) for field in mixed}

    rows = [None if chat is None else [*map(cells, chat)] for chat in values]
    fields = {field: json_type() if nested else pl.String() for field, nested in mixed.items()}
    return pl.Series(name, rows, dtype=pl.List(pl.Struct(fields)))


def is_encodable(value: Any) -> bool:
    """Whether UTF-8 has all characters of a JSON value, which it has not for half of a surrogate pair."""
    try:
        _dumped(value)
    except UnicodeEncodeError:
        return False
    return True


def concat(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The rows of all frames, whose chats may differ in the fields of their messages; a column may be missing in some.

    Raises polars' errors where columns of one name have no type in common.
    """
    frames = list(frames)
    for column in dict.fromkeys(name for frame in frames for name in frame.columns):
        having = [place for place, frame in enumerate(frames) if column in frame.columns]
        for place, part in zip(having, alike(*(frames[place][column] for place in having)), strict=True):
            frames[place] = frames[place].with_columns(part)
    return pl.concat(frames, how="diagonal_relaxed") if len(frames) > 1 else frames[0]


def alike(*columns: pl.Series) -> list[pl.Series]:
    """Columns of chats in one type, whatever the fields of their messages are; other columns as they are."""
    if len({column.dtype for column in columns}) == 1 or not all(map(_is_chats, columns)):
        return list(columns)
    fields: dict[str, Any] = {}
    for name, dtype in (item for column in columns for item in _fields(column).items()):
        if name in fields and dtype != fields[name] and pl.Null not in (dtype, fields[name]):
            return _of_their_values(columns)
        if fields.get(name, pl.Null) == pl.Null:
            fields[name] = dtype
    return [_with_fields(column, fields) for column in columns]


def _is_chats(column: pl.Series) -> bool:
    """Whether a column has lists of messages, or lists of nothing."""
    return isinstance(column.dtype, pl.List) and isinstance(column.dtype.inner, pl.Struct | pl.Null)


def _fields(column: pl.Series) -> dict[str, Any]:
    """The fields of messages; empty for other columns."""
    inner: Any = column.dtype.inner if isinstance(column.dtype, pl.List) else None
    return {field.name: field.dtype for field in inner.fields} if isinstance(inner, pl.Struct) else {}


def _with_fields(column: pl.Series, fields: dict[str, Any]) -> pl.Series:
    own = _fields(column)
    cells = [
        pl.element().struct.field(name) if own.get(name) == kind else pl.lit(None, pl.Null).cast(kind).alias(name)
        for name, kind in fields.items()
    ]
    return column.list.eval(pl.struct(cells))


def _of_their_values(columns: Sequence[pl.Series]) -> list[pl.Series]:
    rows = [row for column in columns for row in values(column)]
    whole, start, parts = of_chats(rows, lambda row: TypeError(f"not a chat: {rows[row]!r}")), 0, []
    for column in columns:
        parts.append(whole[start : start + len(column)].alias(column.name))
        start += len(column)
    return parts


def _is_chat(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value is null, or of one of the kinds, str and list: a text, or a list of messages."""
    if not isinstance(value, list):
        return value is None or (str in kinds and isinstance(value, str) and is_encodable(value))
    return list in kinds and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str | None)
        and isinstance(value.get("content"), str | list | None)
        and is_encodable(value)
    )


def _cell(value: Any, mixed: bool) -> str | None:
    return _dumped(value) if mixed and value is not None else value


def _dumped(value: Any) -> str:
    # As polars writes it, so that equal values are equal texts.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    text.encode()
    return text


def _parsed(cell: Any, dtype: Any) -> Any:
    if cell is None or not extensions(dtype):
        return cell
    if isinstance(dtype, pl.Struct):
        return {field.name: _parsed(cell[field.name], field.dtype) for field in dtype.fields}
    if isinstance(dtype, pl.List | pl.Array):
        return [_parsed(inner, dtype.inner) for inner in cell]
    return json.loads(cell) if is_json(dtype) else cell
