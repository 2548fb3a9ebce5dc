"""Inputs: the training and held-out prompts of a recipe, and what becomes of the others."""

from __future__ import annotations

import polars as pl

from mipo.errors import InputError
from mipo.models.model import Model
from mipo.pairing.judge import dropped
from mipo.prompts import rows as prompt_rows
from mipo.prompts.overlap import overlaps, reasons
from mipo.prompts.split import hold_out
from mipo.responses.ask import compose_own
from mipo.run.recipe import Recipe
from mipo.run.stages import Rows
from mipo.tokenizer.chat import encode_prompts


def read_prompts(recipe: Recipe, model: Model) -> tuple[pl.DataFrame, pl.DataFrame, Rows]:
    """Training and held-out prompts of a recipe, and what became of the rows; without a look at overlaps."""
    section = recipe.prompts
    read = _fitting(section.source, recipe, model)
    if section.test:
        test = _fitting(section.test, recipe, model)
        lost = {r: read.dropped.get(r, 0) + test.dropped.get(r, 0) for r in read.dropped | test.dropped}
        first = test.first | read.first
        rows = Rows(read.rows_in + test.rows_in, read.frame.height + test.frame.height, lost, first)
        return read.frame, test.frame, rows
    held = min(512, max(2, read.frame.height // 10)) if section.holdout is None else section.holdout
    train, test_rows = hold_out(read.frame, held, seed=recipe.seed, by=section.holdout_by)
    return train, test_rows, Rows(read.rows_in, train.height + test_rows.height, read.dropped, read.first)


def separate(
    recipe: Recipe, train: pl.DataFrame, test: pl.DataFrame, rows: Rows
) -> tuple[pl.DataFrame, Rows, pl.DataFrame | None]:
    """The training prompts less those that occur among the held-out ones, if the recipe says so; those, a row each."""
    section = recipe.prompts
    if section.overlap_share is None:
        return train, rows, None
    leaks = overlaps(train, test, words=section.overlap_words, share=section.overlap_share)
    why = reasons(train, leaks)
    kept = train.filter(why.is_null()).drop("prompt_id")
    if kept.height < 2:
        raise InputError(f"prompts: {leaks.height} of {train.height} training prompts occur in the held-out set")
    lost = rows.dropped | dropped(why.to_frame())
    kept = prompt_rows.numbered(kept).select(train.columns)
    return kept, Rows(rows.rows_in, rows.rows_out - leaks.height, lost, rows.first), leaks


def fits(composed: pl.Series, model: Model, max_new_tokens: int) -> pl.Series:
    """Whether each composed prompt leaves room for a response in the model's context."""
    room = model.room(max_new_tokens)
    if room is None:
        return pl.Series([True]).new_from_index(0, len(composed))
    return pl.Series(encode_prompts(composed, model.tokenizer).lengths() <= room)


def _fitting(source: str, recipe: Recipe, model: Model) -> prompt_rows.Prompts:
    """The prompts of a source, less those that leave no room for a response."""
    section, new = recipe.prompts, recipe.responses.max_new_tokens
    read = prompt_rows.read(source, prompt=section.prompt, context=section.context, split=section.split)
    long = ~fits(compose_own(read.frame, chat=model.is_chat), model, new)
    return prompt_rows.drop(read, f"longer than the {model.room(new)} tokens that the model's context leaves", long)
