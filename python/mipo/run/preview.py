"""The preview of a run: its first pairs as the model will see them, and its size. Generates nothing."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mipo.evaluation import measurement
from mipo.io import records
from mipo.models.model import Model
from mipo.negatives.draw import contrast
from mipo.responses.answers import FILE
from mipo.responses.engines.choice import of_settings
from mipo.responses.generation import answered
from mipo.responses.requests import compose_requests, link
from mipo.run.prompts import read_prompts
from mipo.run.recipe import run_folder
from mipo.run.training_settings import load_checked
from mipo.tokenizer.chat import encode_prompts, render


def dry_run(path: str | Path, *, output: str | Path | None = None, seed: int | None = None, rows: int = 3) -> str:
    """Returns the first `rows` pairs as the model will see them, and how much the run will generate.

    `output` is the folder of the run, whose answers will not be asked again.
    """
    folder = run_folder(path, output, seed, None)
    recipe = load_checked(path, folder, seed=seed)
    model = Model(recipe.model, trust_remote_code=recipe.trust_remote_code)
    train, test, _, counts = read_prompts(recipe, model)
    measurement.check(test, negatives=recipe.evaluation.negatives, rule=recipe.evaluation.rule, at="evaluation.")
    drawn = contrast(train, seed=recipe.seed, **records.settings(recipe.contrast))
    requests = compose_requests(train, drawn, chat=model.is_chat)
    links = link(train, drawn, requests).with_row_index("row", offset=1)
    shown = links.filter(pl.col("rejected_id").is_not_null()).head(rows)
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
    settings = recipe.responses
    tokens = encode_prompts(requests.prompts["prompt"], model.tokenizer).lengths().sum()
    there = answered(
        requests.prompts, model, folder / FILE, of_settings(settings), settings.sampling, recipe.seed,
        reasoning=settings.reasoning,
    )  # fmt: skip
    known = f"{there:,} of them there already" if there is not None else "some of them there, since a run is at work"
    lines += [
        f"prompts: {counts.describe()}",
        f"{train.height:,} prompts, {drawn['reason'].null_count():,} pairs of kind {recipe.contrast.kind}, "
        f"{requests.prompts.height:,} responses by the engine {settings.engine}, {known}; "
        f"{test.height:,} held-out prompts",
        f"tokens of all requests: {tokens:,} in, at most {requests.prompts.height * settings.max_new_tokens:,} out",
    ]
    return "\n".join(lines)
