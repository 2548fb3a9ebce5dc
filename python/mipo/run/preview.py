"""The preview of a run: its first pairs as the model will see them, and what it will take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from mipo.errors import InputError
from mipo.evaluation import measurement
from mipo.io import outputs, records
from mipo.models.model import Model
from mipo.negatives.draw import contrast
from mipo.responses.answers import FILE
from mipo.responses.engines.choice import of_settings
from mipo.responses.estimate import estimate
from mipo.responses.generation import generate
from mipo.responses.requests import compose_requests, link
from mipo.responses.scoring import scorer
from mipo.run.prompts import read_prompts
from mipo.run.recipe import run_folder
from mipo.run.training_settings import load_checked
from mipo.tokenizer.chat import render


def dry_run(
    path: str | Path, *, output: str | Path | None = None, seed: int | None = None, rows: int = 3, ask: int = 0
) -> str:
    """Returns the first `rows` pairs as the model will see them, and what the responses of the run will take.

    `output` is the folder of the run, whose answers will not be asked again. With `ask`, so many of the prompts are
    asked first, at random, so that the estimate rests on answers, which are kept there.
    """
    if ask < 0:
        raise InputError(f"ask: expected a number of prompts of at least 0, got {ask}")
    folder = run_folder(path, output, seed, None)
    recipe = load_checked(path, folder, seed=seed)
    model = Model(recipe.model, trust_remote_code=recipe.trust_remote_code)
    train, test, _, counts = read_prompts(recipe, model)
    measurement.check(test, negatives=recipe.evaluation.negatives, rule=recipe.evaluation.rule, at="evaluation.")
    drawn = contrast(train, seed=recipe.seed, **records.settings(recipe.contrast))
    settings = recipe.responses
    requests = compose_requests(train, drawn, chat=model.is_chat, samples=settings.samples, fresh=settings.fresh)
    links = link(train, drawn, requests).with_row_index("row", offset=1)
    first = links.filter(pl.col("rejected_id").is_not_null() & (pl.col("chosen_id") == pl.col("asked_id")))
    shown = first.head(rows)
    own, counter = (
        render(requests.prompts["prompt"].gather(shown[side]), model.tokenizer) for side in ("asked_id", "rejected_id")
    )
    lines = []
    for row, chosen_prompt, rejected_prompt in zip(shown["row"], own, counter, strict=True):
        lines += [
            f"── pair {row}: the prompt of both responses, and what the chosen one answers",
            chosen_prompt,
            "── what the rejected one answers",
            rejected_prompt,
            "",
        ]
    engine, database = of_settings(settings), folder / FILE
    if settings.choose == "best":
        scorer(engine).check_scoring(model)
    expected = estimate(requests.prompts, model, database, engine, settings, recipe.seed, links=links)
    if ask and expected and len(expected.missing):
        some = np.random.default_rng(recipe.seed).permutation(expected.missing)[:ask]
        with outputs.claim(folder, "run"):
            generate(
                requests.prompts[some], model.with_dtype(settings.dtype), database=database, engine=engine,
                seed=recipe.seed, progress="first responses", **settings.options,
            )  # fmt: skip
        expected = estimate(requests.prompts, model, database, engine, settings, recipe.seed, links=links)
    pairs = (links if settings.choose == "each" else drawn)["reason"].null_count()
    there = f"{requests.prompts.height - len(expected.missing):,}" if expected else "a run is at work, some"
    lines += [
        f"prompts: {counts.describe()}",
        f"{train.height:,} prompts, {pairs:,} pairs of kind {recipe.contrast.kind}, "
        f"{requests.prompts.height:,} responses by the engine {settings.engine}, {there} of them there already; "
        f"{test.height:,} held-out prompts",
    ]
    if expected:
        lines.append(expected.describe(settings.prices))
    return "\n".join(lines)
