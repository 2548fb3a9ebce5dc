"""The local engine: samples responses with transformers, in this process. Knows nothing of what is kept of them.

How it scores them is in `mipo.responses.engines.local_scoring`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mipo.io.lazy import np, torch
from mipo.responses.engines.contract import Answer, Scoring, Work
from mipo.responses.engines.local_scoring import score
from mipo.tokenizer.chat import is_chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mipo.models.model import Model
    from mipo.responses.sampling import Sampling

BLOCK_ROWS = 512


class Local:
    """Answers with the model itself, in blocks of prompts.

    A block has its own random numbers, and is sampled whole if any of it is missing, so that an interrupted generation
    gives the answers of an undisturbed one.
    """

    def identity(self) -> dict[str, str]:
        """Nothing: the model decides."""
        return {}

    def name(self) -> str:
        """The engine and its version."""
        import transformers

        return f"local, transformers {transformers.__version__}, torch {torch.__version__}"

    def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
        """An answer to each missing row (see `mipo.responses.engines.contract`)."""
        missing = set(work.missing.tolist())
        for number, start in enumerate(range(0, len(work.rows), BLOCK_ROWS)):
            block = work.rows[start : start + BLOCK_ROWS].tolist()
            if missing.isdisjoint(block):
                continue
            torch.manual_seed(_block_seed(work.seed, number))
            ids = [work.ids[row].tolist() for row in block]
            for batch in sample(ids, work.model, work.sampling):
                yield [(block[place], answer) for place, answer in batch if block[place] in missing]

    def check_scoring(self, model: Model) -> None:
        """Nothing to check."""

    def longest(self, model: Model) -> int | None:
        """The model's context."""
        return model.context_length

    def scores(self, asked: Scoring) -> Iterator[list[tuple[int, float | Answer]]]:
        """The log-prob of each asked row (see `mipo.responses.engines.contract`)."""
        return score(asked)

    def precision(self, model: Model) -> dict[str, object]:
        """The dtype, which may depend on whether there is an accelerator."""
        return {"dtype": model.dtype, "accelerator": torch.accelerator.is_available()}


def sample(ids: list[list[int]], model: Model, sampling: Sampling) -> Iterator[list[tuple[int, Answer]]]:
    """An answer to each prompt's ids, with its place among them, batch by batch."""
    weights, tokenizer = model.weights, model.tokenizer
    ends = model.end_ids
    options: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "eos_token_id": ends}
    hot = {"do_sample": True, "top_k": 0, "temperature": sampling.temperature, "top_p": sampling.top_p}
    options |= hot if sampling.temperature else {"do_sample": False}
    # Long prompts first: memory runs out at the start or never, and batches need little padding.
    order = sorted(range(len(ids)), key=lambda row: (-len(ids[row]), row))
    for batch in (order[start : start + sampling.batch_size] for start in range(0, len(order), sampling.batch_size)):
        started = time.monotonic()
        new_ids = _continue(weights, tokenizer, [ids[row] for row in batch], options)
        seconds = (time.monotonic() - started) / len(batch)
        yield [
            (row, _answer(tokenizer, ids[row], response, ends, seconds))
            for row, response in zip(batch, new_ids, strict=True)
        ]


def _answer(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], response: list[int], ends: list[int], seconds: float
) -> Answer:
    return Answer(
        _decode(tokenizer, prompt, response),
        response_tokens=len(response),
        prompt_tokens=len(prompt),
        finish_reason="stop" if response[-1] in ends else "length",
        seconds=round(seconds, 4),
    )


def _block_seed(seed: int, number: int) -> int:
    """The seed of a block. With seed + number, neighbouring seeds and blocks would share random numbers."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))


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
