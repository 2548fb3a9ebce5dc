"""Asking: what the model is asked, from prompts and the counterparts drawn for them; each distinct prompt once.

Knows nothing of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io.lazy import lazy
from mipo.negatives.parts import with_text
from mipo.prompts.compose import compose
from mipo.prompts.messages import key
from mipo.prompts.rows import numbered

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")


def counter_prompts(prompts: pl.DataFrame, counterparts: pl.DataFrame, *, chat: bool) -> pl.Series:
    """What each rejected response answers: the composed counter-prompt of each row of `counterparts`, null without.

    `counterparts` as `contrast` drew them from these `prompts`; ValueError for ids that the prompts do not have.
    """
    own, other = (rows_of(prompts, counterparts[column]) for column in ("prompt_id", "counterpart_id"))
    kind = counterparts["kind"]
    prompt = other["prompt"].zip_with(kind == "random", own["prompt"])
    if "part" in counterparts.columns:
        prompt = with_text(prompt, counterparts["part"], kind == "partial")
    context = None
    if "context" in prompts.columns:
        nothing = pl.Series([None], dtype=prompts.schema["context"]).new_from_index(0, len(own))
        kept = own["context"].zip_with(kind == "partial", nothing)
        context = other["context"].zip_with(kind.is_in(["random", "context"]), kept)
    asked = compose(prompt, context, chat=chat)
    return pl.select(pl.when(counterparts["reason"].is_null()).then(asked).alias("counter_prompt")).to_series()


def rows_of(prompts: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    """The prompts with these ids, in their order; nulls for null."""
    prompts, wanted = numbered(prompts), ids.cast(pl.UInt64).alias("prompt_id")
    lost = wanted.filter(~wanted.is_in(prompts["prompt_id"].implode()))
    if len(lost):
        raise InputError(f"{ids.name} {lost[0]}: not among the prompts; give the prompts that the counterparts are of")
    return wanted.to_frame().join(prompts, on="prompt_id", how="left", maintain_order="left")


def ask(*composed: pl.Series) -> pl.DataFrame:
    """The distinct prompts among all series, nulls left out: response_id (uint64, order of appearance) and prompt."""
    asked = pl.concat([series.drop_nulls().alias("prompt") for series in composed])
    table = pl.DataFrame({"prompt": asked, "key": key(asked).alias("key")})
    distinct = table.unique("key", keep="first", maintain_order=True).drop("key")
    return distinct.select(pl.int_range(pl.len(), dtype=pl.UInt64).alias("response_id"), "prompt")
