"""Texts: pairs of row numbers become pairs of text or messages, in TRL's columns. Knows no file formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipo.io.lazy import lazy
from mipo.tokenizer.messages import is_messages

if TYPE_CHECKING:
    import polars as pl

    from mipo.io.keys import Ids
    from mipo.io.rowfile import Rows
    from mipo.io.tables import Table
else:
    pl = lazy("polars")

COLUMNS = (
    *("prompt_id", "negative", "kind", "chosen_id", "rejected_id", "prompt", "chosen", "rejected"),
    *("chosen_truncated", "rejected_truncated"),
)


def texts_of(responses: Table) -> Table:
    """What `with_texts` needs of a table of responses: prompt, response, truncated."""
    there = responses.lazy().collect_schema().names()
    cut = pl.col("truncated").fill_null(False) if "truncated" in there else pl.lit(False).alias("truncated")
    return responses.select("prompt", "response", cut)


def with_texts(pairs: pl.DataFrame, ids: Ids, texts: Rows) -> pl.DataFrame:
    """The pairs with their texts: `COLUMNS`. `texts` are the rows of `texts_of`, and `ids` finds them by response_id.

    Chosen and rejected are text, or messages where the prompts are messages: TRL's standard and conversational format.
    """
    asked, chosen, rejected = (texts.take(ids.find(pairs[name])) for name in ("asked_id", "chosen_id", "rejected_id"))
    made = pairs.with_columns(
        asked["prompt"],
        *(side["response"].alias(name) for name, side in (("chosen", chosen), ("rejected", rejected))),
        *(side["truncated"].alias(f"{name}_truncated") for name, side in (("chosen", chosen), ("rejected", rejected))),
    )
    if is_messages(made["prompt"]):
        made = made.with_columns(message("assistant", side).alias(side) for side in ("chosen", "rejected"))
    return made.select(COLUMNS)


def message(role: str, column: str) -> pl.Expr:
    """A column of text as a column of lists of one message."""
    return pl.concat_list(pl.struct(pl.lit(role).alias("role"), pl.col(column).alias("content")))
