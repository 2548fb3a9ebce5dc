"""TRL's rules in plain Python: which prompt chosen and rejected share, and the ids of one pair. Slow, and the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mipo.io.lazy import lazy
from mipo.tokenizer.messages import plain

if TYPE_CHECKING:
    import polars as pl
else:
    pl = lazy("polars")

SIDES = ("prompt", "chosen", "rejected")
ARGUMENTS = ("tools", "chat_template_kwargs")


def with_prompts(pairs: pl.DataFrame) -> pl.DataFrame:
    """The pairs with the prompt that chosen and rejected have in common, where they have none of their own.

    TRL's `extract_prompt`: the first messages, or characters, that are equal.
    """
    if "prompt" in pairs.columns or not {"chosen", "rejected"} <= set(pairs.columns):
        return pairs
    said = zip(pairs["chosen"].to_list(), pairs["rejected"].to_list(), strict=True)
    parts = [_extract(chosen, rejected) for chosen, rejected in said]
    kinds = {"prompt": pairs.schema["chosen"], "chosen": pairs.schema["chosen"], "rejected": pairs.schema["rejected"]}
    return pairs.with_columns(pl.DataFrame(parts, schema=kinds, orient="row"))


def _extract(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    if not chosen or not rejected:
        return None, chosen, rejected
    shorter = min(len(chosen), len(rejected))
    border = next((i for i in range(shorter) if chosen[i] != rejected[i]), None)
    if border is None:
        border = shorter - 1
    elif chosen[border - 1] == " ":
        border -= 1
    return chosen[:border], chosen[border:], rejected[border:]


def trl_ids(pair: dict[str, Any], tokenizer: Any) -> list[list[int]]:
    """prompt_ids, chosen_ids, rejected_ids of one pair, by transformers alone and TRL's rule: slow, and the truth."""
    prompt, chosen, rejected = (pair[side] for side in SIDES)
    if isinstance(prompt, str):
        end = tokenizer.eos_token
        joint = [prompt + said + ("" if said.endswith(end) else end) for said in (chosen, rejected)]
        alone, *both = tokenizer([prompt, *joint])["input_ids"]
    else:
        asked, *joint = plain([prompt, [*prompt, *chosen], [*prompt, *rejected]])
        how = {"tokenize": True, "return_dict": True, **template_arguments(pair)}
        alone = tokenizer.apply_chat_template(asked, add_generation_prompt=True, **how)["input_ids"]
        both = tokenizer.apply_chat_template(joint, **how)["input_ids"]
    border = min(sum(1 for _ in _common(alone, one)) for one in both)
    return [alone[:border], *(one[border:] for one in both)]


def _common(one: list[int], other: list[int]) -> Iterator[int]:
    for x, y in zip(one, other, strict=False):
        if x != y:
            return
        yield x


def arguments_in(pairs: pl.DataFrame) -> list[str]:
    """The columns with what TRL hands to the template beside the messages."""
    return [name for name in ARGUMENTS if name in pairs.columns and pairs[name].null_count() < pairs.height]


def template_arguments(pair: dict[str, Any]) -> dict[str, Any]:
    """What TRL hands to the template beside the messages."""
    tools = pair.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"tools": tools, **(pair.get("chat_template_kwargs") or {})}
