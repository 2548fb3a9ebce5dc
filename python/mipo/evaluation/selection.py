"""The selection among samples: the one of each prompt whose response says most of its prompt.

Knows links, responses, an engine that scores, and the information bounds. Knows nothing of run folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from mipo.evaluation.bounds import row_bounds
from mipo.evaluation.measurement import fitting_candidates
from mipo.responses.scoring import response_logps, scorer

if TYPE_CHECKING:
    from mipo.models.model import Model
    from mipo.responses.engines.contract import Engine


def select_best(
    links: pl.DataFrame, responses: pl.DataFrame, model: Model, *, engine: Engine | None = None,
    database: Path | None = None, reuse: Path | None = None,
) -> pl.Series:  # fmt: skip
    """Which rows of `links` belong to the sample of their prompt with the highest leave-one-out PMI, boolean [rows].

    That is log π(response | prompt) less the log of its mean probability under the counter-prompts of the same rows.
    `links`, with the reasons of `mipo.pairing.filter.add_reasons`, and `responses` are those of a run. `engine` scores
    (default: the model, in this process), and what it scores is kept in `database`, with what the folder `reuse` has.
    Of samples with equal PMI the first is taken, and where none can be scored: one that is in no pair cannot, nor one
    that is longer with any of these prompts than the engine reads.
    """
    rows = links.with_row_index("row").group_by("prompt_id", "chosen_id", maintain_order=True)
    groups = rows.agg("row", pl.col("asked_id").first(), "rejected_id", is_pair=pl.col("reason").is_null().any())
    table = responses.select("response_id", "prompt", "response", "truncated").sort("response_id")
    assert table["response_id"].equals(pl.int_range(table.height, dtype=pl.UInt64, eager=True).alias("response_id"))
    texts = table["response"].str.strip_chars().fill_null("")
    usable = groups["is_pair"] & (texts.gather(groups["chosen_id"]) != "")
    scores = np.full(groups.height, -np.inf)
    if usable.any():
        scored = np.flatnonzero(usable)
        asked = groups[scored]
        candidates = np.column_stack([asked["asked_id"], *np.array(asked["rejected_id"].to_list()).T]).astype(np.int64)
        own, longest = table[asked["chosen_id"]], scorer(engine).longest(model)
        fits, ids = fitting_candidates(table["prompt"], candidates, own, model.tokenizer, longest)
        if fits.any():
            logps = response_logps(*ids, model, engine=engine, database=database, reuse=reuse, progress="best samples")
            scores[scored[fits]] = row_bounds(logps.reshape(-1, candidates.shape[1]))[1]
    groups = groups.with_columns(score=scores)
    best = groups.select(pl.col("score").arg_max().over("prompt_id") == pl.int_range(pl.len()).over("prompt_id"))
    flags = np.zeros(links.height, dtype=bool)
    flags[groups.filter(best.to_series())["row"].explode()] = True
    return pl.Series(flags)
