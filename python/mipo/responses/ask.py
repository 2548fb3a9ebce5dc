"""Asking: what a model is asked, from prompts and the counterparts drawn for them. Each distinct prompt is asked once.

Composes prompts, and keeps which of them has which response: from here on a pair is row numbers. Knows nothing of
models.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io.lazy import lazy
from mipo.negatives.parts import with_text
from mipo.prompts.compose import compose
from mipo.prompts.rows import numbered
from mipo.tokenizer.messages import key

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")


@dataclass(frozen=True, eq=False)
class Asked:
    """What a model is asked, and which response belongs where.

    `prompts`: response_id (uint64, in the order of appearance) and prompt (text or messages), each distinct prompt
    once. `own` [prompts] is the response_id of each prompt's own response, `counter` [counterparts] that of each
    counter-prompt's, null where there is none.
    """

    prompts: pl.DataFrame
    own: pl.Series
    counter: pl.Series


def ask(prompts: pl.DataFrame, counterparts: pl.DataFrame | None = None, *, chat: bool) -> Asked:
    """Composes what the model is asked: the prompts, and the counter-prompts of `counterparts`, as drawn from them.

    With `chat` prompts are messages, otherwise text (see `compose`). Raises InputError for ids that the prompts do not
    have, and for prompts that are messages without `chat`.
    """
    own = compose_own(prompts, chat=chat)
    counter = counter_prompts(prompts, counterparts, chat=chat) if counterparts is not None else own.clear()
    asked, (own_ids, counter_ids) = distinct(own, counter)
    return Asked(asked, own_ids, counter_ids)


def link(prompts: pl.DataFrame, counterparts: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    """The pairs that `counterparts` asks for, as row numbers; a row each, in their order.

    prompt_id, negative, kind, asked_id (whose prompt both responses stand under), chosen_id, rejected_id, reason.
    """
    own = numbered(prompts).select("prompt_id", asked.own.alias("asked_id"))
    rows = counterparts.with_columns(pl.col("prompt_id").cast(pl.UInt64))
    rows = rows.join(own, on="prompt_id", how="left", maintain_order="left")
    return rows.select(
        *("prompt_id", "negative", "kind", "asked_id"),
        pl.col("asked_id").alias("chosen_id"),
        asked.counter.alias("rejected_id"),
        "reason",
    )


def compose_own(prompts: pl.DataFrame, *, chat: bool) -> pl.Series:
    """What each prompt's own response answers: the prompt with its context."""
    return compose(prompts["prompt"], prompts.get_column("context", default=None), chat=chat)


def counter_prompts(prompts: pl.DataFrame, counterparts: pl.DataFrame, *, chat: bool) -> pl.Series:
    """What each rejected response answers: the composed counter-prompt of each row of `counterparts`, null without.

    `counterparts` as `contrast` drew them from these `prompts`; InputError for ids that the prompts do not have.
    """
    own, other = (_rows_of(prompts, counterparts[column]) for column in ("prompt_id", "counterpart_id"))
    return compose_counter(own, other, counterparts, chat=chat)


def compose_counter(own: pl.DataFrame, other: pl.DataFrame, counterparts: pl.DataFrame, *, chat: bool) -> pl.Series:
    """The same, from the prompts of the rows of `counterparts`, and of their counterparts, in their order."""
    kind = counterparts["kind"]
    prompt = other["prompt"].zip_with(kind == "random", own["prompt"])
    if "part" in counterparts.columns:
        prompt = with_text(prompt, counterparts["part"], kind == "partial")
    context = None
    if "context" in own.columns:
        nothing = pl.Series([None], dtype=own.schema["context"]).new_from_index(0, len(own))
        kept = own["context"].zip_with(kind == "partial", nothing)
        context = other["context"].zip_with(kind.is_in(["random", "context"]), kept)
    composed = compose(prompt, context, chat=chat)
    return pl.select(pl.when(counterparts["reason"].is_null()).then(composed).alias("counter_prompt")).to_series()


def distinct(*composed: pl.Series) -> tuple[pl.DataFrame, list[pl.Series]]:
    """The distinct prompts among all series, and for each series the response_ids of its prompts, null for null.

    Of the prompts: response_id (uint64, the order of appearance) and prompt.
    """
    every = pl.concat([series.alias("prompt") for series in composed])
    table = pl.DataFrame({"prompt": every, "key": key(every).alias("key")})
    asked = table.drop_nulls("prompt").unique("key", keep="first", maintain_order=True)
    asked = asked.select(pl.int_range(pl.len(), dtype=pl.UInt64).alias("response_id"), "prompt", "key")
    ids = table.select("key").join(asked, on="key", how="left", maintain_order="left")["response_id"]
    starts = accumulate(map(len, composed), initial=0)
    return asked.drop("key"), [ids[start:stop] for start, stop in pairwise(starts)]


def _rows_of(prompts: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    """The prompts with these ids, in their order; nulls for null."""
    prompts, wanted = numbered(prompts), ids.cast(pl.UInt64).alias("prompt_id")
    lost = wanted.filter(~wanted.is_in(prompts["prompt_id"].implode()))
    if len(lost):
        raise InputError(f"{ids.name} {lost[0]}: not among the prompts; give the prompts that the counterparts are of")
    return wanted.to_frame().join(prompts, on="prompt_id", how="left", maintain_order="left")
