"""The local engine: transformers in this process samples a response to each prompt.

Knows sampling. Knows nothing of parts on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mipo.io.lazy import lazy
from mipo.tokenizer.chat import is_chat

if TYPE_CHECKING:
    import polars as pl
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
else:
    pl = lazy("polars")
    torch = lazy("torch")


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that end a response, in order: the tokenizer's and the generation config's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({int(i) for i in [tokenizer.eos_token_id, *listed] if i is not None})


def sample(
    ids: list[list[int]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    how: dict[str, Any],
    batch_size: int,
    bar: Any,
) -> pl.DataFrame:
    """response, response_tokens and truncated for each prompt's ids."""
    greedy, ends = {"do_sample": False, "max_new_tokens": how["max_new_tokens"]}, end_ids(model, tokenizer)
    how = {**({"do_sample": True, "top_k": 0, **how} if how["temperature"] else greedy), "eos_token_id": ends}
    answers: dict[int, tuple[str, int, bool]] = {}
    # Long prompts first: an out-of-memory error comes at the start, and a batch holds little padding.
    order = sorted(range(len(ids)), key=lambda row: (-len(ids[row]), row))
    for batch in (order[at : at + batch_size] for at in range(0, len(order), batch_size)):
        for row, response in zip(batch, _continue(model, tokenizer, [ids[r] for r in batch], how), strict=True):
            answers[row] = (_decode(tokenizer, ids[row], response), len(response), response[-1] not in ends)
        bar.update(len(batch))
    kinds = {"response": pl.String, "response_tokens": pl.UInt32, "truncated": pl.Boolean}
    return pl.DataFrame([answers[row] for row in range(len(ids))], schema=kinds, orient="row")


def _continue(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], how: dict[str, Any]
) -> list[list[int]]:
    """The new token ids of each prompt, up to its end of turn, which is included."""
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    with torch.inference_mode(), _own_distribution(model):
        out = model.generate(**padded, **how, pad_token_id=tokenizer.pad_token_id)
    rows = out[:, padded["input_ids"].shape[1] :].tolist()
    return [row[: next((at + 1 for at, i in enumerate(row) if i in how["eos_token_id"]), len(row))] for row in rows]


@contextmanager
def _own_distribution(model: PreTrainedModel) -> Iterator[None]:
    # A repetition penalty, top_k or suppressed token that the model's maker put into its generation config would draw
    # from another distribution than the reference that training and evaluation score.
    from transformers import GenerationConfig

    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _decode(tokenizer: PreTrainedTokenizerBase, prompt: list[int], response: list[int]) -> str:
    """The response's text. After a plain-text prompt a leading space counts, and only the whole shows it."""

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    if is_chat(tokenizer):
        return text(response)
    before, whole = text(prompt), text(prompt + response)
    return whole[len(before) :] if whole.startswith(before) else text(response)
