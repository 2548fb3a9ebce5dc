"""Messages: how chats stand in a table's column, and the text in them. Knows nothing of prompts or templates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mipo.io.lazy import lazy

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")


def contents(prompts: pl.Series, *, role: str | None = None) -> pl.Series:
    """The text of each prompt; of messages all contents, or those of one role, one after another."""
    if not is_messages(prompts):
        return prompts
    said = pl.element().struct.field("content")
    if role is not None:
        said = said.filter(pl.element().struct.field("role") == role)
    return prompts.list.eval(said).list.join("\n")


def key(composed: pl.Series) -> pl.Series:
    """One text per composed prompt, equal exactly where the prompts are equal; null for null.

    Of messages it is their JSON, a line each, without fields that are null.
    """
    if not is_messages(composed):
        return composed
    fields = sorted(fields_of(composed.dtype))
    told = [
        pl.when(pl.element().struct.field(name).is_null())
        .then(pl.lit(""))
        .otherwise(pl.struct(pl.element().struct.field(name)).struct.json_encode())
        for name in fields
    ]
    return composed.list.eval(pl.concat_str(told)).list.join("\n")


def plain(composed: Iterable[Any]) -> Iterator[list[dict[str, Any]]]:
    """Messages as they stood in their file: without the null fields that a table needs where only others have one."""
    return ([{name: said for name, said in turn.items() if said is not None} for turn in asked] for asked in composed)


def is_messages(prompts: pl.Series) -> bool:
    """Whether the series holds lists (of chat messages), not text."""
    return isinstance(prompts.dtype, pl.List)


def fields_of(kind: pl.DataType) -> dict[str, pl.DataType]:
    """The fields of a list of messages; none for what is no list of structs."""
    inner = getattr(kind, "inner", None)
    return {part.name: part.dtype for part in inner.fields} if isinstance(inner, pl.Struct) else {}  # type: ignore[misc]
