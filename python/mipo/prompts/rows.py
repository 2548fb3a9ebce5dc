"""Prompts: rows of prompts, and how a prompt and a user's context become what a model sees.

Knows chat messages and chat templates. Knows nothing of file formats, counter-prompts or responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io import sources, tables
from mipo.io.lazy import lazy
from mipo.tokenizer.messages import fields_of, is_messages

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")

MESSAGES = 'chat messages [{"role": …, "content": …}, …], both text'
RESERVED = ("prompt_id", "prompt", "context")


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as read: `frame` has prompt_id (uint64, 0…n-1), prompt, context where there is one, and other columns.

    `rows_in` = `frame.height` + the sum of `dropped` (reason → rows). `rows` tells for each row of `frame`, and `first`
    for each reason, the (first) row of the source, counted from 1.
    """

    frame: pl.DataFrame
    rows_in: int
    rows: pl.Series
    dropped: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)


def read(source: str | Path, *, prompt: str = "prompt", context: str | None = None, split: str = "train") -> Prompts:
    """Reads prompts from JSONL, Parquet or CSV (also .gz, .xz), or a Hugging Face dataset (saved folder or hub name).

    `prompt` names the column with the prompt: text, or chat messages `[{"role": …, "content": …}, …]`. `context` names
    the column with the user's context, a text; without it there is none. Other columns come along, under the name
    `source_…` where theirs is prompt_id, prompt or context. Empty prompts and null or empty contexts are dropped, by a
    named reason. Raises FileNotFoundError or ValueError, with file and row, for what cannot be read, and for fewer than
    two prompts.
    """
    chosen = _chosen(prompt, context)
    read = _kept(sources.load(source, split=split, texts=list(chosen)), source, chosen)
    _check_rows(source, read.frame.height, read.rows_in, read.dropped)
    return read


def read_batches(
    source: str | Path, rows: int, *, prompt: str = "prompt", context: str | None = None, split: str = "train"
) -> Iterator[Prompts]:
    """As `read`, of a Parquet file `rows` rows at a time, numbered on from those before; of others all at once."""
    if Path(source).suffix != ".parquet" or not Path(source).is_file():
        yield read(source, prompt=prompt, context=context, split=split)
        return
    chosen, rows_in, rows_out, lost = _chosen(prompt, context), 0, 0, dict[str, int]()
    for batch in tables.batches(sources.scan(source), rows):
        some = _kept(batch, source, chosen, before=rows_in)
        yield replace(some, frame=some.frame.with_columns(pl.col("prompt_id") + rows_out))
        rows_in, rows_out = rows_in + some.rows_in, rows_out + some.frame.height
        lost |= {reason: lost.get(reason, 0) + n for reason, n in some.dropped.items()}
    _check_rows(source, rows_out, rows_in, lost)


def drop(prompts: Prompts, reason: str, where: pl.Series) -> Prompts:
    """Drops the rows where the boolean series is true, for one more named reason; prompt_id is numbered anew."""
    return _drop(prompts, pl.select(pl.when(where).then(pl.lit(reason))).to_series())


