"""The prompts of a run: which are trained on, which are held out, and why others are dropped."""

from __future__ import annotations

import polars as pl

from mipo import reasons
from mipo.errors import InputError
from mipo.io import records
from mipo.models.model import Model
from mipo.negatives.draw import contrast
from mipo.pairing.filter import dropped
from mipo.prompts import rows as prompt_rows
from mipo.prompts.overlap import overlap_reasons, overlaps
from mipo.prompts.split import hold_out
from mipo.responses.requests import compose_own
from mipo.run.recipe import Recipe
from mipo.run.stages import Rows
from mipo.tokenizer.chat import encode_prompts
from mipo.tokenizer.template import RowError


def read_prompts(recipe: Recipe, model: Model) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame | None, Rows]:
    """Training prompts, held-out prompts, the overlaps between them (None if the recipe allows them), and row counts.

    Prompts that leave no room for a response are dropped from both; training prompts that overlap, from the training.
    """
    section = recipe.prompts
    source = _read_fitting(section.source, section.split, recipe, model)
    rows_in, drops, first = source.rows_in, source.dropped, source.first
    if section.test:
        test = _read_fitting(section.test, section.held_out_split, recipe, model)
        train, held_out = source.frame, test.frame
        rows_in += test.rows_in
        drops = {reason: drops.get(reason, 0) + test.dropped.get(reason, 0) for reason in drops | test.dropped}
        first = test.first | first
    else:
        count = min(512, max(2, source.frame.height // 10)) if section.holdout is None else section.holdout
        train, held_out = hold_out(source.frame, count, seed=recipe.seed, by=section.holdout_by)
    leaks = None
    if section.overlap_share is not None:
        leaks = overlaps(train, held_out, words=section.overlap_words, share=section.overlap_share)
        train, leaked = _without(train, leaks)
        drops = drops | leaked
    _check_held_out(held_out, recipe)
    return train, held_out, leaks, Rows(rows_in, train.height + held_out.height, drops, first)


def fits(composed: pl.Series, model: Model, max_new_tokens: int) -> pl.Series:
    """Whether each composed prompt leaves room for a response in the model's context."""
    room = model.room(max_new_tokens)
    if room is None:
        return pl.Series([True]).new_from_index(0, len(composed))
    return pl.Series(encode_prompts(composed, model.tokenizer).lengths() <= room)


def _read_fitting(source: str, split: str, recipe: Recipe, model: Model) -> prompt_rows.Prompts:
    """The prompts in a split of a source that leave room for a response."""
    section, new = recipe.prompts, recipe.responses.max_new_tokens
    prompts = prompt_rows.read(source, prompt=section.prompt, context=section.context, split=split)
    try:
        too_long = ~fits(compose_own(prompts.frame, chat=model.is_chat), model, new)
    except RowError as error:
        raise InputError(f"{source}: row {prompts.rows[error.row]}: {error.message}") from error
    return prompt_rows.drop(prompts, reasons.too_long_for_context(model.room(new)), too_long)


def _check_held_out(held_out: pl.DataFrame, recipe: Recipe) -> None:
    """InputError where the counterparts of the held-out prompts, which come after all responses, cannot be drawn."""
    try:
        contrast(held_out, seed=recipe.seed, **records.settings(recipe.contrast) | {"negatives": 1})
    except InputError as error:
        raise InputError(f"held-out prompts: {error}") from error


def _without(train: pl.DataFrame, leaks: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """The training prompts without the leaks, numbered anew, and how many are dropped by reason."""
    reason = overlap_reasons(train, leaks)
    clean = train.filter(reason.is_null()).drop("prompt_id")
    if clean.height < 2:
        raise InputError(f"prompts: {leaks.height} of {train.height} training prompts occur in the held-out set")
    return prompt_rows.numbered(clean).select(train.columns), dropped(reason.to_frame())
