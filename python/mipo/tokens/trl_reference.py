"""TRL's rules in plain Python: the prompt that chosen and rejected share, and the ids of one pair. Slow: the oracle."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from mipo.io import nested
from mipo.io.columns import Kind
from mipo.io.lazy import pl
from mipo.tokenizer.messages import is_messages, plain

SIDES = ("prompt", "chosen", "rejected")
KINDS: dict[str, Kind] = {
    "prompt": "chat", "chosen": "chat", "rejected": "chat", "chosen_truncated": "flag", "rejected_truncated": "flag",
    "tools": "data",
    "chat_template_kwargs": "data",
}  # fmt: skip
ARGUMENTS = ("tools", "chat_template_kwargs")


def with_prompts(pairs: pl.DataFrame) -> pl.DataFrame:
    """The pairs with a prompt column: without one, the prompt is what chosen and rejected begin with in common.

    This is TRL's `extract_prompt`: the first messages, or characters, that are equal.
    """
    if "prompt" in pairs.columns or not {"chosen", "rejected"} <= set(pairs.columns):
        return pairs
    sides = [pairs[side] for side in ("chosen", "rejected")]
    borders = itertools.starmap(_border, zip(*map(_own, sides), strict=True))
    parts = [
        (None, chosen, rejected) if border is None else (chosen[:border], chosen[border:], rejected[border:])
        for border, chosen, rejected in zip(borders, *(side.to_list() for side in sides), strict=True)
    ]
    kinds = {"prompt": pairs.schema["chosen"], "chosen": pairs.schema["chosen"], "rejected": pairs.schema["rejected"]}
    return pairs.with_columns(pl.DataFrame(parts, schema=kinds, orient="row"))


def repeated(pairs: pl.DataFrame) -> int:
    """In how many pairs both responses begin with the prompt, or with its first message."""
    prompt, *responses = (pairs[side] for side in SIDES)
    if not is_messages(prompt):
        both = pl.all_horizontal(pl.lit(side).str.starts_with(pl.lit(prompt)) for side in responses)
        return int(pl.select((both & (pl.lit(prompt) != "")).sum()).item())
    first, *others = (side.list.first().struct.unnest() for side in (prompt, *responses))
    fields = [name for name in ("role", "content") if len({frame.schema.get(name) for frame in (first, *others)}) == 1]
    same = [first[name] == other[name] for other in others for name in fields]
    return int(pl.select(pl.all_horizontal(same).sum()).item()) if len(fields) == 2 else 0


def _own(side: pl.Series) -> Iterable[Any]:
    """The texts, or the chats as in their file: `extract_prompt` compares messages field by field."""
    return plain(chat or [] for chat in nested.values(side)) if is_messages(side) else side


def _border(chosen: Any, rejected: Any) -> int | None:
    """How many messages, or characters, are the prompt; None where one side is empty."""
    if not chosen or not rejected:
        return None
    shorter = min(len(chosen), len(rejected))
    border = next((i for i in range(shorter) if chosen[i] != rejected[i]), None)
    if border is None:
        return shorter - 1
    return border - 1 if chosen[border - 1] == " " else border


def trl_ids(pair: dict[str, Any], tokenizer: Any) -> list[list[int]]:
    """The prompt_ids, chosen_ids and rejected_ids of one pair, by transformers alone and TRL's rule."""
    prompt, chosen, rejected = (pair[side] for side in SIDES)
    if isinstance(prompt, str):
        end = tokenizer.eos_token
        joint = [prompt + text + ("" if text.endswith(end) else end) for text in (chosen, rejected)]
        alone, *both = tokenizer([prompt, *joint])["input_ids"]
    else:
        first, *joint = plain([prompt, [*prompt, *chosen], [*prompt, *rejected]])
        options = {"tokenize": True, "return_dict": True, **template_arguments(pair)}
        alone = tokenizer.apply_chat_template(first, add_generation_prompt=True, **options)["input_ids"]
        both = tokenizer.apply_chat_template(joint, **options)["input_ids"]
    columns = enumerate(zip(alone, *both, strict=False))
    border = next((place for place, ids in columns if len(set(ids)) > 1), min(map(len, [alone, *both])))
    return [alone[:border], *(ids[border:] for ids in both)]


def rows_of(pairs: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows as a trainer gets them, with JSON as the values that it stands for."""
    columns = [nested.values(column) for column in pairs]
    return (dict(zip(pairs.columns, row, strict=True)) for row in zip(*columns, strict=True))


def arguments_in(pairs: pl.DataFrame) -> list[str]:
    """The columns that TRL passes to the template besides the messages."""
    return [name for name in ARGUMENTS if name in pairs.columns and pairs[name].null_count() < pairs.height]


def template_arguments(pair: dict[str, Any]) -> dict[str, Any]:
    """The arguments that TRL passes to the template besides the messages."""
    tools = pair.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"tools": tools, **(pair.get("chat_template_kwargs") or {})}
