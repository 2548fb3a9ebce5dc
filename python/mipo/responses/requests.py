"""Requests: what a model is asked, composed of prompts and their counterparts. Each distinct prompt is asked once.

Also keeps which prompt has which response: from here on a pair is row numbers. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io import tables
from mipo.io.lazy import np, pl
from mipo.negatives.partial import with_text
from mipo.prompts.compose import compose
from mipo.prompts.rows import numbered
from mipo.tokenizer.messages import key

if TYPE_CHECKING:
    from numpy.typing import NDArray


DRAWN = ("prompt_id", "counterpart_id", "kind", "reason")  # columns of counterparts that say what is asked


@dataclass(frozen=True, eq=False)
class Requests:
    """What a model is asked, and which prompt has which response.

    `prompts`: response_id (uint64, in the order of appearance) and prompt (text or messages), each distinct prompt
    once, or with `samples` so many times, or twice as many; then a column sample counts them. `own` [prompts] is the
    response_id of the first response to each prompt, `counter` [counterparts] that of the first one to each
    counter-prompt, null where there is none; the others follow it.
    """

    prompts: pl.DataFrame
    own: pl.Series
    counter: pl.Series
    samples: int = 1


def compose_requests(
    prompts: pl.DataFrame, counterparts: pl.DataFrame | None = None, *, chat: bool, samples: int = 1,
    fresh: bool = False,
) -> Requests:  # fmt: skip
    """Composes what the model is asked: the prompts, and the counter-prompts of `counterparts` that `contrast` drew.

    With `chat` prompts are messages, otherwise text (see `compose`). Each is asked `samples` times; with `fresh`, a
    prompt that is a counter-prompt, too, is asked as many times again for the rejected responses, which are otherwise
    the chosen ones of another pair. Raises InputError for ids that the prompts do not have, and for prompts that are
    messages without `chat`.
    """
    own = compose_own(prompts, chat=chat)
    counter = counter_prompts(prompts, counterparts, chat=chat) if counterparts is not None else own.clear()
    requests = distinct(own, counter)
    return _sampled(requests, samples, fresh) if samples > 1 or fresh else requests


def link(prompts: pl.DataFrame, counterparts: pl.DataFrame, requests: Requests) -> pl.DataFrame:
    """The pairs of `counterparts` as row numbers: a row for each counterpart, in their order.

    prompt_id, negative, kind, asked_id (of the prompt of both responses), chosen_id, rejected_id, reason. With several
    samples, sample s of the prompt is paired with sample s of each of its counterparts, one after another.
    """
    own = numbered(prompts).select("prompt_id", requests.own.alias("asked_id"))
    rows = counterparts.with_columns(pl.col("prompt_id").cast(pl.UInt64))
    asked = rows.join(own, on="prompt_id", how="left", maintain_order="left")["asked_id"]
    return linked(counterparts, asked, requests.counter, requests.samples)


def linked(counterparts: pl.DataFrame, asked: pl.Series, counter: pl.Series, samples: int) -> pl.DataFrame:
    """The same, where `asked` and `counter` are the first responses to the prompt and counter-prompt of each row."""
    rows = counterparts.with_columns(pl.col("prompt_id").cast(pl.UInt64), asked.alias("asked_id"))
    rows = rows.with_columns(counter.alias("rejected_id"), pl.lit(0, pl.UInt64).alias("sample"))
    if samples > 1:
        numbers = pl.int_range(samples, dtype=pl.UInt64, eager=True).alias("sample").to_frame()
        rows = rows.drop("sample").with_columns(pl.col("prompt_id").rle_id().alias("run")).with_row_index("row")
        rows = rows.join(numbers, how="cross").sort("run", "sample", "row")
    return rows.select(
        *("prompt_id", "negative", "kind", "asked_id"),
        (pl.col("asked_id") + pl.col("sample")).alias("chosen_id"),
        pl.col("rejected_id") + pl.col("sample"),
        "reason",
    )


def compose_own(prompts: pl.DataFrame, *, chat: bool) -> pl.Series:
    """What each prompt's own response answers: the prompt with its context."""
    return compose(prompts["prompt"], prompts.get_column("context", default=None), chat=chat)


