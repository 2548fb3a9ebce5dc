"""The split: holds out prompts for the evaluation."""

from __future__ import annotations

from mipo.errors import InputError
from mipo.io.lazy import np, pl
from mipo.prompts.equality import first_equal
from mipo.prompts.rows import renumbered


def hold_out(frame: pl.DataFrame, rows: int, *, seed: int, by: str | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Splits at random into (training, held-out) rows, `rows` of them held out; each side is numbered anew.

    `by` names a column: rows with equal values there (a user; null is a value, too) stay on one side. `rows` is then
    the most that is held out: users who no longer fit stay in training.
    """
    if by is not None and by not in frame.columns:
        raise InputError(f"holdout_by: no column {by!r}; the prompts have {', '.join(frame.columns)}")
    if not 2 <= rows <= frame.height - 2:
        raise InputError(
            f"holdout: expected at least 2 rows, and at least 2 left for training, got {rows} of {frame.height}"
        )
    units = first_equal(frame, [by]) if by else pl.int_range(frame.height, dtype=pl.UInt64, eager=True)
    held_out = units.is_in(_fitting(units, rows, seed).implode())
    if held_out.sum() < 2:
        raise InputError(
            f"holdout: of {units.n_unique()} values of {by!r} no two rows fit in {rows}; hold out more rows"
        )
    return renumbered(frame.filter(~held_out)), renumbered(frame.filter(held_out))


def _fitting(units: pl.Series, rows: int, seed: int) -> pl.Series:
    """A random choice among the distinct values of `units` (one per row) that covers at most `rows` rows."""
    sizes = units.value_counts().sort(units.name)
    chosen, left = [], rows
    for place in np.random.default_rng(seed).permutation(sizes.height).tolist():
        unit, size = sizes.row(place)
        if size <= left:
            chosen.append(unit)
            left -= size
    return pl.Series(chosen, dtype=units.dtype)