def numbered(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with `prompt_id` as uint64, its row number where it has none; ValueError where ids are not distinct."""
    if "prompt_id" not in frame.columns:
        return frame.with_columns(prompt_id=pl.int_range(pl.len(), dtype=pl.UInt64))
    ids = frame["prompt_id"]
    if not ids.dtype.is_integer() or ids.null_count() or ids.n_unique() < len(ids) or (ids < 0).any():
        raise InputError(
            f"prompt_id: expected {len(ids)} distinct whole numbers from 0, came {ids.dtype}: {ids[:3].to_list()} …"
        )
    return frame.with_columns(ids.cast(pl.UInt64))


def _rows(count: int) -> str:
    return f"{count} row" + "s" * (count != 1)


def _chosen(prompt: str, context: str | None) -> dict[str, str]:
    """Which columns become prompt and context."""
    if prompt == context:
        raise InputError(f"prompt and context are the same column, {prompt!r}; name two")
    return {prompt: "prompt"} if context is None else {prompt: "prompt", context: "context"}


def _check_rows(source: str | Path, rows_out: int, rows_in: int, dropped: dict[str, int]) -> None:
    if rows_in < 2:
        raise InputError(f"{source}: {_rows(rows_in)}; a counter-prompt needs at least 2 prompts")
    if rows_out < 2:
        raise InputError(f"{source}: {_rows(rows_out)} of {rows_in} left, at least 2 needed: {dropped}")


def _kept(table: pl.DataFrame, source: str | Path, chosen: dict[str, str], before: int = 0) -> Prompts:
    """The rows of a table, after the `before` first ones of its source, that are prompts; numbered from 0."""
    if missing := [column for column in chosen if column not in table.columns]:
        has = ", ".join(table.columns) or "no columns"
        raise InputError(f"{source}: no column {missing[0]!r}; it has {has}. Name the right one.")
    label = {name: column for column, name in chosen.items()}
    table = _checked(_named(table, chosen, source), source, label["prompt"], label.get("context"), before)
    rows = pl.int_range(before + 1, before + table.height + 1, eager=True)
    return _drop(Prompts(table, table.height, rows), _reasons(table))


def _named(table: pl.DataFrame, chosen: dict[str, str], source: str | Path) -> pl.DataFrame:
    names = [chosen.get(column, f"source_{column}" if column in RESERVED else column) for column in table.columns]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(
            f"{source}: the column {twice.pop()!r} is in the way of the one that would be renamed to it; rename it"
        )
    return table.rename(dict(zip(table.columns, names, strict=True)))


def _checked(table: pl.DataFrame, source: str | Path, prompt: str, context: str | None, before: int) -> pl.DataFrame:
    """The table with its prompts and contexts as text or messages; ValueError for other types."""
    labels = {"prompt": prompt} | ({"context": context} if context else {})
    for name, label in labels.items():
        kind = table.schema[name]
        if isinstance(kind, pl.Categorical | pl.Enum | pl.Null):
            table = table.with_columns(pl.col(name).cast(pl.String))
        elif name == "prompt" and isinstance(kind, pl.List):
            _check_messages(table, source, label, context, before)
        elif kind != pl.String:
            wanted = f"text or {MESSAGES}" if name == "prompt" else "text"
            raise InputError(f"{source}: column {label!r}: expected {wanted}, came {kind}")
    return table


def _check_messages(table: pl.DataFrame, source: str | Path, prompt: str, context: str | None, before: int) -> None:
    column = f"column {prompt!r}"
    fields, given = fields_of(table.schema["prompt"]), pl.col("prompt")
    if fields.get("role") != pl.String or fields.get("content") != pl.String:
        raise InputError(f"{source}: {column}: expected {MESSAGES}, came {table.schema['prompt']}")
    lacks = pl.element().struct.field("role").is_null() | pl.element().struct.field("content").is_null()
    first, last = given.list.first().struct.field("role"), given.list.last().struct.field("role")
    wrong = {f"{column}: a message without role or content; expected {MESSAGES}": given.list.eval(lacks).list.any()}
    wrong[f"{column}: the last message must be the user's, for the model to answer"] = last != "user"
    if context:
        both = (first == "system") & pl.col("context").is_not_null()
        wrong[f"a system message and a context ({context!r}), which becomes the system message; keep one"] = both
    for what, where in wrong.items():
        rows = table.select(where.fill_null(False)).to_series().arg_true()
        if len(rows):
            raise InputError(f"{source}: row {before + rows[0] + 1}: {what} ({_rows(len(rows))} like this)")


def _reasons(table: pl.DataFrame) -> pl.Series:
    """Why each row is dropped; null where it is kept."""
    text = pl.col("prompt")
    if is_messages(table["prompt"]):
        text = text.list.last().struct.field("content")
    empty = text.is_null() | (text.str.strip_chars() == "")
    if "context" not in table.columns:
        return table.select(pl.when(empty).then(pl.lit("empty prompt"))).to_series()
    context = pl.col("context")
    untold = context.is_null() | (context.str.strip_chars() == "")
    reason = pl.when(context.is_null()).then(pl.lit("null context")).otherwise(pl.lit("empty context"))
    return table.select(
        pl.when(empty).then(pl.lit("empty prompt")).when(untold).then(reason).otherwise(None)
    ).to_series()


def _drop(prompts: Prompts, reasons: pl.Series) -> Prompts:
    gone = pl.DataFrame({"reason": reasons, "row": prompts.rows}).drop_nulls()
    counted = gone.group_by("reason", maintain_order=True).agg(pl.len(), pl.col("row").min())
    dropped, first, kept = dict(prompts.dropped), dict(prompts.first), reasons.is_null()
    for reason, rows, row in counted.iter_rows():
        dropped[reason] = dropped.get(reason, 0) + rows
        first[reason] = min(first.get(reason, row), row)
    return Prompts(_number(prompts.frame.filter(kept)), prompts.rows_in, prompts.rows.filter(kept), dropped, first)


def _number(frame: pl.DataFrame) -> pl.DataFrame:
    first = [column for column in RESERVED[1:] if column in frame.columns]
    rest = [column for column in frame.columns if column not in RESERVED]
    return frame.select(pl.int_range(pl.len(), dtype=pl.UInt64).alias("prompt_id"), *first, *rest)
