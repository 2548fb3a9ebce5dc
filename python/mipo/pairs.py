"""Pairs: each prompt's own response is chosen, its counter-prompts' responses are rejected, in TRL's columns.

Knows prompts, counterparts and responses as tables. Knows nothing of token ids or training.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from mipo import files
from mipo.contrast import counter_prompts, rows_of
from mipo.lazy import lazy
from mipo.prompts import compose, is_messages, key

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
else:
    np = lazy("numpy")
    pl = lazy("polars")

Format = Literal["trl", "openrlhf", "nemo-rl"]
COLUMNS = (
    *("prompt_id", "negative", "kind", "chosen_id", "rejected_id", "prompt", "chosen", "rejected"),
    *("chosen_truncated", "rejected_truncated"),
)


def pairs(prompts: pl.DataFrame, counterparts: pl.DataFrame, responses: pl.DataFrame) -> pl.DataFrame:
    """Preference pairs: one row for each counterpart that has both its responses, and they differ.

    `prompts` as `mipo.prompts.read` gives them, `counterparts` as `mipo.contrast` drew them from these, `responses`
    with the columns prompt (the whole prompt as the model was asked: text or messages) and response, and where known
    response_id (else the row number) and truncated. Returns prompt_id, negative, kind, chosen_id and rejected_id (their
    response_id), prompt, chosen, rejected (text, or messages where the responses' prompts are messages: TRL's standard
    and conversational formats), chosen_truncated, rejected_truncated. Raises ValueError for a missing column and for
    two responses to one prompt.
    """
    return keep(judge(prompts, counterparts, responses))


def judge(prompts: pl.DataFrame, counterparts: pl.DataFrame, responses: pl.DataFrame) -> pl.DataFrame:
    """All rows of `counterparts` as pairs, with `reason`: null, or why the row is no pair. `keep` keeps the others."""
    answers = _answers(responses)
    chat = is_messages(responses["prompt"])
    own = rows_of(prompts, counterparts["prompt_id"])
    if is_messages(own["prompt"]) and not chat:
        raise ValueError("responses: expected prompts that are chat messages, as those of the prompts are; came text")
    asked = compose(own["prompt"], own.get_column("context", default=None), chat=chat)
    counter = counter_prompts(prompts, counterparts, chat=chat)
    found = counterparts.select("prompt_id", "negative", "kind", "reason").with_columns(
        asked.alias("prompt"), key(asked).alias("chosen_key"), key(counter).alias("rejected_key")
    )
    for side in ("chosen", "rejected"):
        given = answers.rename({c: c.replace("response", side) for c in answers.columns})
        found = found.join(given, on=f"{side}_key", how="left", maintain_order="left")
    found = found.with_columns(_reason())
    if chat:
        found = found.with_columns(_messages("assistant", side).alias(side) for side in ("chosen", "rejected"))
    return found.select(*COLUMNS, "reason")


def keep(judged: pl.DataFrame) -> pl.DataFrame:
    """The pairs among the judged rows, without the column `reason`."""
    return judged.filter(pl.col("reason").is_null()).drop("reason")


def dropped(judged: pl.DataFrame) -> dict[str, int]:
    """How many judged rows are no pairs, by reason, the most frequent first."""
    counts = judged["reason"].drop_nulls().value_counts()
    return dict(counts.sort("count", "reason", descending=[True, False]).iter_rows())


def shuffle(pairs: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """The control: which answer is called chosen is left to chance. What it moves, MIPO did not.

    Of a prompt's chosen and K rejected responses each is as likely to be chosen afterwards. With one negative that is:
    chosen and rejected are swapped in exactly half of the rows (rounded down), drawn by the seed.
    """
    with_row = _swaps(pairs["prompt_id"].rle_id().alias("group"), seed)
    swapped, here = with_row.is_not_null(), with_row == pl.int_range(pairs.height, eager=True)
    shuffled = []
    for side in (column.removeprefix("chosen") for column in pairs.columns if column.startswith("chosen")):
        chosen, rejected = pairs[f"chosen{side}"], pairs[f"rejected{side}"]
        shuffled.append(rejected.gather(with_row).alias(chosen.name).zip_with(swapped, chosen))
        shuffled.append(chosen.alias(rejected.name).zip_with(here.fill_null(False), rejected))
    return pairs.with_columns(shuffled)


def export(pairs: pl.DataFrame, path: str | Path, *, format: Format = "trl") -> None:
    """Writes pairs as JSONL or Parquet (by the name of `path`) in the columns that a trainer reads.

    `trl`: prompt, chosen, rejected. `openrlhf`: the same, for its options prompt_key, chosen_key and rejected_key, and
    apply_chat_template where they are messages. `nemo-rl`: context (messages) and completions ranked 0 (chosen) and 1
    (rejected). A prompt with several rejected responses has a row for each.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: expected a name that ends in .jsonl or .parquet")
    if format not in get_args(Format):
        raise ValueError(f"format: expected one of {', '.join(get_args(Format))}, came {format!r}")
    for column in ("prompt", "chosen", "rejected"):
        if column not in pairs.columns:
            raise ValueError(f"pairs: no column {column!r}; they have {', '.join(pairs.columns)}")
    table = pairs.select("prompt", "chosen", "rejected")
    if format == "nemo-rl":
        table = _nemo(table)
    with files.whole(path) as temporary:
        if path.suffix == ".jsonl":
            table.write_ndjson(temporary)
        else:
            table.write_parquet(temporary)


