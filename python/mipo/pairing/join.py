"""Pairs: each prompt's own response is chosen, its counter-prompts' responses are rejected, in TRL's columns.

Knows prompts, counterparts and responses as tables, also such as do not fit in memory. Knows nothing of token ids or
training.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io import tables
from mipo.io.lazy import lazy
from mipo.io.tables import Buckets
from mipo.prompts.compose import compose
from mipo.prompts.messages import is_messages, key
from mipo.prompts.rows import numbered
from mipo.responses.ask import counter_prompts, rows_of

if TYPE_CHECKING:
    import polars as pl

    from mipo.io.tables import Table
else:
    pl = lazy("polars")

BATCH_ROWS = 131_072  # with prompts and responses of 300 characters each, under a gibibyte
HASH, KEY, BATCH, ROW = "mipo: hash", "mipo: key", "mipo: batch", "mipo: row"  # columns of what waits on disk
ONE_RESPONSE = ("responses", "prompts", "give one response a prompt")
ONE_ID = ("prompts", "prompt_id", "give distinct whole numbers from 0")
COLUMNS = (
    *("prompt_id", "negative", "kind", "chosen_id", "rejected_id", "prompt", "chosen", "rejected"),
    *("chosen_truncated", "rejected_truncated"),
)


def pairs(prompts: Table, counterparts: Table, responses: Table) -> pl.DataFrame:
    """Preference pairs: one row for each counterpart that has both its responses, and they differ.

    `prompts` as `mipo.prompts.read` gives them, `counterparts` as `mipo.contrast` drew them from these, `responses`
    with the columns prompt (the whole prompt as the model was asked: text or messages) and response, and where known
    response_id (else the row number) and truncated. Returns prompt_id, negative, kind, chosen_id and rejected_id (their
    response_id), prompt, chosen, rejected (text, or messages where the responses' prompts are messages: TRL's standard
    and conversational formats), chosen_truncated, rejected_truncated. Raises ValueError for a missing column and for
    two responses to one prompt. Of LazyFrames nothing is held but the result; `join` writes that to a file instead.
    """
    if (
        isinstance(prompts, pl.DataFrame)
        and isinstance(counterparts, pl.DataFrame)
        and isinstance(responses, pl.DataFrame)
    ):
        return keep(judge(prompts, counterparts, responses))
    return pl.concat([keep(judged) for judged in stream(prompts, counterparts, responses)])


def join(
    prompts: Table, counterparts: Table, responses: Table, path: Path, *, batch_rows: int = BATCH_ROWS
) -> tuple[int, int, dict[str, int]]:
    """Writes the `pairs` of tables of any size as Parquet, and tells rows in, rows out and rows dropped by reason.

    Memory is that of `batch_rows` rows of the tables, a few times over, for any number of rows. See `stream`.
    """
    rows_out, lost = 0, dict[str, int]()

    def kept() -> Iterator[pl.DataFrame]:
        nonlocal rows_out
        for judged in stream(prompts, counterparts, responses, batch_rows=batch_rows, folder=path.parent):
            for reason, rows in dropped(judged).items():
                lost[reason] = lost.get(reason, 0) + rows
            made = keep(judged)
            rows_out += made.height
            yield made

    tables.write(kept(), path)
    rows_in = tables.height(counterparts)
    assert rows_in == rows_out + sum(lost.values()), f"{rows_in} counterparts, {rows_out} pairs, dropped {lost}"
    return rows_in, rows_out, dict(sorted(lost.items(), key=lambda reason: (-reason[1], reason[0])))


def stream(
    prompts: Table,
    counterparts: Table,
    responses: Table,
    *,
    batch_rows: int = BATCH_ROWS,
    folder: Path | None = None,
) -> Iterator[pl.DataFrame]:
    """The rows of `judge` in their order, `batch_rows` of them at a time, of tables that need not fit in memory.

    A Grace join: its id, or the key of its prompt, sends each prompt and then each response to a bucket on disk, where
    it meets the batches that ask for it, and on to the file of each of those. With all that it asked for, a batch is
    judged as if there were no other. Keys are compared by 128 bits of hashes, so that prompts are moved for their own
    rows alone: among 10⁹ prompts the chance that any two are taken for one is below 10⁻²⁰.

    Tables of at most `batch_rows` rows are judged at once. Larger ones are first written to temporary files under
    `folder` (default: the system's), compressed, each prompt twice and each response up to 2 + negatives times. Raises
    ValueError as `judge` does, and for tables of more than 4096 times `batch_rows` rows.
    """
    heights = [tables.height(table) for table in (prompts, counterparts, responses)]
    if batch_rows < 1 or max(heights) > batch_rows * tables.MOST_BUCKETS:
        least = max(1, -(-max(heights) // tables.MOST_BUCKETS))
        raise InputError(f"batch_rows: expected at least {least} for tables of {max(heights)} rows, came {batch_rows}")
    if max(heights) <= batch_rows:
        yield judge(*(table.lazy().collect() for table in (prompts, counterparts, responses)))
        return
    judge(*(table.lazy().head(0).collect() for table in (prompts, counterparts, responses)))  # is any column missing?
    for_prompts, batches, for_responses = (max(1, -(-height // batch_rows)) for height in heights)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pairs.", suffix=f".{os.getpid()}.tmp", dir=folder) as name:
        at = Path(name)
        drawn = Buckets(at / "counterparts", batches, BATCH)
        owners, others = (Buckets(at / f"{who}.asked", for_prompts, HASH) for who in ("own", "other"))
        for number, batch in enumerate(tables.batches(counterparts, batch_rows)):
            drawn.put(batch.with_columns(pl.lit(number, pl.UInt64).alias(BATCH)))
            owners.put(_requests(number, _hashes(batch["prompt_id"].cast(pl.UInt64))))
            others.put(_requests(number, _hashes(batch["counterpart_id"].cast(pl.UInt64))))
        chat = isinstance(responses.lazy().collect_schema()["prompt"], pl.List)
        own, other = (Buckets(at / who, batches, BATCH) for who in ("own", "other"))
        _route(_with_ids(prompts, batch_rows, chat), ((owners, own, []), (others, other, ["prompt"])), *ONE_ID)

        keys, answers = Buckets(at / "answers.asked", for_responses, HASH), Buckets(at / "answers", batches, BATCH)
        for number in range(batches):
            _, *asked = _keys(own.read(number), other.read(number), drawn.read(number), chat)
            keys.put(_requests(number, *(_hashes(one) for one in asked)))
        _route(_with_keys(responses, batch_rows), ((keys, answers, []),), *ONE_RESPONSE)
        for number in range(batches):
            batch = drawn.take(number)
            yield _answered(batch, *_keys(own.take(number), other.take(number), batch, chat), answers.take(number))


def judge(prompts: pl.DataFrame, counterparts: pl.DataFrame, responses: pl.DataFrame) -> pl.DataFrame:
    """All rows of `counterparts` as pairs, with `reason`: null, or why the row is no pair. `keep` keeps the others."""
    answers, chat = _answers(responses), is_messages(responses["prompt"])
    _refuse((answers["response_key"].is_duplicated() & answers["response_key"].is_not_null()).arg_true(), *ONE_RESPONSE)
    own = _own(prompts, counterparts, chat)
    return _answered(counterparts, own, key(own), key(counter_prompts(prompts, counterparts, chat=chat)), answers)


def keep(judged: pl.DataFrame) -> pl.DataFrame:
    """The pairs among the judged rows, without the column `reason`."""
    return judged.filter(pl.col("reason").is_null()).drop("reason")


def dropped(judged: pl.DataFrame) -> dict[str, int]:
    """How many rows drop out, by their column `reason`, the most frequent first, then in the order of the alphabet."""
    counts = judged["reason"].drop_nulls().value_counts()
    return dict(counts.sort("count", "reason", descending=[True, False]).iter_rows())


def _own(prompts: pl.DataFrame, counterparts: pl.DataFrame, chat: bool) -> pl.Series:
    """What the chosen response of each row of `counterparts` answers."""
    own = rows_of(prompts, counterparts["prompt_id"])
    return _composed(own, chat)


def _composed(prompts: pl.DataFrame, chat: bool) -> pl.Series:
    if is_messages(prompts["prompt"]) and not chat:
        raise InputError("responses: expected prompts that are chat messages, as those of the prompts are; came text")
    return compose(prompts["prompt"], prompts.get_column("context", default=None), chat=chat)


def _answers(responses: pl.DataFrame) -> pl.DataFrame:
    """The responses by the keys of their prompts: response_key, response_id, response, response_truncated."""
    for column in ("prompt", "response"):
        if column not in responses.columns:
            raise InputError(f"responses: no column {column!r}; they have {', '.join(responses.columns)}")
    ids = pl.col("response_id") if "response_id" in responses.columns else pl.int_range(pl.len(), dtype=pl.UInt64)
    cut = pl.col("truncated").fill_null(False) if "truncated" in responses.columns else pl.lit(False)
    return responses.select(
        key(responses["prompt"]).alias("response_key"),
        ids.alias("response_id"),
        "response",
        cut.alias("response_truncated"),
    )


def _answered(
    counterparts: pl.DataFrame, own: pl.Series, chosen: pl.Series, rejected: pl.Series, answers: pl.DataFrame
) -> pl.DataFrame:
    """The rows of `judge`, from what each row's own prompt is, and the keys of that and of its counter-prompt."""
    found = counterparts.select("prompt_id", "negative", "kind", "reason").with_columns(
        own.alias("prompt"), chosen.alias("chosen_key"), rejected.alias("rejected_key")
    )
    answers = answers.select(column for column in answers.columns if column.startswith("response"))
    for side in ("chosen", "rejected"):
        given = answers.rename({c: c.replace("response", side) for c in answers.columns})
        found = found.join(given, on=f"{side}_key", how="left", maintain_order="left")
    found = found.with_columns(_reason())
    if is_messages(own):
        found = found.with_columns(_messages("assistant", side).alias(side) for side in ("chosen", "rejected"))
    return found.select(*COLUMNS, "reason")


def _refuse(twice: pl.Series, table: str, shared: str, instead: str) -> None:
    """Raises ValueError where there are rows, counted from 0, that have in common what no two rows may."""
    if len(twice):
        where = f"{len(twice)} rows share their {shared}, the first is row {twice[0] + 1}"
        raise InputError(f"{table}: {where}; {instead}")


def _hashes(values: pl.Series) -> pl.Series:
    """64 bits of each value, uint64; null for null."""
    return pl.select(pl.when(values.is_not_null()).then(values.hash(seed=0))).to_series()


def _requests(number: int, *hashes: pl.Series) -> pl.DataFrame:
    """What batch `number` asks for: each hash once."""
    distinct = pl.concat([one.drop_nulls().alias(HASH) for one in hashes]).unique()
    return distinct.to_frame().with_columns(pl.lit(number, pl.UInt64).alias(BATCH))


def _keys(
    own: pl.DataFrame, other: pl.DataFrame, counterparts: pl.DataFrame, chat: bool
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """What the chosen response of each row answers, its digest, and that of what the rejected response answers.

    `own` and `other` are the rows of prompts that these counterparts name, the latter without the prompts: a drawn
    prompt's digest is known.
    """
    asked = _own(own, counterparts, chat)
    known = pl.concat([own, other], how="diagonal").unique("prompt_id", keep="first", maintain_order=True)
    drawn = rows_of(known, counterparts["counterpart_id"])[KEY]
    counter = tables.digests(key(counter_prompts(known, counterparts, chat=chat)))
    random = (counterparts["kind"] == "random") & counterparts["reason"].is_null()
    return asked, tables.digests(key(asked)), drawn.zip_with(random, counter)


def _with_ids(prompts: Table, batch_rows: int, chat: bool) -> Iterator[pl.DataFrame]:
    """What pairs take of the prompts, the digests of their keys, and the hashes of their ids."""
    for start, frame in _from(prompts, batch_rows, "prompt_id", "prompt", "context"):
        rows = pl.int_range(start, start + pl.len(), dtype=pl.UInt64)
        if "prompt_id" not in frame.columns:
            frame = frame.with_columns(prompt_id=rows)
        frame, keys = numbered(frame), tables.digests(key(_composed(frame, chat)))
        yield frame.with_columns(keys.alias(KEY), _hashes(frame["prompt_id"]).alias(HASH), rows.alias(ROW))


def _with_keys(responses: Table, batch_rows: int) -> Iterator[pl.DataFrame]:
    """What pairs take of the responses, by the hashes of their keys' digests; without those to no prompt."""
    for start, frame in _from(responses, batch_rows, "response_id", "prompt", "response", "truncated"):
        rows = pl.int_range(start, start + pl.len(), dtype=pl.UInt64)
        if "response_id" not in frame.columns:
            frame = frame.with_columns(response_id=rows)
        answers = _answers(frame)
        keys = tables.digests(answers["response_key"])
        answers = answers.with_columns(keys.alias("response_key"), _hashes(keys).alias(HASH), rows.alias(ROW))
        yield answers.filter(pl.col("response_key").is_not_null())


def _from(table: Table, batch_rows: int, *columns: str) -> Iterator[tuple[int, pl.DataFrame]]:
    """Batches of those of the columns that the table has, each with the number of its first row."""
    start = 0
    for frame in tables.batches(table.select(c for c in table.lazy().collect_schema() if c in columns), batch_rows):
        yield start, frame
        start += frame.height


def _route(
    rows: Iterable[pl.DataFrame], ways: Iterable[tuple[Buckets, Buckets, list[str]]], table: str, *shared: str
) -> None:
    """Sends rows with a hash to the batches that ask for it: by buckets of requests, into buckets by batch.

    Each of the `ways` is the requests, where the rows go, and the columns that are left out. Raises ValueError for rows
    of which no two may have the same id, or key.
    """
    (asked, sent, _), *_ = ways
    held, twice = Buckets(sent.folder.with_suffix(".held"), asked.count, HASH), []
    for frame in rows:
        held.put(frame)
    for bucket in range(held.count):
        here = held.take(bucket)
        twice.append(
            here[ROW].filter(here["prompt_id" if "prompt_id" in here.columns else "response_key"].is_duplicated())
        )
        for asked, sent, without in ways:
            for part in tables.batches(asked.take(bucket), max(1, here.height)):
                sent.put(here.drop(without, ROW).join(part, on=HASH).drop(HASH))
    _refuse(pl.concat(twice).sort(), table, *shared)


def _reason() -> pl.Expr:
    chosen, rejected = (pl.col(side).str.strip_chars() for side in ("chosen", "rejected"))
    return (
        pl.when(pl.col("reason").is_not_null())
        .then("reason")
        .when(chosen.is_null() | rejected.is_null())
        .then(pl.lit("no response"))
        .when((chosen == "") | (rejected == ""))
        .then(pl.lit("empty response"))
        .when(chosen == rejected)
        .then(pl.lit("chosen and rejected are equal"))
        .alias("reason")
    )


def _messages(role: str, column: str) -> pl.Expr:
    """A column of text as a column of lists of one message."""
    return pl.concat_list(pl.struct(pl.lit(role).alias("role"), pl.col(column).alias("content")))
