"""Judging: decides which rows are pairs, and why the others are not. Knows row numbers and answers, and no text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mipo.io import tables
from mipo.io.lazy import lazy
from mipo.pairing.answers import EMPTY, MISSING, Answers
from mipo.reasons import EMPTY_RESPONSE, EQUAL_RESPONSES, NO_RESPONSE

if TYPE_CHECKING:
    import polars as pl

    from mipo.io.tables import Table
else:
    pl = lazy("polars")

BATCH_ROWS = 131_072  # with prompts and responses of 300 characters each, under a gibibyte


def judge(links: pl.DataFrame, answers: Answers) -> pl.DataFrame:
    """The rows of `links` (see `mipo.responses.ask.link`) with `reason`: null, or why the row is not a pair."""
    chosen, rejected = (answers.ids.find(links[side]) for side in ("chosen_id", "rejected_id"))
    states = answers.state_of(chosen), answers.state_of(rejected)
    verdicts = pl.DataFrame(
        {
            "missing": (states[0] == MISSING) | (states[1] == MISSING),
            "empty": (states[0] == EMPTY) | (states[1] == EMPTY),
            "equal": answers.text[chosen] == answers.text[rejected] if len(answers.text) else [False] * len(chosen),
        }
    )
    reason = (
        pl.when(links["reason"].is_not_null())
        .then(links["reason"])
        .when("missing")
        .then(pl.lit(NO_RESPONSE))
        .when("empty")
        .then(pl.lit(EMPTY_RESPONSE))
        .when("equal")
        .then(pl.lit(EQUAL_RESPONSES))
    )
    return links.with_columns(verdicts.select(reason.alias("reason")).to_series())


def write_judged(
    links: Iterable[pl.DataFrame] | Table, answers: Answers, path: Path, *, batch_rows: int = BATCH_ROWS
) -> tuple[int, int, dict[str, int]]:
    """Writes the judged rows, pairs and others; returns the rows, the pairs, and the other rows by reason."""
    rows, reasons = 0, Counter[str]()

    def judged_batches() -> Iterator[pl.DataFrame]:
        nonlocal rows
        for batch in batches:
            judged = judge(batch, answers)
            reasons.update(dropped(judged))
            rows += judged.height
            yield judged

    batches = tables.batches(links, batch_rows) if isinstance(links, pl.DataFrame | pl.LazyFrame) else links
    tables.write(judged_batches(), path)
    return rows, rows - reasons.total(), by_frequency(reasons)


def keep(judged: pl.DataFrame) -> pl.DataFrame:
    """The pairs among the judged rows, without the column `reason`."""
    return judged.filter(pl.col("reason").is_null()).drop("reason")


def dropped(judged: pl.DataFrame) -> dict[str, int]:
    """How many rows have each `reason`, in the order of `by_frequency`."""
    return by_frequency(dict(judged["reason"].drop_nulls().value_counts().iter_rows()))


def by_frequency(counts: dict[str, int]) -> dict[str, int]:
    """The counts, the highest first, equal ones in alphabetical order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
