"""The local engine: samples responses with transformers, in this process. Knows nothing of what is kept of them.

How it scores them is in `mipo.responses.engines.local_scoring`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mipo.io.lazy import np, torch
from mipo.responses.engines.contract import Answer, Block, Scoring, Work
from mipo.responses.engines.local_scoring import score
from mipo.responses.engines.picking import picker
from mipo.tokenizer.chat import is_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mipo.models.model import Model
    from mipo.responses.sampling import Sampling

BLOCK_ROWS = 512


class Local:
    """Answers with the model itself, in blocks of prompts.

    A block is sampled whole if any of it is missing: an answer's random numbers depend on its prompt alone, but its
    logits are rounded as the rows beside it have it, and an interrupted generation gives the answers of an undisturbed
    one, bit by bit, unless memory ran out.
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
        is_missing = np.zeros(len(work.keys), dtype=bool)
        is_missing[work.missing] = True
        chunks = (work.rows[start : start + BLOCK_ROWS] for start in range(0, len(work.rows), BLOCK_ROWS))
        blocks = (work.block(rows) for rows in chunks if is_missing[rows].any())
        for answered in self.stream(work.model, work.sampling, blocks):
            answers = [(row, answer) for row, answer in answered if is_missing[row]]
            if answers or not answered:
                yield answers

    def stream(self, model: Model, sampling: Sampling, blocks: Iterable[Block]) -> Iterator[list[tuple[int, Answer]]]:
        """An answer to each prompt of the blocks, which are decoded one after another; first an empty list."""
        from mipo.responses.engines.decoding import decode

        weights, ends, rows = model.weights, model.end_ids, sampling.batch_size

        def shrink(count: int) -> None:
            nonlocal rows
            rows = count

        yield []
        for block in blocks:
            prompts, numbers = [ids.tolist() for ids in block.ids], block.rows.tolist()
            pick = picker(sampling, block.seeds.tolist())
            new, before = sampling.max_new_tokens, time.monotonic()
            for ended in decode(weights, prompts, pick, rows=rows, new=new, ends=ends, shrink=shrink):
                seconds, before = (time.monotonic() - before) / len(ended), time.monotonic()
                yield [
                    (numbers[place], _answer(model.tokenizer, prompts[place], ids, ends, seconds))
                    for place, ids in ended
                ]

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


def _decode(tokenizer: PreTrainedTokenizerBase, prompt: list[int], response: list[int]) -> str:
    """The response's text. After a plain-text prompt a leading space counts; only decoding both together shows it."""

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    if is_chat(tokenizer):
        return text(response)
    before, whole = text(prompt), text(prompt + response)
    return whole[len(before) :] if whole.startswith(before) else text(response)