def counter_prompts(prompts: pl.DataFrame, counterparts: pl.DataFrame, *, chat: bool) -> pl.Series:
    """What each rejected response answers: the composed counter-prompt of each row of `counterparts`, or null.

    `counterparts` as `contrast` drew them from these `prompts`; InputError for ids that the prompts do not have.
    """
    tables.check_columns(counterparts, DRAWN, "counterparts")
    own, other = (_rows_of(prompts, counterparts[column]) for column in ("prompt_id", "counterpart_id"))
    return compose_counter(own, other, counterparts, chat=chat)


def compose_counter(own: pl.DataFrame, other: pl.DataFrame, counterparts: pl.DataFrame, *, chat: bool) -> pl.Series:
    """The same, where `own` and `other` are the prompts of the rows of `counterparts`, and of their counterparts."""
    kind = counterparts["kind"]
    prompt = other["prompt"].zip_with(kind == "random", own["prompt"])
    if "part" in counterparts.columns:
        prompt = with_text(prompt, counterparts["part"], kind == "partial")
    context = None
    if "context" in own.columns:
        nulls = pl.Series([None], dtype=own.schema["context"]).new_from_index(0, len(own))
        own_or_null = own["context"].zip_with(kind == "partial", nulls)
        context = other["context"].zip_with(kind.is_in(["random", "context"]), own_or_null)
    composed = compose(prompt, context, chat=chat)
    return pl.select(pl.when(counterparts["reason"].is_null()).then(composed).alias("counter_prompt")).to_series()


def distinct(own: pl.Series, counter: pl.Series) -> Requests:
    """The requests for composed prompts and counter-prompts."""
    prompts = pl.concat([own.alias("prompt"), counter.alias("prompt")])
    table = pl.DataFrame({"prompt": prompts, "key": key(prompts).alias("key")})
    unique = table.drop_nulls("prompt").unique("key", keep="first", maintain_order=True)
    unique = unique.select(pl.int_range(pl.len(), dtype=pl.UInt64).alias("response_id"), "prompt", "key")
    ids = table.select("key").join(unique, on="key", how="left", maintain_order="left")["response_id"]
    return Requests(unique.drop("key"), ids[: len(own)], ids[len(own) :])


def _sampled(requests: Requests, samples: int, fresh: bool) -> Requests:
    """The requests with `samples` of each prompt, and as many again of those that are to be fresh as rejected ones."""
    distinct, sample, own, counter = sampled(requests.own, requests.counter, requests.prompts.height, samples, fresh)
    prompts = requests.prompts[distinct].with_columns(
        pl.int_range(pl.len(), dtype=pl.UInt64).alias("response_id"), pl.Series("sample", sample, dtype=pl.UInt64)
    )
    return Requests(prompts, own, counter, samples)


def sampled(
    own: pl.Series, counter: pl.Series, count: int, samples: int, fresh: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], pl.Series, pl.Series]:
    """Each sample's distinct prompt, of which there are `count`, and its number; then own and counter as in `Requests`.

    The `own` and `counter` that are given are numbers of distinct prompts.
    """
    is_own, is_counter = np.zeros((2, count), dtype=bool)
    is_own[own.drop_nulls()] = is_counter[counter.drop_nulls()] = True
    again = is_own & is_counter & fresh
    counts = samples * (1 + again.astype(np.int64))
    first = np.cumsum(counts) - counts
    sample = np.arange(counts.sum()) - np.repeat(first, counts)
    chosen, rejected = pl.Series(first, dtype=pl.UInt64), pl.Series(first + samples * again, dtype=pl.UInt64)
    return np.repeat(np.arange(count), counts), sample, chosen.gather(own), rejected.gather(counter)


def check_known(ids: pl.Series, known: pl.Series) -> None:
    """InputError for ids, other than null, of which the boolean series `known` is false."""
    unknown = ids.filter(~known & ids.is_not_null())
    if len(unknown):
        raise InputError(
            f"{ids.name} {unknown[0]}: not among the prompts; give the prompts that the counterparts were drawn from"
        )


def _rows_of(prompts: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    """The prompts with these ids, in their order; nulls for null."""
    prompts, wanted = numbered(prompts), ids.cast(pl.UInt64)
    check_known(ids, wanted.is_in(prompts["prompt_id"].implode()))
    return wanted.alias("prompt_id").to_frame().join(prompts, on="prompt_id", how="left", maintain_order="left")
