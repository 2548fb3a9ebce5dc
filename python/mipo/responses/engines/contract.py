"""The contract of engines: what an engine is asked, and what it answers or scores.

Prompts are read, rendered and encoded when they are asked, some at a time. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mipo.io.lazy import np
from mipo.tokenizer.chat import encode_rendered, render
from mipo.tokenizer.messages import is_messages

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from mipo.io.rowfile import Rows
    from mipo.models.model import Model
    from mipo.responses.sampling import Sampling
    from mipo.tokenizer.table import TokenTable

BLOCK_ROWS = 2_048  # prompts that are read together: opening the tokenizer's engine then weighs nothing


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a prompt, or the reason why there is none.

    `response` is text without special tokens, null for a failure; `response_tokens` counts the end of turn.
    `finish_reason` is `stop` or `length`. A `failure` is a reason (`mipo.reasons`), and `detail` is what the engine
    said of it. A failure that is not `final` may go away, so that a later call asks again.
    """

    response: str | None = None
    response_tokens: int = 0
    prompt_tokens: int = 0
    finish_reason: str = "stop"
    reasoning: str | None = None
    failure: str | None = None
    detail: str | None = None
    final: bool = True
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Block:
    """Some prompts as they are asked: `rows` are their numbers, `prompts` the composed prompts (text or messages).

    `texts` are the rendered ones, `ids` their token ids. `seeds`, below 2³¹, depend on what is asked alone, not on the
    row's place.
    """

    rows: NDArray[np.int64]
    prompts: pl.Series
    texts: pl.Series
    ids: TokenTable
    seeds: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Work:
    """What an engine is asked.

    `requests` has the composed prompts by row (column prompt); `rows` are those that fit the model's context, and
    `missing` those of them that have no answer, both in order. `lengths`, uint32 [n], are the tokens of each prompt,
    and `keys`, uint64 [n, 2], 128 bits of it. `seed` is the user's, `settings` a digest of what an answer depends on
    beside the prompt. `folder` is where an engine may keep files of its own, None where nothing is kept.
    """

    requests: Rows
    rows: NDArray[np.int64]
    missing: NDArray[np.int64]
    lengths: NDArray[np.uint32]
    keys: NDArray[np.uint64]
    model: Model
    sampling: Sampling
    seed: int
    settings: str
    folder: Path | None

    @cached_property
    def is_messages(self) -> bool:
        """Whether the prompts are chat messages, not text."""
        return is_messages(self.requests.take(np.zeros(1, np.int64))["prompt"])

    def block(self, rows: NDArray[np.int64]) -> Block:
        """The prompts of these rows."""
        prompts = self.requests.take(rows)["prompt"]
        texts = render(prompts, self.model.tokenizer)
        seeds = (self.keys[rows, 0] ^ np.uint64(self.seed)) & np.uint64(2**31 - 1)
        ids = encode_rendered(texts, prompts, self.model.tokenizer)
        return Block(rows, prompts, texts, ids, seeds.astype(np.int64))

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[Block]:
        """The prompts of these rows, `BLOCK_ROWS` at a time."""
        return (self.block(rows[start : start + BLOCK_ROWS]) for start in range(0, len(rows), BLOCK_ROWS))


@dataclass(frozen=True, eq=False)
class Scoring:
    """What a scorer is asked: token ids of prompts and responses, and the `rows` that are to be scored.

    Each of them has a token to score. The sum is over the response's tokens, from position `first(row)` on.
    """

    prompts: Sequence[NDArray[np.uint32]]
    responses: Sequence[NDArray[np.uint32]]
    rows: NDArray[np.int64]
    model: Model

    def ids(self, row: int) -> list[int]:
        """The prompt's and the response's ids, as one sequence."""
        return [*self.prompts[row].tolist(), *self.responses[row].tolist()]

    def first(self, row: int) -> int:
        """The position of the first token that counts. Nothing predicts the first token of a sequence."""
        return max(len(self.prompts[row]), 1)


class Engine(Protocol):
    """What answers prompts."""

    def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
        """An answer to each of the rows `work.missing`, with its row: lists of those that have come, which may be kept
        together; the first is empty where the model has been loaded for this. May be closed before its end.

        A failure of one prompt is an Answer. Raises an error of mipo's where no prompt can be answered.
        """

    def identity(self) -> dict[str, str]:
        """What decides its answers beside the model, the prompt and the sampling, as a part of their key."""

    def name(self) -> str:
        """The engine, its version and the model that it serves, for what is kept of each answer."""


@runtime_checkable
class Scorer(Engine, Protocol):
    """An engine that also scores responses."""

    def check_scoring(self, model: Model) -> None:
        """Raises an error of mipo's where the engine cannot score, before anything is spent."""

    def longest(self, model: Model) -> int | None:
        """How many tokens of prompt and response together it can score; None where nobody says."""

    def scores(self, asked: Scoring) -> Iterator[list[tuple[int, float | Answer]]]:
        """log π(response | prompt) of each of the rows `asked.rows`, in nats, or the failure that came instead, with
        the row, in any order: lists of those that have come, which may be kept together.
        """

    def precision(self, model: Model) -> dict[str, object]:
        """What decides how scores are rounded: other values of it are scores of their own."""
