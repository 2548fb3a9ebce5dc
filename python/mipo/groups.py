"""Groups: preference pairs of text or chat messages become groups of token ids, as TRL tokenizes them.

Knows chat templates and TRL's rule for the border of prompt and response, which is found on token ids. Knows nothing of
where the pairs came from, or of training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mipo.lazy import lazy
from mipo.prompts import is_messages, key, plain, render
from mipo.store import PairStore, flat, offsets_of
from mipo.tokens import TokenTable, encode, fingerprint

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray

    from mipo import _native
else:
    _native = lazy("mipo._native")
    np = lazy("numpy")
    pl = lazy("polars")
    pa = lazy("pyarrow")


def encode_prompts(composed: pl.Series, tokenizer: Any) -> TokenTable:
    """Token ids of each composed prompt as the model sees it, with the generation prompt of its chat template."""
    return encode(render(composed, tokenizer), tokenizer, add_special_tokens=not is_messages(composed))


def encode_responses(
    composed: pl.Series, responses: pl.Series, tokenizer: Any, *, unfinished: pl.Series
) -> tuple[TokenTable, TokenTable]:
    """Token ids of each prompt and of its response (text), separated as in training; one row each, in order."""
    cut = unfinished.fill_null(False)
    prompts, joint = _encode_both(composed, composed, responses, cut, tokenizer)
    nothing = pl.Series([0], dtype=pl.UInt32).new_from_index(0, len(composed))
    split, own = _separate(prompts, joint, _joint_rows(nothing), _end(composed, cut, tokenizer))
    return _take(TokenTable(*split.prompts), own["prompt"]), _take(TokenTable(*split.responses), own["chosen"])


def tokenize(pairs: pl.DataFrame, tokenizer: Any, *, max_length: int | None = None) -> tuple[PairStore, dict[str, int]]:
    """Tokenizes preference pairs (TRL's columns prompt, chosen, rejected) as TRL 1.16 would.

    Messages are rendered by the tokenizer's chat template; text is taken as it is, with an end of text. Rows that share
    prompt_id, prompt and chosen, one after another, make one group with several rejected responses. A response that is
    marked truncated carries no end of turn, since the model made none; all others do. Returns the store and the dropped
    rows by reason: of groups with a response that ends after `max_length` tokens, or has no token of its own.
    Raises ValueError for pairs that are none, for null values, and for messages where there is no template.
    """
    groups = _groups(pairs, tokenizer)
    flat = groups.select("prompt", "rejected", "rejected_truncated").explode("rejected", "rejected_truncated")
    asked, said, cut = (
        pl.concat([groups[own], flat[other].alias(own)])
        for own, other in (("prompt", "prompt"), ("chosen", "rejected"), ("chosen_truncated", "rejected_truncated"))
    )
    prompts, joint = _encode_both(groups["prompt"], asked, said, cut, tokenizer)
    rows, end = _joint_rows(groups["rejected"].list.len()), _end(asked, cut, tokenizer)
    split, table = _separate(prompts, joint, rows, end)
    reasons = _reasons(split, table, max_length)
    if reasons.null_count() < len(reasons):
        split, table = _separate(prompts, joint, rows.filter(reasons.is_null()), end)
    made = PairStore(
        TokenTable(*split.prompts),
        TokenTable(*split.responses),
        groups.filter(reasons.is_null()).select("prompt_id").hstack(table),
        split.merged,
        fingerprint(tokenizer),
    )
    lost = pl.DataFrame([reasons, rows["rejected"].list.len()]).drop_nulls()
    return made, dict(lost.group_by("reason", maintain_order=True).sum().iter_rows())


def _groups(pairs: pl.DataFrame, tokenizer: Any) -> pl.DataFrame:
    """The pairs with the rejected responses (and whether they were cut off) of one prompt and chosen in lists."""
    _check(pairs, tokenizer)
    marks = [f"{side}_truncated" for side in ("chosen", "rejected")]
    pairs = pairs.with_columns(
        pairs.get_column(mark, default=pl.lit(False)).fill_null(False).alias(mark) for mark in marks
    )
    if "prompt_id" not in pairs.columns:
        pairs = pairs.with_columns(prompt_id=pl.int_range(pl.len()))
    pairs = pairs.with_columns(pl.col("prompt_id").cast(pl.UInt64))
    run = pl.struct("prompt_id", key(pairs["prompt"]).alias("p"), key(pairs["chosen"]).alias("c")).rle_id()
    kept = ("prompt_id", "prompt", "chosen", "chosen_truncated")
    grouped = pairs.group_by(run.alias("group"), maintain_order=True)
    return grouped.agg(pl.col(kept).first(), "rejected", "rejected_truncated")


def _check(pairs: pl.DataFrame, tokenizer: Any) -> None:
    columns = ("prompt", "chosen", "rejected")
    for column in columns:
        if column not in pairs.columns:
            raise ValueError(f"pairs: no column {column!r}; they have {', '.join(pairs.columns)}")
        if nulls := pairs[column].null_count():
            first = pairs[column].is_null().arg_true()[0] + 1
            raise ValueError(f"pairs: column {column!r}: {nulls} null value(s), first in row {first}; drop these rows")
    if not pairs.height:
        raise ValueError("pairs: no row is left to tokenize")
    kinds = {column: "messages" if is_messages(pairs[column]) else "text" for column in columns}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"pairs: expected text or messages in all columns, came {kinds}")
    if kinds["prompt"] == "messages" and not getattr(tokenizer, "chat_template", None):
        raise ValueError("pairs: they are messages, but the tokenizer has no chat template; give text, or another one")
    if getattr(tokenizer, "eos_token", None) is None:
        raise ValueError("tokenizer: has no eos_token, so no response could ever end; set one")


def _encode_both(
    prompts: pl.Series, asked: pl.Series, said: pl.Series, cut: pl.Series, tokenizer: Any
) -> tuple[TokenTable, TokenTable]:
    """Token ids of each prompt alone, and of each asked prompt with what was said to it, [len(asked)]."""
    texts = render(prompts, tokenizer) + _joint(asked, said, cut, tokenizer)
    table = encode(texts, tokenizer, add_special_tokens=not is_messages(prompts))
    n = len(prompts)
    return TokenTable(table.offsets[: n + 1], table.ids), TokenTable(table.offsets[n:], table.ids)


def _joint(asked: pl.Series, said: pl.Series, cut: pl.Series, tokenizer: Any) -> list[str]:
    """The text of each prompt with its response, as TRL tokenizes it; of text, what was cut off gets no end."""
    rows = zip(asked, said, cut, strict=True)
    if not is_messages(asked):
        end = tokenizer.eos_token
        return [prompt + text + ("" if short or text.endswith(end) else end) for prompt, text, short in rows]
    turns = ([*prompt, *([{"role": "assistant", "content": t}] if isinstance(t, str) else t)] for prompt, t, _ in rows)
    said_in_full = list(plain(turns))
    return list(tokenizer.apply_chat_template(said_in_full, tokenize=False)) if said_in_full else []


def _end(asked: pl.Series, cut: pl.Series, tokenizer: Any) -> dict[str, Any]:
    """What takes the end of turn, which a chat template adds, from responses that were cut off.

    It is the first special token that the template writes after an answer: with some models not the eos_token.
    """
    if not is_messages(asked) or not cut.any():
        return {}
    turns = [{"role": role, "content": "mipo"} for role in ("user", "assistant")]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("mipo")[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = [i for i in ids if i in tokenizer.added_tokens_decoder]
    return {"unfinished": cut.to_numpy(), "end_ids": [*special, tokenizer.eos_token_id][:1]}


def _joint_rows(sizes: pl.Series) -> pl.DataFrame:
    """Where each group's texts are among all prompts and all joint texts: the chosen ones, then all rejected ones."""
    n, offsets = len(sizes), np.concatenate([[0], np.cumsum(sizes.cast(pl.Int64).to_numpy())])
    every = pl.int_range(n, dtype=pl.UInt64, eager=True)
    rejected = _lists(offsets, np.arange(n, n + offsets[-1], dtype=np.uint64))
    return pl.DataFrame({"prompt": every, "chosen": every, "rejected": rejected})


def _separate(
    prompts: TokenTable, joint: TokenTable, rows: pl.DataFrame, end: dict[str, Any]
) -> tuple[_native.Split, pl.DataFrame]:
    """Prompts and responses, each once, and for `rows` of the joint table the rows there."""
    offsets = offsets_of(rows["rejected"])
    split = _native.split(
        (prompts.offsets, prompts.ids),
        (joint.offsets, joint.ids),
        group_prompt=rows["prompt"].to_numpy(),
        group_chosen=rows["chosen"].to_numpy(),
        rejected_offsets=offsets,
        rejected=flat(rows["rejected"]),
        **end,
    )
    rejected = _lists(offsets, split.rejected)
    return split, pl.DataFrame({"prompt": split.prompt, "chosen": split.chosen, "rejected": rejected})


def _reasons(split: _native.Split, table: pl.DataFrame, max_length: int | None) -> pl.Series:
    """Why each group of `table` is dropped; null where it is kept."""
    before, own = (pl.Series(TokenTable(*made).lengths()) for made in (split.prompts, split.responses))
    said = table.with_row_index("group").with_columns(said=pl.concat_list("chosen", "rejected")).explode("said")
    lengths = said.select("group", own.gather(said["said"]).alias("own"), before.gather(said["prompt"]).alias("before"))
    longest, shortest = (pl.col("before") + pl.col("own")).max(), pl.col("own").min()
    limit = np.inf if max_length is None else max_length
    reason = (
        pl.when(shortest == 0)
        .then(pl.lit("a response without a token of its own"))
        .when(longest > limit)
        .then(pl.lit(f"longer than {max_length} tokens"))
    )
    return lengths.group_by("group", maintain_order=True).agg(reason.alias("reason"))["reason"]


def _lists(offsets: NDArray[np.int64], values: NDArray[np.uint64]) -> pl.Series:
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)))


def _take(table: TokenTable, rows: pl.Series) -> TokenTable:
    lists = table.to_arrow().take(pa.array(rows.to_numpy()))
    return TokenTable(lists.offsets.to_numpy(), lists.values.to_numpy())
