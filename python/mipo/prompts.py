"""Prompts: rows of prompts, and how a prompt and a user's context become what a model sees.

Knows chat messages and chat templates. Knows nothing of file formats, counter-prompts or responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo import sources, tables
from mipo.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
else:
    np = lazy("numpy")
    pl = lazy("polars")

CONTEXT_BORDER = "\n\n"  # between a user's context and the prompt, where the prompt is plain text
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
        raise ValueError(
            f"prompt_id: expected {len(ids)} distinct whole numbers from 0, came {ids.dtype}: {ids[:3].to_list()} …"
        )
    return frame.with_columns(ids.cast(pl.UInt64))


def first_equal(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """For each row the first row with equal values in `columns` (null equals null), uint64."""
    values = frame.select(pl.struct(columns).alias("values"), pl.int_range(pl.len(), dtype=pl.UInt64).alias("row"))
    return values.select(pl.col("row").first().over("values")).to_series()


def contents(prompts: pl.Series, *, role: str | None = None) -> pl.Series:
    """The text of each prompt; of messages all contents, or those of one role, one after another."""
    if not is_messages(prompts):
        return prompts
    said = pl.element().struct.field("content")
    if role is not None:
        said = said.filter(pl.element().struct.field("role") == role)
    return prompts.list.eval(said).list.join("\n")


def normalised(texts: pl.Series) -> pl.Series:
    """Texts that differ only in Unicode form, case or white space made equal; a null stays null."""
    # Of ASCII texts lower case is all there is to fold, which costs a tenth.
    wide = texts.str.len_bytes() != texts.str.len_chars()
    made = _mended(texts.str.to_lowercase(), wide, _folded(texts.filter(wide)))
    spaced = made.str.contains(r"\s\s|[^\S ]")
    return _mended(made, spaced, made.filter(spaced).str.replace_all(r"\s+", " ")).str.strip_chars()


def hold_out(frame: pl.DataFrame, rows: int, *, seed: int, by: str | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Splits into (training, held-out) rows at random, `rows` of them held out; each side is numbered anew.

    `by` keeps all rows with one value (a user; null is one too) on one side. Then `rows` is the most that is held out:
    users who do not fit any more stay in training.
    """
    if by is not None and by not in frame.columns:
        raise ValueError(f"holdout_by: no column {by!r}; the prompts have {', '.join(frame.columns)}")
    if not 2 <= rows <= frame.height - 2:
        raise ValueError(f"holdout: {rows} of {frame.height} rows; it takes at least 2 rows and leaves at least 2")
    unit = first_equal(frame, [by]) if by else pl.int_range(frame.height, dtype=pl.UInt64, eager=True)
    held = unit.is_in(_fitting(unit, rows, seed).implode())
    if held.sum() < 2:
        raise ValueError(
            f"holdout: of {unit.n_unique()} values of {by!r} no two rows fit in {rows}; hold out more rows"
        )
    return _number(frame.filter(~held)), _number(frame.filter(held))


def compose(prompt: pl.Series, context: pl.Series | None, *, chat: bool) -> pl.Series:
    """What the model is asked: the context, where there is one, and then the prompt; nothing else is added.

    With `chat` a list of messages (the context is the system message), otherwise text (the context, a blank line, the
    prompt). A prompt of messages stays messages, so it needs `chat`. A null prompt stays null.
    """
    if is_messages(prompt) and not chat:
        raise ValueError("the prompts are chat messages, but the model has no chat template; give prompts as text")
    frame = pl.DataFrame({"prompt": prompt})
    if chat and not is_messages(prompt):
        user = pl.concat_list(pl.struct(pl.lit("user").alias("role"), pl.col("prompt").alias("content")))
        frame = frame.select(pl.when(pl.col("prompt").is_not_null()).then(user).alias("prompt"))
    if context is None:
        return frame["prompt"]
    frame = frame.with_columns(context.cast(pl.String).alias("context"))
    given, asked = pl.col("context").is_not_null() & pl.col("prompt").is_not_null(), pl.col("prompt")
    if chat:
        before = pl.concat_list(_system_message(frame.schema["prompt"]), asked)
    else:
        before = pl.concat_str("context", asked, separator=CONTEXT_BORDER)
    return frame.select(pl.when(given).then(before).otherwise(asked).alias("prompt"))["prompt"]


def key(composed: pl.Series) -> pl.Series:
    """One text per composed prompt, equal exactly where the prompts are equal; null for null.

    Of messages it is their JSON, a line each, without fields that are null.
    """
    if not is_messages(composed):
        return composed
    fields = sorted(_fields(composed.dtype))
    told = [
        pl.when(pl.element().struct.field(name).is_null())
        .then(pl.lit(""))
        .otherwise(pl.struct(pl.element().struct.field(name)).struct.json_encode())
        for name in fields
    ]
    return composed.list.eval(pl.concat_str(told)).list.join("\n")


