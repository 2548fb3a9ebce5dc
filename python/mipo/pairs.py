"""Pairs: each prompt's own response is chosen, its counter-prompts' responses are rejected, in TRL's columns.

Knows prompts, counterparts and responses as tables. Knows nothing of token ids or training.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mipo import files
from mipo.contrast import counter_prompts
from mipo.lazy import lazy
from mipo.prompts import compose, key

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")

Format = Literal["trl", "openrlhf", "nemo-rl"]


def pairs(prompts: pl.DataFrame, counterparts: pl.DataFrame, responses: pl.DataFrame) -> pl.DataFrame:
    """Preference pairs: one row for each counterpart that has both its responses, and they differ.

    `prompts` as `mipo.prompts.read` gives them, `counterparts` as `mipo.contrast`, `responses` with the columns prompt
    (the whole prompt as the model was asked: text or messages), response, and truncated where known. Returns prompt_id,
    negative, kind, chosen_id, rejected_id (rows of `responses`), prompt, chosen, rejected (text, or messages for chat
    prompts: TRL's standard and conversational formats), chosen_truncated, rejected_truncated.
    """
    return keep(judge(prompts, counterparts, responses))


def judge(prompts: pl.DataFrame, counterparts: pl.DataFrame, responses: pl.DataFrame) -> pl.DataFrame:
    """All rows of `counterparts` as pairs, with `reason`: null, or why the row is no pair. `keep` keeps the others."""
    chat = isinstance(responses.schema["prompt"], pl.List)
    own = counterparts.select("prompt_id").join(prompts, on="prompt_id", how="left", maintain_order="left")
    asked = compose(own["prompt"], own["context"] if "context" in own.columns else None, chat=chat)
    counter = counter_prompts(prompts, counterparts, chat=chat)
    found = counterparts.select("prompt_id", "negative", "kind", "reason").with_columns(
        asked.alias("prompt"),
        key(asked).alias("_chosen"),
        pl.select(pl.when(counter.is_not_null()).then(key(counter)).otherwise(None)).to_series().alias("_rejected"),
    )
    answers = _answers(responses)
    for side in ("chosen", "rejected"):
        found = found.join(
            answers.rename({c: f"{side}{c}" for c in answers.columns if c != "_key"}),
            left_on=f"_{side}",
            right_on="_key",
            how="left",
            maintain_order="left",
        )
    return _shape(_reasons(found), chat)


def keep(judged: pl.DataFrame) -> pl.DataFrame:
    """The pairs among the judged rows, without the column `reason`."""
    return judged.filter(pl.col("reason").is_null()).drop("reason")


def dropped(judged: pl.DataFrame) -> dict[str, int]:
    """How many judged rows are no pairs, by reason."""
    return dict(
        judged["reason"].drop_nulls().value_counts(sort=True).sort("count", "reason", descending=True).iter_rows()
    )


def shuffle(pairs: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """The control: chosen and rejected swapped in half of the rows, at random. What it moves, MIPO did not."""
    coin = pl.int_range(pairs.height, eager=True).shuffle(seed=seed) < pairs.height // 2
    sides = [c.removeprefix("chosen") for c in pairs.columns if c.startswith("chosen")]
    swapped = [
        pl.when(coin).then(pl.col(f"{b}{s}")).otherwise(pl.col(f"{a}{s}")).alias(f"{a}{s}")
        for s in sides
        for a, b in (("chosen", "rejected"), ("rejected", "chosen"))
    ]
    return pairs.with_columns(swapped)


def export(pairs: pl.DataFrame, path: Path, *, format: Format = "trl") -> None:
    """Writes pairs as JSONL or Parquet (by the name of `path`) in the columns that a trainer reads.

    `trl`: prompt, chosen, rejected. `openrlhf`: the same, for `--input_key prompt --chosen_key chosen --rejected_key
    rejected`. `nemo-rl`: context (messages) and completions ranked 0 (chosen) and 1 (rejected).
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: expected a name that ends in .jsonl or .parquet")
    table = pairs.select("prompt", "chosen", "rejected")
    if format == "nemo-rl":
        table = _nemo(table)
    elif format not in ("trl", "openrlhf"):
        raise ValueError(f"format: expected trl, openrlhf or nemo-rl, came {format!r}")
    with files.whole(path) as temporary:
        if path.suffix == ".jsonl":
            table.write_ndjson(temporary)
        else:
            table.write_parquet(temporary)


def _answers(responses: pl.DataFrame) -> pl.DataFrame:
    for column in ("prompt", "response"):
        if column not in responses.columns:
            raise ValueError(f"responses: no column {column!r}; they have {', '.join(responses.columns)}")
    ids = pl.col("response_id") if "response_id" in responses.columns else pl.int_range(pl.len(), dtype=pl.UInt64)
    cut = pl.col("truncated") if "truncated" in responses.columns else pl.lit(False)
    table = responses.select(
        ids.alias("_id"), pl.col("response").alias(""), cut.alias("_truncated"), key(responses["prompt"]).alias("_key")
    )
    twice = table.filter(pl.col("_key").is_duplicated())
    if twice.height:
        raise ValueError(f"responses: {twice.height} rows share their prompts; give one response a prompt")
    return table


def _reasons(found: pl.DataFrame) -> pl.DataFrame:
    chosen, rejected = pl.col("chosen"), pl.col("rejected")
    return found.with_columns(
        reason=pl.when(pl.col("reason").is_not_null())
        .then(pl.col("reason"))
        .when(pl.col("chosen_id").is_null() | pl.col("rejected_id").is_null())
        .then(pl.lit("no response"))
        .when((chosen.str.strip_chars() == "") | (rejected.str.strip_chars() == ""))
        .then(pl.lit("empty response"))
        .when(chosen == rejected)
        .then(pl.lit("chosen and rejected are equal"))
        .otherwise(None)
    )


def _shape(found: pl.DataFrame, chat: bool) -> pl.DataFrame:
    columns = ["prompt_id", "negative", "kind", "chosen_id", "rejected_id", "prompt", "chosen", "rejected"]
    if chat:
        found = found.with_columns(
            pl.concat_list(pl.struct(pl.lit("assistant").alias("role"), pl.col(side).alias("content"))).alias(side)
            for side in ("chosen", "rejected")
        )
    return found.select(*columns, "chosen_truncated", "rejected_truncated", "reason")


def _nemo(table: pl.DataFrame) -> pl.DataFrame:
    def messages(role: str, column: str) -> pl.Expr:
        if isinstance(table.schema[column], pl.List):
            return pl.col(column)
        return pl.concat_list(pl.struct(pl.lit(role).alias("role"), pl.col(column).alias("content")))

    ranked = [
        pl.struct(pl.lit(rank).alias("rank"), messages("assistant", side).alias("completion"))
        for rank, side in enumerate(("chosen", "rejected"))
    ]
    return table.select(messages("user", "prompt").alias("context"), pl.concat_list(*ranked).alias("completions"))
