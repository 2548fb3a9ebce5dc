"""Messages: chats in a column of a table, and their text. Knows nothing of prompts or templates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from mipo.io import nested
from mipo.io.lazy import pl


def contents(prompts: pl.Series, *, role: str | None = None) -> pl.Series:
    """The text of each prompt: for messages the contents, of all roles or of one, joined by line breaks."""
    if not is_messages(prompts):
        return prompts
    content = pl.element().struct.field("content")
    if role is not None:
        content = content.filter(pl.element().struct.field("role") == role)
    return prompts.list.eval(content).list.join("\n")


def key(composed: pl.Series) -> pl.Series:
    """One text per composed prompt, equal exactly where the prompts are equal; null for null.

    For messages it is their JSON, one line per message, without null fields.
    """
    if not is_messages(composed):
        return composed
    fields = [_encoded(name, dtype) for name, dtype in sorted(fields_of(composed.dtype).items())]
    return composed.list.eval(pl.concat_str(fields)).list.join("\n")


def _encoded(name: str, dtype: pl.DataType) -> pl.Expr:
    """A field of messages as a JSON object, empty where it is null."""
    field = pl.element().struct.field(name)
    if nested.is_json(dtype):
        text = pl.format(f"{{{{{json.dumps(name)}:{{}}}}}}", field.ext.storage())
    else:
        text = pl.struct(field).struct.json_encode()
    return pl.when(field.is_null()).then(pl.lit("")).otherwise(text)


def plain(composed: Iterable[Any]) -> Iterator[list[dict[str, Any]]]:
    """Chats as in their file: without the null fields that a table adds where only other messages have a value."""
    return ([{name: v for name, v in message.items() if v is not None} for message in chat] for chat in composed)


def is_messages(prompts: pl.Series) -> bool:
    """Whether the series holds lists of chat messages, not text."""
    return isinstance(prompts.dtype, pl.List)


def fields_of(kind: pl.DataType) -> dict[str, pl.DataType]:
    """The fields of a list of messages; empty for any other type than a list of structs."""
    inner = getattr(kind, "inner", None)
    return {part.name: part.dtype for part in inner.fields} if isinstance(inner, pl.Struct) else {}  # type: ignore[misc]
