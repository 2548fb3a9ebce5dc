"""Prompt rows: reads prompts and contexts from a source, and drops rows by a named reason.

Knows chat messages. Knows nothing of file formats, counter-prompts or responses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import cast

from mipo.errors import InputError
from mipo.io import columns, nested, sources, streams
from mipo.io.columns import Kind
from mipo.io.jsonl import HALVES
from mipo.io.keys import check_ids
from mipo.io.lazy import pl
from mipo.reasons import EMPTY_CONTEXT, EMPTY_PROMPT, HALF_CHARACTER, NULL_CONTEXT
from mipo.tokenizer.messages import fields_of, is_messages

MESSAGES = 'chat messages [{"role": …, "content": …}, …], both text'
RESERVED = ("prompt_id", "prompt", "context")


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts and their origin: `frame` has prompt_id (uint64, 0…n-1), prompt, context if any, and other columns.

    `rows_in` = `frame.height` + the sum of `dropped` (reason → rows). `rows` is the source row of each row of `frame`,
    and `first` the first source row of each reason, both counted from 1.
    """

    frame: pl.DataFrame
    rows_in: int
    rows: pl.Series
    dropped: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)


def read(source: str | Path, *, prompt: str = "prompt", context: str | None = None, split: str = "train") -> Prompts:
    """Reads prompts from JSONL, Parquet or CSV (also .gz, .xz), a folder of these, or a Hugging Face dataset.

    `prompt` names the column with the prompt: text, or chat messages `[{"role": …, "content": …}, …]`. `context` names
    the column with the user's context, a text. Other columns are kept; one called prompt_id, prompt or context becomes
    `source_…`. Empty prompts, null or empty contexts, and in JSONL both with half of a surrogate pair, are dropped by a
    named reason. Raises NotThereError for a missing source, and InputError, with file and row, for a broken one and for
    fewer than two prompts.
    """
    names = _new_names(prompt, context)
    prompts = _prompts(sources.load(source, split=split, texts=_kinds(names), marks_halves=True), source, names)
    _check_rows(source, prompts.frame.height, prompts.rows_in, prompts.dropped)
    return prompts


def read_batches(
    source: str | Path, rows: int, *, prompt: str = "prompt", context: str | None = None, split: str = "train"
) -> Iterator[Prompts]:
    """As `read`, but yields a Parquet file, or JSON Lines whose prompts are text, `rows` rows at a time; other sources
    at once. The prompt_ids of a batch follow on those of the one before.
    """
    names, rows_in, rows_out, dropped = _new_names(prompt, context), 0, 0, Counter[str]()
    batches = _batches(Path(source), rows, names, split)
    if batches is None:
        yield read(source, prompt=prompt, context=context, split=split)
        return
    for batch in batches:
        prompts = _prompts(batch, source, names, before=rows_in)
        yield replace(prompts, frame=prompts.frame.with_columns(pl.col("prompt_id") + rows_out))
        rows_in, rows_out = rows_in + prompts.rows_in, rows_out + prompts.frame.height
        dropped.update(prompts.dropped)
    _check_rows(source, rows_out, rows_in, dict(dropped))


def _batches(path: Path, rows: int, names: dict[str, str], split: str) -> Iterator[pl.DataFrame] | None:
    """The rows of a file in batches; None where it is not read in batches."""
    if not path.is_file() or path.suffix not in (".parquet", ".jsonl", ".ndjson"):
        return None
    if path.suffix == ".parquet":
        sources.files_of(path, split)  # refuses another split than the one of a file
        return streams.of_parquet(path, rows)
    stream = streams.open_stream(path, split=split, sought=list(names))
    batches = stream.batches(rows, texts=_kinds(names), marks_halves=True)
    prompt = next(iter(names))
    try:
        first = next(batches, None)
    except InputError:  # which row is refused depends on all others
        return None
    if first is None or prompt not in first.columns or not names.keys() <= set(stream.fields):
        return None
    # Of chats in lines, the fields differ from batch to batch.
    if not _is_text(first, prompt) or first[prompt].null_count() == first.height:
        return None
    return _texts(chain([first], batches), path, names)


