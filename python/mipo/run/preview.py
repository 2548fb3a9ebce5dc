"""The preview of a run: its first pairs as the model will see them, and what it will cost. Generates nothing."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from mipo.evaluation import measurement
from mipo.models.model import Model
from mipo.negatives.draw import contrast
from mipo.responses.ask import ask, link
from mipo.run import recipe
from mipo.run.inputs import read_prompts, separate
from mipo.tokenizer.chat import render


def dry_run(path: str | Path, *, seed: int | None = None, rows: int = 3) -> str:
    """The first pairs as the model will see them, and what the run will cost, before anything costs anything."""
    settings = recipe.load(path, seed=seed)
    recipe.check_trainer(settings)
    model = Model(settings["model"], trust_remote_code=settings["trust_remote_code"])
    train, test, rows_read = read_prompts(settings, model)
    train, rows_read, _ = separate(settings, train, test, rows_read)
    measurement.check(test, negatives=settings["evaluation"]["negatives"], rule=settings["evaluation"]["rule"])
    drawn = contrast(train, seed=settings["seed"], **settings["contrast"])
    asked = ask(train, drawn, chat=model.is_chat)
    links = link(train, drawn, asked).with_row_index("row", offset=1)
    shown = links.filter(pl.col("rejected_id").is_not_null()).head(rows)
    own, counter = (
        render(asked.prompts["prompt"].gather(shown[side]), model.tokenizer) for side in ("asked_id", "rejected_id")
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
    new = settings["responses"]["max_new_tokens"]
    lines += [
        f"prompts: {rows_read.describe()}",
        f"{train.height:,} prompts, {drawn['reason'].null_count():,} pairs of kind {settings['contrast']['kind']}, "
        f"{asked.prompts.height:,} responses to generate of at most {new:,} tokens each; {test.height:,} held-out "
        "prompts",
    ]
    return "\n".join(lines)