def _answers(responses: pl.DataFrame) -> pl.DataFrame:
    """The responses by the keys of their prompts: response_key, response_id, response, response_truncated."""
    for column in ("prompt", "response"):
        if column not in responses.columns:
            raise ValueError(f"responses: no column {column!r}; they have {', '.join(responses.columns)}")
    ids = pl.col("response_id") if "response_id" in responses.columns else pl.int_range(pl.len(), dtype=pl.UInt64)
    cut = pl.col("truncated").fill_null(False) if "truncated" in responses.columns else pl.lit(False)
    keys = key(responses["prompt"])
    twice = (keys.is_duplicated() & keys.is_not_null()).arg_true()
    if len(twice):
        where = f"{len(twice)} rows share their prompts, the first is row {twice[0] + 1}"
        raise ValueError(f"responses: {where}; give one response a prompt")
    return responses.select(
        keys.alias("response_key"), ids.alias("response_id"), "response", cut.alias("response_truncated")
    )


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


def _swaps(group: pl.Series, seed: int) -> pl.Series:
    """For each row, with the rejected response of which row its group's chosen one is swapped; null where it is not.

    Of groups of K rows the share K / (K + 1) is swapped. `group` numbers runs of rows, from 0.
    """
    groups, rng = group.n_unique(), np.random.default_rng(seed)
    k, place = pl.len().over("group"), pl.int_range(pl.len()).over("group")
    frame = group.to_frame().with_columns(
        order=pl.Series(rng.permutation(groups)).gather(group),
        row=pl.int_range(pl.len()) - place + pl.Series(rng.integers(2**32, size=groups)).gather(group) % k,
    )
    return frame.select(pl.when((pl.col("order") + 1) * (k + 1) <= groups * k).then("row")).to_series()


def _messages(role: str, column: str) -> pl.Expr:
    """A column of text as a column of lists of one message."""
    return pl.concat_list(pl.struct(pl.lit(role).alias("role"), pl.col(column).alias("content")))


def _nemo(table: pl.DataFrame) -> pl.DataFrame:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    texts = [name for name in table.columns if not is_messages(table[name])]
    table = table.with_columns(_messages(roles[name], name).alias(name) for name in texts)
    ranked = [
        pl.struct(pl.lit(rank, pl.Int64).alias("rank"), pl.col(side).alias("completion"))
        for rank, side in enumerate(("chosen", "rejected"))
    ]
    return table.select(pl.col("prompt").alias("context"), pl.concat_list(*ranked).alias("completions"))