def _texts(batches: Iterator[pl.DataFrame], path: Path, names: dict[str, str]) -> Iterator[pl.DataFrame]:
    """The batches with all columns of `names`; InputError, as of the whole file, for prompts that are not all text."""
    prompt = next(iter(names))
    try:
        for batch in batches:
            if not _is_text(batch, prompt):
                raise InputError(f"{path}: column {prompt!r}: expected text in every row, got chats in some")
            yield batch.with_columns(pl.lit(None, pl.String).alias(name) for name in names if name not in batch.columns)
    except InputError:
        sources.load(path, texts=_kinds(names), marks_halves=True)
        raise


def _is_text(frame: pl.DataFrame, column: str) -> bool:
    return column not in frame.columns or frame.schema[column] in (pl.String, pl.Null)


def drop(prompts: Prompts, reason: str, where: pl.Series) -> Prompts:
    """Drops the rows where the boolean series `where` is true, by one more reason; prompt_id is numbered anew."""
    return _drop(prompts, pl.select(pl.when(where).then(pl.lit(reason))).to_series())


def numbered(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with `prompt_id` as uint64 (see `check_ids`), the row number if it has no such column."""
    if "prompt_id" not in frame.columns:
        return frame.with_columns(prompt_id=pl.int_range(pl.len(), dtype=pl.UInt64))
    return frame.with_columns(check_ids(frame["prompt_id"]))


def renumbered(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with its row numbers as `prompt_id`; prompt_id, prompt and context come first."""
    first = [column for column in RESERVED[1:] if column in frame.columns]
    rest = [column for column in frame.columns if column not in RESERVED]
    return frame.select(pl.int_range(pl.len(), dtype=pl.UInt64).alias("prompt_id"), *first, *rest)


def _rows(count: int) -> str:
    return f"{count} row" + "s" * (count != 1)


def _new_names(prompt: str, context: str | None) -> dict[str, str]:
    """The columns of the source that become prompt and context, with these names."""
    if prompt == context:
        raise InputError(f"prompt and context are the same column, {prompt!r}; name two")
    return {prompt: "prompt"} if context is None else {prompt: "prompt", context: "context"}


def _kinds(names: dict[str, str]) -> dict[str, Kind]:
    """What the columns of the source hold: a prompt is text or messages, a context is text."""
    return {column: "chat" if name == "prompt" else "text" for column, name in names.items()}


def _check_rows(source: str | Path, rows_out: int, rows_in: int, dropped: dict[str, int]) -> None:
    if rows_in < 2:
        raise InputError(f"{source}: {_rows(rows_in)}; a counter-prompt needs at least 2 prompts")
    if rows_out < 2:
        raise InputError(f"{source}: {_rows(rows_out)} of {rows_in} left, at least 2 needed: {dropped}")


def _prompts(table: pl.DataFrame, source: str | Path, names: dict[str, str], before: int = 0) -> Prompts:
    """The prompts in a table, the rows of its source after the first `before`; numbered from 0."""
    halves = table.get_column(HALVES, default=None)
    table = table.drop(HALVES, strict=False)
    for column, name in names.items():
        if column not in table.columns:
            has = ", ".join(table.columns) or "no columns"
            raise InputError(
                f"{source}: no column {column!r}; it has {has}; name the one with the {name}: --{name}, or "
                f"prompts.{name} in a recipe"
            )
    table = cast("pl.DataFrame", columns.read(table, _kinds(names), source, before=before))
    labels = {name: column for column, name in names.items()}
    table = _renamed(table, names, source)
    if is_messages(table["prompt"]):
        _check_messages(table, source, labels["prompt"], labels.get("context"), before)
    rows = pl.int_range(before + 1, before + table.height + 1, eager=True)
    reasons = _reasons(table)
    if halves is not None:
        reasons = pl.select(pl.when(halves).then(pl.lit(HALF_CHARACTER)).otherwise(reasons)).to_series()
    return _drop(Prompts(table, table.height, rows), reasons)


def _renamed(table: pl.DataFrame, names: dict[str, str], source: str | Path) -> pl.DataFrame:
    renamed = [names.get(column, f"source_{column}" if column in RESERVED else column) for column in table.columns]
    if repeated := {name for name in renamed if renamed.count(name) > 1}:
        raise InputError(
            f"{source}: another column would be renamed to {repeated.pop()!r}, which is there already; rename that one"
        )
    return table.rename(dict(zip(table.columns, renamed, strict=True)))


def _check_messages(table: pl.DataFrame, source: str | Path, prompt: str, context: str | None, before: int) -> None:
    column = f"column {prompt!r}"
    fields, messages = fields_of(table.schema["prompt"]), pl.col("prompt")
    if fields.get("role") != pl.String or fields.get("content") != pl.String:
        values = nested.values(table["prompt"])
        row = next((row for row, value in enumerate(values) if value is not None and not _is_of_texts(value)), 0)
        raise columns.refused(f"{source}: row {before + row + 1}", prompt, "chat", values[row])
    no_content = pl.element().struct.field("content").is_null()
    if "tool_calls" in fields:
        no_content &= pl.element().struct.field("tool_calls").is_null()
    partial = pl.element().struct.field("role").is_null() | no_content
    first, last = messages.list.first().struct.field("role"), messages.list.last().struct.field("role")
    problems = {
        f"{column}: a message without role or content; expected {MESSAGES}": messages.list.eval(partial).list.any(),
        f"{column}: the last message must be the user's, for the model to answer": last != "user",
    }
    if context:
        both = (first == "system") & pl.col("context").is_not_null()
        problems[f"a system message and a context ({context!r}), which becomes the system message; keep one"] = both
    for problem, where in problems.items():
        rows = table.select(where.fill_null(False)).to_series().arg_true()
        if len(rows):
            raise InputError(f"{source}: row {before + rows[0] + 1}: {problem} ({_rows(len(rows))} like this)")


def _is_of_texts(chat: list[dict[str, object]]) -> bool:
    """Whether role and content of all messages are text, as far as they are there."""
    return all(isinstance(message.get(name, 0), str | None) for message in chat for name in ("role", "content"))


def _reasons(table: pl.DataFrame) -> pl.Series:
    """Why each row is dropped; null where it is kept."""
    text = pl.col("prompt")
    if is_messages(table["prompt"]):
        text = text.list.last().struct.field("content")
    empty = text.is_null() | (text.str.strip_chars() == "")
    if "context" not in table.columns:
        return table.select(pl.when(empty).then(pl.lit(EMPTY_PROMPT))).to_series()
    context = pl.col("context")
    reason = pl.when(empty).then(pl.lit(EMPTY_PROMPT)).when(context.is_null()).then(pl.lit(NULL_CONTEXT))
    return table.select(reason.when(context.str.strip_chars() == "").then(pl.lit(EMPTY_CONTEXT))).to_series()


def _drop(prompts: Prompts, reasons: pl.Series) -> Prompts:
    """Drops the rows with a reason."""
    drops = pl.DataFrame({"reason": reasons, "row": prompts.rows}).drop_nulls()
    counts = drops.group_by("reason", maintain_order=True).agg(pl.len(), pl.col("row").min())
    dropped, first, keep = dict(prompts.dropped), dict(prompts.first), reasons.is_null()
    for reason, rows, row in counts.iter_rows():
        dropped[reason] = dropped.get(reason, 0) + rows
        first[reason] = min(first.get(reason, row), row)
    return Prompts(renumbered(prompts.frame.filter(keep)), prompts.rows_in, prompts.rows.filter(keep), dropped, first)
