"""The contract of engines: what an engine is asked, and what it answers or scores. Knows no engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from mipo.io.lazy import np
    from mipo.models.model import Model
    from mipo.responses.sampling import Sampling
    from mipo.tokenizer.table import TokenTable


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
class Work:
    """What an engine is asked.

    `prompts` are composed prompts (text or messages), `ids` the token ids of each, `rows` those that fit the model's
    context, and `missing` those of them that have no answer. `seeds`, one for each row, below 2³¹, depend on what is
    asked alone, not on the row's place; `seed` is the user's.

    `keys`, uint64 [n, 2], are 128 bits of each prompt, and `settings` a digest of what an answer depends on beside it.
    `folder` is where an engine may keep files of its own, None where nothing is kept.
    """

    prompts: pl.Series
    ids: TokenTable
    rows: NDArray[np.int64]
    missing: NDArray[np.int64]
    seeds: NDArray[np.int64]
    model: Model
    sampling: Sampling
    seed: int
    keys: NDArray[np.uint64]
    settings: str
    folder: Path | None


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
