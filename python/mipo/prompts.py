"""Prompts: rows from a file, and how a prompt and a user's context become what a model sees.

Knows file formats, chat messages and chat templates. Knows nothing of counter-prompts or responses.
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.lazy import lazy

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")

CONTEXT_BORDER = "\n\n"  # between a user's context and the prompt, where the prompt is plain text
SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv")


@dataclass(frozen=True)
class Prompts:
    """Prompts as read: `frame` has prompt_id (uint64, 0…n-1), prompt, context where there is one, and other columns.

    `rows_in` = `frame.height` + the sum of `dropped` (reason → rows). `first` tells for each reason the first row of
    the source, counted from 1.
    """

    frame: pl.DataFrame
    rows_in: int
    dropped: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)


def read(source: str | Path, *, prompt: str = "prompt", context: str | None = None, split: str = "train") -> Prompts:
    """Reads prompts from JSONL, Parquet or CSV (also .gz, .xz), or a Hugging Face dataset (saved folder or hub name).

    `prompt` names the column with the prompt: text, or chat messages `[{"role": …, "content": …}, …]`. `context` names
    the column with the user's context, a text. Other columns come along. Empty prompts and null contexts are dropped,
    by a named reason. Raises FileNotFoundError or ValueError, with file and row, for what cannot be read.
    """
    table = _load(source, split)
    for column in filter(None, (prompt, context)):
        if column not in table.columns:
            raise ValueError(f"{source}: no column {column!r}; it has {', '.join(table.columns)}. Name the right one.")
    if table.height < 2:
        raise ValueError(
            f"{source}: {table.height} row{'s' * (table.height != 1)}; a counter-prompt needs at least 2 prompts"
        )
    table = table.rename({prompt: "prompt", **({context: "context"} if context else {})})
    _check_types(table, source, prompt, context)
    blank = pl.col("prompt").is_null() | (_last_text(table).str.strip_chars() == "")
    reasons = pl.when(blank).then(pl.lit("empty prompt"))
    if context:
        reasons = reasons.when(pl.col("context").is_null()).then(pl.lit("null context"))
    return _drop(table.with_columns(reasons.otherwise(None).alias("_reason")))


def drop(prompts: Prompts, reason: str, where: pl.Series) -> Prompts:
    """Drops the rows where the boolean series is true, for one more named reason; prompt_id is numbered anew."""
    reasons = pl.when(where).then(pl.lit(reason)).otherwise(None).alias("_reason")
    kept = _drop(prompts.frame.with_columns(reasons))
    dropped = {**prompts.dropped, **{r: n + prompts.dropped.get(r, 0) for r, n in kept.dropped.items()}}
    return Prompts(kept.frame, prompts.rows_in, dropped, {**kept.first, **prompts.first})


def hold_out(frame: pl.DataFrame, rows: int, *, seed: int, by: str | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Splits into (training, held-out) rows at random; `by` keeps all rows with one value (a user) on one side."""
    if by is not None and by not in frame.columns:
        raise ValueError(f"holdout_by: no column {by!r}; the prompts have {', '.join(frame.columns)}")
    if not 2 <= rows <= frame.height - 2:
        raise ValueError(f"holdout: {rows} of {frame.height} rows; it takes at least 2 rows and leaves at least 2")
    units = frame[by].unique(maintain_order=True) if by else frame["prompt_id"]
    order = units.shuffle(seed=seed)
    sizes = frame.group_by(by or "prompt_id").len()
    counts = pl.DataFrame({by or "prompt_id": order}).join(
        sizes, on=by or "prompt_id", how="left", maintain_order="left"
    )
    held = counts.filter(pl.col("len").cum_sum() <= rows)[by or "prompt_id"].implode()
    inside = frame[by or "prompt_id"].is_in(held)
    return _number(frame.filter(~inside)), _number(frame.filter(inside))


