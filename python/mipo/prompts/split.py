"""The split: which prompts are held out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipo.errors import InputError
from mipo.io.lazy import lazy
from mipo.prompts.equal import first_equal
from mipo.prompts.rows import _number

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
else:
    np = lazy("numpy")
    pl = lazy("polars")


def hold_out(frame: pl.DataFrame, rows: int, *, seed: int, by: str | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Splits into (training, held-out) rows at random, `rows` of them held out; each side is numbered anew.

    `by` keeps all rows with one value (a user; null is one too) on one side. Then `rows` is the most that is held out:
    users who do not fit any more stay in training.
    """
    if by is not None and by not in frame.columns:
        raise InputError(f"holdout_by: no column {by!r}; the prompts have {', '.join(frame.columns)}")
    if not 2 <= rows <= frame.height - 2:
        raise InputError(f"holdout: {rows} of {frame.height} rows; it takes at least 2 rows and leaves at least 2")
    unit = first_equal(frame, [by]) if by else pl.int_range(frame.height, dtype=pl.UInt64, eager=True)
    held = unit.is_in(_fitting(unit, rows, seed).implode())
    if held.sum() < 2:
        raise InputError(
            f"holdout: of {unit.n_unique()} values of {by!r} no two rows fit in {rows}; hold out more rows"
        )
    return _number(frame.filter(~held)), _number(frame.filter(held))


def _fitting(units: pl.Series, rows: int, seed: int) -> pl.Series:
    """Random units (each named by a value of `units`, one a row) that together have at most `rows` rows."""
    sizes = units.value_counts().sort(units.name)
    held, left = [], rows
    for place in np.random.default_rng(seed).permutation(sizes.height).tolist():
        unit, size = sizes.row(place)
        if size <= left:
            held.append(unit)
            left -= size
    return pl.Series(held, dtype=units.dtype)
