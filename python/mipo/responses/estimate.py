"""The estimate: what the responses that are still missing will take, by the prompts and by the answers that are there.

Knows prompts, the database of answers and prices. Asks no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mipo.errors import WriteError
from mipo.responses.answers import Answers, keys_of
from mipo.responses.generation import settings_of
from mipo.responses.sampling import Prices, Responses
from mipo.tokenizer.chat import encode_prompts

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from mipo.io.lazy import np
    from mipo.models.model import Model
    from mipo.responses.engines.contract import Engine

MILLION = 1_000_000


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is there, and what is left: `missing` are rows of the prompts, and tokens are counted for these alone.

    `answers` is how many answers there are under the same settings, for these prompts or others. `tokens_out` and
    `seconds` are estimated from them, and are null where they do not say. With `is_most`, `seconds` is an upper bound.
    For `choose: best`, `scores` is how many scores follow, and `tokens_scored` of how many tokens.
    """

    missing: np.ndarray
    tokens_in: int
    most_tokens_out: int
    answers: int
    tokens_out: float | None
    seconds: float | None
    is_most: bool = False
    scores: int = 0
    tokens_scored: float = 0.0

    def describe(self, prices: Prices | None) -> str:
        """In a line or two, and one for the scores."""
        lines = [
            f"tokens of the responses that are missing: {self.tokens_in:,} in, at most {self.most_tokens_out:,} out"
        ]
        if prices:
            lines[0] += f", for at most {_cost(prices, self.tokens_in, self.most_tokens_out)}"
        if self.tokens_out is not None and len(self.missing):
            lines.append(f"by the {self.answers:,} answers that are there: about {self.tokens_out:,.0f} out")
            if self.seconds is not None:
                lines[1] += f", {'at most ' * self.is_most}{duration(self.seconds)}"
            if prices:
                lines[1] += f", for {_cost(prices, self.tokens_in, self.tokens_out)}"
        if self.scores:
            about = "at most" if self.tokens_out is None else "about"
            lines.append(f"choose: best scores {self.scores:,} times: {about} {self.tokens_scored:,.0f} tokens in")
            if prices:
                lines[-1] += f", for {_cost(prices, self.tokens_scored, self.scores)}"
        return "\n".join(lines)


def _cost(prices: Prices, tokens_in: float, tokens_out: float) -> str:
    return f"{(tokens_in * prices.input + tokens_out * prices.output) / MILLION:,.2f}"


def estimate(
    prompts: pl.DataFrame, model: Model, database: Path, engine: Engine, settings: Responses, seed: int, *,
    links: pl.DataFrame | None = None,
) -> Estimate | None:  # fmt: skip
    """What the prompts without an answer in `database` will take; None where a process is at work on it.

    `links` are those of the prompts; with `choose: best`, they say how much is scored: each chosen response under its
    prompt and under the counter-prompts.
    """
    lengths = encode_prompts(prompts["prompt"], model.tokenizer).lengths()
    key = settings_of(model, settings.sampling, seed, engine, is_split=settings.reasoning != "part")
    try:
        with Answers.open(database if database.exists() else None, key) as answers:
            missing = answers.missing(keys_of(prompts))
            count, tokens, own, seconds = answers.averages(settings.engine)
    except WriteError:
        return None
    side_by_side = _side_by_side(settings)
    scores, scored = _scores(lengths, links) if links is not None and settings.choose == "best" else (0, 0)
    return Estimate(
        missing,
        int(lengths[missing].sum()),
        len(missing) * settings.max_new_tokens,
        count,
        tokens and tokens * len(missing),
        seconds * len(missing) / min(side_by_side, max(len(missing), 1)) if seconds and side_by_side else None,
        # Fewer rows than a batch has take nearly the time of a whole one.
        settings.engine == "local" and own < min(settings.batch_size, len(missing)),
        scores,
        scored + scores * (settings.max_new_tokens if tokens is None else tokens),
    )


def _scores(lengths: NDArray[np.int64], links: pl.DataFrame) -> tuple[int, int]:
    """How many scores a choice among the responses of these links takes, and the tokens of their prompts."""
    pairs = links.drop_nulls("rejected_id")
    chosen = pairs.unique("chosen_id")
    asked = lengths[chosen["asked_id"]].sum() + lengths[pairs["rejected_id"]].sum()
    return chosen.height + pairs.height, int(asked)


def _side_by_side(settings: Responses) -> int | None:
    """How many answers pass side by side, since their seconds are those of one; None where nobody knows."""
    match settings.engine:
        case "server":
            return settings.concurrency * len(settings.urls)
        case "ray":
            return settings.workers
        case "batch":
            return None
    return 1  # an answer's seconds are its share of the time


def duration(seconds: float) -> str:
    """A length of time, in its largest unit that is not below two: "90 seconds", "17 minutes", "5 hours"."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"
