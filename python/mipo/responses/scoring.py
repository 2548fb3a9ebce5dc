"""Scoring: log π(response | prompt) of token ids, asked of an engine, and kept as it comes.

Knows engines by their contract, and what is kept on disk. Knows nothing of figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from mipo.errors import InputError, StoppedError
from mipo.io.lazy import np
from mipo.responses.answers import reused
from mipo.responses.engines.contract import Answer, Engine, Scorer, Scoring
from mipo.responses.engines.local import Local
from mipo.responses.scores import Scores, key_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.models.model import Model


def response_logps(
    prompts: Sequence[NDArray[np.uint32]], responses: Sequence[NDArray[np.uint32]], model: Model, *,
    engine: Engine | None = None, database: Path | None = None, reuse: Path | None = None, progress: str = "log-probs",
) -> NDArray[np.float64]:  # fmt: skip
    """log π(response | prompt) of each row, [n] in nats: the sum over the response's tokens, 0 for an empty response.

    Like TRL's, the sum leaves out the first token of a response without a prompt, which nothing predicts. `engine`
    scores (default: the model, in this process). With `database`, each score is kept there as it comes, and a later
    call asks only for the others; those in the folder `reuse` are taken over. Raises NotThereError for a folder without
    a database, and StoppedError for the first row that gets no score: a figure needs them all.
    """
    from tqdm import tqdm

    asked = scorer(engine)
    keys = [key_of(*row) for row in zip(prompts, responses, strict=True)]
    other = reused(reuse, database)
    settings = {"scores": model.identity, **asked.precision(model)} if database or other else {}
    with Scores.open(database, settings) as kept:
        if other:
            kept.copy_from(other)
        logps = kept.known(set(keys))
        # Equal rows are scored once.
        unknown = {
            key: row for row, (key, prompt, response) in enumerate(zip(keys, prompts, responses, strict=True))
            if key not in logps and len(prompt) + len(response) > max(len(prompt), 1)
        }  # fmt: skip
        rows = np.array(sorted(unknown.values()), dtype=np.int64)
        with tqdm(total=len(rows), desc=progress, unit="row", delay=0.5) as bar:
            for batch in _scores(asked, Scoring(prompts, responses, rows, model)):
                new = {keys[row]: logp for row, logp in batch}
                kept.add(new)
                logps |= new
                bar.update(len(batch))
    return np.array([logps.get(key, 0.0) for key in keys])


def _scores(engine: Scorer, asked: Scoring) -> Iterator[list[tuple[int, float]]]:
    """The log-probs of the asked rows, as they come; StoppedError for the first row without one."""
    if not len(asked.rows):
        return
    with closing(engine.scores(asked)) as batches:  # type: ignore[type-var]
        for batch in batches:
            yield [(row, score) for row, score in batch if not isinstance(score, Answer)]
            for row, score in batch:
                if isinstance(score, Answer):
                    raise StoppedError(
                        f"log-probs: {score.failure} ({score.detail}), in row {row + 1:,} of {len(asked.prompts):,} "
                        f"({len(asked.ids(row)):,} tokens); mend the cause, and run the same command again"
                    )


def scorer(engine: Engine | None) -> Scorer:
    """The engine as one that scores (default: the model, in this process); InputError for one that only answers."""
    engine = engine or Local()
    if not isinstance(engine, Scorer):
        raise InputError(
            f"engine: expected one that scores responses (local, vllm, or a server of vLLM), got {engine.name()}"
        )
    return engine
