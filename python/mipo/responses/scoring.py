"""Scoring: log π(response | prompt) of token ids, asked of an engine, and kept as it comes.

Knows engines by their contract, and what is kept on disk. Knows nothing of figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from mipo.errors import InputError, StoppedError
from mipo.io.lazy import np
from mipo.responses.engines.contract import Answer, Engine, Scorer, Scoring
from mipo.responses.engines.local import Local

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.models.model import Model


def response_logps(
    prompts: Sequence[NDArray[np.uint32]], responses: Sequence[NDArray[np.uint32]], model: Model, *,
    engine: Engine | None = None, progress: str = "log-probs",
) -> NDArray[np.float64]:  # fmt: skip
    """log π(response | prompt) of each row, [n] in nats: the sum over the response's tokens, 0 for an empty response.

    Like TRL's, the sum leaves out the first token of a response without a prompt, which nothing predicts. `engine`
    scores (default: the model, in this process). Raises StoppedError for the first row that gets no score: a figure
    needs them all.
    """
    from tqdm import tqdm

    logps = np.zeros(len(prompts))
    lengths = [(len(p) + len(r), max(len(p), 1)) for p, r in zip(prompts, responses, strict=True)]
    rows = np.array([row for row, (end, first) in enumerate(lengths) if end > first], dtype=np.int64)
    if not len(rows):
        return logps
    scores = scorer(engine).scores(Scoring(prompts, responses, rows, model))
    with tqdm(total=len(rows), desc=progress, unit="row", delay=0.5) as bar, closing(scores):  # type: ignore[type-var]
        for batch in scores:
            for row, score in batch:
                if isinstance(score, Answer):
                    raise StoppedError(
                        f"log-probs: {score.failure} ({score.detail}), in row {row + 1:,} of {len(prompts):,} "
                        f"({lengths[row][0]:,} tokens); mend the cause, and run the same command again"
                    )
                logps[row] = score
            bar.update(len(batch))
    return logps


def scorer(engine: Engine | None) -> Scorer:
    """The engine as one that scores (default: the model, in this process); InputError for one that only answers."""
    engine = engine or Local()
    if not isinstance(engine, Scorer):
        raise InputError(
            f"engine: expected one that scores responses (local, vllm, or a server of vLLM), got {engine.name()}"
        )
    return engine