def compose(prompt: pl.Series, context: pl.Series | None, *, chat: bool) -> pl.Series:
    """What the model is asked: the context, where there is one, and then the prompt; nothing else is added.

    With `chat` a list of messages (the context is the system message), otherwise text (the context, a blank line, the
    prompt). A prompt of messages stays messages, so it needs `chat`.
    """
    messages = isinstance(prompt.dtype, pl.List)
    if messages and not chat:
        raise ValueError("the prompts are chat messages, but the model has no chat template; give prompts as text")
    frame = pl.DataFrame(
        {
            "prompt": prompt,
            "context": pl.Series("context", [None] * len(prompt), dtype=pl.String) if context is None else context,
        }
    )
    asked, given = pl.col("prompt"), pl.col("context").is_not_null()
    if not chat:
        joined = pl.concat_str(pl.col("context"), asked, separator=CONTEXT_BORDER)
        return frame.select(pl.when(given).then(joined).otherwise(asked).alias("prompt"))["prompt"]
    if not messages:
        asked = pl.concat_list(_message("user", asked))
    system = pl.concat_list(_message("system", pl.col("context")))
    return frame.select(pl.when(given).then(pl.concat_list(system, asked)).otherwise(asked).alias("prompt"))["prompt"]


def key(composed: pl.Series) -> pl.Series:
    """One text per composed prompt, equal exactly where the prompts are equal."""
    if not isinstance(composed.dtype, pl.List):
        return composed
    part = pl.concat_str(pl.element().struct.field("role"), pl.element().struct.field("content"), separator="\x1f")
    return composed.list.eval(part).list.join("\x1e")


def render(composed: Iterable[Any], tokenizer: Any) -> list[str]:
    """The text that is tokenized for each composed prompt: the chat template with a generation prompt, or the text."""
    return [
        asked
        if isinstance(asked, str)
        else tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        for asked in composed
    ]


