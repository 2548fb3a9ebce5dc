"""Texts: turns pairs of row numbers into pairs of text or messages, in TRL's columns. Knows no file formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipo.io.lazy import pl
from mipo.prompts.compose import message
from mipo.tokenizer.messages import is_messages

if TYPE_CHECKING:
    from mipo.io.keys import Ids
    from mipo.io.rowfile import Rows
    from mipo.io.tables import Table

COLUMNS = (
    *("prompt_id", "negative", "kind", "chosen_id", "rejected_id", "prompt", "chosen", "rejected"),
    *("chosen_truncated", "rejected_truncated"),
)


def texts_of(responses: Table) -> Table:
    """The columns of a table of responses that `with_texts` needs: prompt, response, truncated.

    Servers say `finish_reason: length` of a response that was cut off.
    """
    columns = responses.lazy().collect_schema()
    cut = pl.lit(False)
    if "truncated" in columns:
        cut = pl.col("truncated").fill_null(False)
    elif "finish_reason" in columns:
        cut = pl.col("finish_reason").eq_missing("length")
    return responses.select("prompt", "response", cut.alias("truncated"))


def with_texts(pairs: pl.DataFrame, ids: Ids, texts: Rows) -> pl.DataFrame:
    """The pairs with their texts: `COLUMNS`. `texts` are the rows of `texts_of`, and `ids` finds them by response_id.

    Chosen and rejected are text, or messages where the prompts are messages: TRL's standard and conversational formats.
    """
    sides = {name: texts.take(ids.find(pairs[f"{name}_id"])) for name in ("chosen", "rejected")}
    table = pairs.with_columns(
        texts.take(ids.find(pairs["asked_id"]))["prompt"],
        *(side["response"].alias(name) for name, side in sides.items()),
        *(side["truncated"].alias(f"{name}_truncated") for name, side in sides.items()),
    )
    if is_messages(table["prompt"]):
        table = table.with_columns(message("assistant", name).alias(name) for name in sides)
    return table.select(COLUMNS)