def render(composed: Iterable[Any], tokenizer: Any) -> list[str]:
    """The text that is tokenized for each composed prompt: the chat template with a generation prompt, or the text."""
    asked = list(composed)
    if not asked or isinstance(asked[0], str):
        return asked
    return list(tokenizer.apply_chat_template(list(plain(asked)), tokenize=False, add_generation_prompt=True))


def plain(composed: Iterable[Any]) -> Iterator[list[dict[str, Any]]]:
    """Messages as they stood in their file: without the null fields that a table needs where only others have one."""
    return ([{name: said for name, said in turn.items() if said is not None} for turn in asked] for asked in composed)


def is_chat(tokenizer: Any) -> bool:
    """Whether prompts are rendered through the tokenizer's chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def is_messages(prompts: pl.Series) -> bool:
    """Whether the series holds lists (of chat messages), not text."""
    return isinstance(prompts.dtype, pl.List)


def _mended(texts: pl.Series, where: pl.Series, mended: pl.Series) -> pl.Series:
    return texts.scatter(where.arg_true(), mended) if len(mended) else texts


def _folded(texts: pl.Series) -> pl.Series:
    """Upper case alone makes ß and ss equal, lower case alone the two small sigmas."""
    cased = texts.str.normalize("NFKC").str.to_lowercase().str.to_uppercase().str.to_lowercase()
    return cased.str.normalize("NFKC")


def _rows(count: int) -> str:
    return f"{count} row" + "s" * (count != 1)


def _fields(kind: pl.DataType) -> dict[str, pl.DataType]:
    """The fields of a list of messages; none for what is no list of structs."""
    inner = getattr(kind, "inner", None)
    return {part.name: part.dtype for part in inner.fields} if isinstance(inner, pl.Struct) else {}  # type: ignore[misc]


def _system_message(kind: pl.DataType) -> pl.Expr:
    """The context as a message with the fields of the others, in their order: polars joins structs by position."""
    said = {"role": pl.lit("system"), "content": pl.col("context")}
    return pl.struct(said.get(name, pl.lit(None, part)).alias(name) for name, part in _fields(kind).items())


def _chosen(prompt: str, context: str | None) -> dict[str, str]:
    """Which columns become prompt and context."""
    if prompt == context:
        raise ValueError(f"prompt and context are the same column, {prompt!r}; name two")
    return {prompt: "prompt"} if context is None else {prompt: "prompt", context: "context"}


def _check_rows(source: str | Path, rows_out: int, rows_in: int, dropped: dict[str, int]) -> None:
    if rows_in < 2:
        raise ValueError(f"{source}: {_rows(rows_in)}; a counter-prompt needs at least 2 prompts")
    if rows_out < 2:
        raise ValueError(f"{source}: {_rows(rows_out)} of {rows_in} left, at least 2 needed: {dropped}")


def _kept(table: pl.DataFrame, source: str | Path, chosen: dict[str, str], before: int = 0) -> Prompts:
    """The rows of a table, after the `before` first ones of its source, that are prompts; numbered from 0."""
    if missing := [column for column in chosen if column not in table.columns]:
        has = ", ".join(table.columns) or "no columns"
        raise ValueError(f"{source}: no column {missing[0]!r}; it has {has}. Name the right one.")
    label = {name: column for column, name in chosen.items()}
    table = _checked(_named(table, chosen, source), source, label["prompt"], label.get("context"), before)
    rows = pl.int_range(before + 1, before + table.height + 1, eager=True)
    return _drop(Prompts(table, table.height, rows), _reasons(table))


def _named(table: pl.DataFrame, chosen: dict[str, str], source: str | Path) -> pl.DataFrame:
    names = [chosen.get(column, f"source_{column}" if column in RESERVED else column) for column in table.columns]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
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
            raise ValueError(f"{source}: column {label!r}: expected {wanted}, came {kind}")
    return table


def _check_messages(table: pl.DataFrame, source: str | Path, prompt: str, context: str | None, before: int) -> None:
    column = f"column {prompt!r}"
    fields, given = _fields(table.schema["prompt"]), pl.col("prompt")
    if fields.get("role") != pl.String or fields.get("content") != pl.String:
        raise ValueError(f"{source}: {column}: expected {MESSAGES}, came {table.schema['prompt']}")
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
            raise ValueError(f"{source}: row {before + rows[0] + 1}: {what} ({_rows(len(rows))} like this)")


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


def _fitting(units: pl.Series, rows: int, seed: int) -> pl.Series:
    """Random units (each named by a value of `units`, one a row) that together have at most `rows` rows."""
    sizes = units.value_counts().sort(units.name)
    held, left = [], rows
    for place in np.random.default_rng(seed).permutation(sizes.height).tolist():
        unit, size = sizes.row(place)
        if size <= left:
            held.append(unit)
            left -= size
    return pl.Series(held, dtype=units.dtype)