def is_chat(tokenizer: Any) -> bool:
    """Whether prompts are rendered through the tokenizer's chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def _message(role: str, content: pl.Expr) -> pl.Expr:
    return pl.struct(pl.lit(role).alias("role"), content.alias("content"))


def _load(source: str | Path, split: str) -> pl.DataFrame:
    path = Path(source)
    if path.is_dir() or (not path.exists() and _names_hub_dataset(str(source))):
        return _load_dataset(source, split)
    if not path.exists():
        raise FileNotFoundError(f"{source}: no such file")
    suffix = next((s for s in reversed(path.suffixes) if s in SUFFIXES), None)
    if suffix is None:
        raise ValueError(f"{source}: expected a file named {', '.join(SUFFIXES)} (or .gz, .xz of one), or a dataset")
    data = _unpack(path)
    if not data.strip():
        raise ValueError(f"{source}: the file is empty")
    try:
        if suffix == ".parquet":
            return pl.read_parquet(data)
        if suffix == ".csv":
            _check_utf8(data, source)
            return pl.read_csv(data, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{source}: not a readable {suffix[1:]} file ({error})") from None
    return _load_jsonl(data, source)


def _names_hub_dataset(source: str) -> bool:
    return source.count("/") <= 1 and not source.startswith((".", "/", "~")) and not Path(source).suffix


def _load_dataset(source: str | Path, split: str) -> pl.DataFrame:
    try:
        import datasets
    except ImportError:
        raise ImportError("Hugging Face datasets need `pip install mipo[train]`") from None
    try:
        found = (
            datasets.load_from_disk(str(source))
            if Path(source).is_dir()
            else datasets.load_dataset(str(source), split=split)
        )
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise FileNotFoundError(f"{source}: neither a file nor a dataset that can be loaded ({error})") from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(f"{source}: no split {split!r}; it has {', '.join(found)}")
        found = found[split]
    frame = pl.from_arrow(found.with_format("arrow")[:])
    assert isinstance(frame, pl.DataFrame)
    return frame


def _unpack(path: Path) -> bytes:
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            return bytes(file.read())
    except (lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: broken {path.suffix[1:]} file ({error})") from None


def _check_utf8(data: bytes, source: str | Path) -> None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{source}: row {row}: not valid UTF-8 (byte 0x{data[error.start]:02x}); convert the file"
        ) from None


def _load_jsonl(data: bytes, source: str | Path) -> pl.DataFrame:
    _check_utf8(data, source)
    try:
        frame = pl.read_ndjson(data, infer_schema_length=None)
        if frame.height == sum(1 for line in data.split(b"\n") if line.strip()):
            return frame
    except pl.exceptions.PolarsError:
        pass  # found below, with its row
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{source}: row {number}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{source}: row {number}: expected a JSON object, came {type(row).__name__}")
        rows.append(row)
    try:
        return pl.DataFrame(rows, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise ValueError(f"{source}: a column mixes types ({error}); give each column one type") from None


def _check_types(table: pl.DataFrame, source: str | Path, prompt: str, context: str | None) -> None:
    kind = table.schema["prompt"]
    if isinstance(kind, pl.List):
        _check_messages(table, source, prompt, context)
    elif kind not in (pl.String, pl.Null):
        raise ValueError(f"{source}: column {prompt!r}: expected text or chat messages, came {kind}")
    if context and table.schema["context"] not in (pl.String, pl.Null):
        raise ValueError(f"{source}: column {context!r}: expected text, came {table.schema['context']}")


def _check_messages(table: pl.DataFrame, source: str | Path, prompt: str, context: str | None) -> None:
    wanted = 'messages [{"role": …, "content": …}, …], both text'
    inner = table.schema["prompt"].inner  # type: ignore[attr-defined]
    fields = {f.name: f.dtype for f in inner.fields} if isinstance(inner, pl.Struct) else {}
    if fields.get("role") != pl.String or fields.get("content") != pl.String:
        raise ValueError(f"{source}: column {prompt!r}: expected {wanted}, came {table.schema['prompt']}")
    broken = (
        table["prompt"]
        .list.eval(pl.element().struct.field("role").is_null() | pl.element().struct.field("content").is_null())
        .list.any()
    )
    _refuse_rows(broken, source, f"column {prompt!r}: a message without role or content; expected {wanted}")
    roles = pl.col("prompt").list.first().struct.field("role"), pl.col("prompt").list.last().struct.field("role")
    _refuse_rows(
        table.select(roles[1] != "user").to_series(), source, f"column {prompt!r}: the last message must be the user's"
    )
    if context:
        both = table.select((roles[0] == "system") & pl.col("context").is_not_null()).to_series()
        _refuse_rows(
            both,
            source,
            f"both a system message and a context ({context!r}); the context is the system message, keep one",
        )


def _refuse_rows(broken: pl.Series, source: str | Path, what: str) -> None:
    rows = broken.fill_null(False).arg_true()
    if len(rows):
        raise ValueError(f"{source}: row {rows[0] + 1}: {what} ({len(rows)} such row{'s' * (len(rows) > 1)})")


def _last_text(table: pl.DataFrame) -> pl.Expr:
    if isinstance(table.schema["prompt"], pl.List):
        return pl.col("prompt").list.last().struct.field("content").fill_null("")
    return pl.col("prompt").cast(pl.String).fill_null("")


def _drop(table: pl.DataFrame) -> Prompts:
    reasons = table.select("_reason", row=pl.int_range(1, pl.len() + 1)).drop_nulls()
    counted = reasons.group_by("_reason", maintain_order=True).agg(pl.len(), pl.col("row").first())
    frame = _number(table.filter(pl.col("_reason").is_null()).drop("_reason"))
    by_reason = {reason: (rows, first) for reason, rows, first in counted.iter_rows()}
    return Prompts(
        frame, table.height, {r: n for r, (n, _) in by_reason.items()}, {r: f for r, (_, f) in by_reason.items()}
    )


def _number(frame: pl.DataFrame) -> pl.DataFrame:
    rest: Sequence[str] = [c for c in frame.columns if c not in ("prompt_id", "prompt", "context")]
    first = [c for c in ("prompt", "context") if c in frame.columns]
    ids = pl.int_range(frame.height, dtype=pl.UInt64, eager=True).alias("prompt_id")
    return frame.select(ids, *first, *rest)
