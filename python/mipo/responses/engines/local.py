"""The local engine: samples responses with transformers, in this process.

Knows sampling. Knows nothing of parts on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mipo.io.lazy import pl, torch
from mipo.tokenizer.chat import is_chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that end a response, sorted: the tokenizer's and the generation config's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({int(i) for i in [tokenizer.eos_token_id, *listed] if i is not None})


def sample(
    ids: list[list[int]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: dict[str, Any],
    batch_size: int,
    bar: Any,
) -> pl.DataFrame:
    """response, response_tokens and truncated for each prompt's ids.

    `sampling`: temperature, top_p and max_new_tokens.
    """
    greedy, ends = {"do_sample": False, "max_new_tokens": sampling["max_new_tokens"]}, end_ids(model, tokenizer)
    options = {"do_sample": True, "top_k": 0, **sampling} if sampling["temperature"] else greedy
    responses: dict[int, tuple[str, int, bool]] = {}
    # Long prompts first: memory runs out at the start or never, and batches need little padding.
    order = sorted(range(len(ids)), key=lambda row: (-len(ids[row]), row))
    for batch in (order[start : start + batch_size] for start in range(0, len(order), batch_size)):
        new_ids = _continue(model, tokenizer, [ids[row] for row in batch], {**options, "eos_token_id": ends})
        for row, response in zip(batch, new_ids, strict=True):
            responses[row] = (_decode(tokenizer, ids[row], response), len(response), response[-1] not in ends)
        bar.update(len(batch))
    columns = {"response": pl.String, "response_tokens": pl.UInt32, "truncated": pl.Boolean}
    return pl.DataFrame([responses[row] for row in range(len(ids))], schema=columns, orient="row")


def _continue(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], options: dict[str, Any]
) -> list[list[int]]:
    """The new token ids of each prompt, up to and with its end of turn."""
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    with torch.inference_mode(), _own_distribution(model):
        out = model.generate(**padded, **options, pad_token_id=tokenizer.pad_token_id)
    rows, ends = out[:, padded["input_ids"].shape[1] :].tolist(), options["eos_token_id"]
    return [row[: next((place + 1 for place, i in enumerate(row) if i in ends), len(row))] for row in rows]


@contextmanager
def _own_distribution(model: PreTrainedModel) -> Iterator[None]:
    # A repetition penalty, top_k or suppressed token in the model's generation config would change the distribution:
    # it would no longer be the reference that training and evaluation score.
    from transformers import GenerationConfig

    config, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = config


def _decode(tokenizer: PreTrainedTokenizerBase, prompt: list[int], response: list[int]) -> str:
    """The response's text. After a plain-text prompt a leading space counts; only decoding both together shows it."""

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    if is_chat(tokenizer):
        return text(response)
    before, whole = text(prompt), text(prompt + response)
    return whole[len(before) :] if whole.startswith(before) else text(response)
