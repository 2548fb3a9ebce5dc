"""Figures: numbers with their 95 % intervals. Knows statistics alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from mipo.errors import InputError
from mipo.tokenizer.messages import key

RESAMPLES = 2000
BOOTSTRAP = f"95 %, percentile bootstrap over rows, {RESAMPLES} resamples"
WILSON = "95 %, Wilson score interval over rows"


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval [low, high], how the interval was got, and the rows it rests on."""

    value: float
    low: float
    high: float
    interval: str
    rows: int


def mean(values: Any, *, seed: int = 0) -> Figure:
    """The mean of `values` [n] with its percentile bootstrap interval."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise InputError("a mean with its interval needs at least one row, came none")
    draw = np.random.default_rng(seed)
    means = [values[draw.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high), BOOTSTRAP, len(values))


def share(flags: Any) -> Figure:
    """The share of true `flags` [n] with its Wilson interval, which holds at 0 and 1 too."""
    if not len(flags):
        raise InputError("a share with its interval needs at least one row, came none")
    n, p, z = len(flags), float(np.mean(np.asarray(flags, dtype=bool))), 1.959964
    middle, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Figure(p, float(max(0, (middle - spread) / scale)), float(min(1, (middle + spread) / scale)), WILSON, n)


def change(before: pl.DataFrame, after: pl.DataFrame, *, seed: int = 0) -> dict[str, Figure]:
    """What training moved, row by row: the mean of after − before for each figure that both tables of `evaluate` hold.

    Row i of both is the same prompt, so the bootstrap is over pairs: its interval is narrower than the two sides'
    intervals tell, where what is hard for one model is hard for the other. Rows without the figure on one side are
    left out. Raises ValueError for tables of other prompts.
    """
    if not key(before["prompt"]).equals(key(after["prompt"])):
        raise InputError("before and after answer different prompts; evaluate both on the same ones")
    figures: dict[str, Figure] = {}
    for name in (
        n for n, kind in before.schema.items() if n in after.columns and (kind.is_numeric() or kind == pl.Boolean)
    ):
        moved = (after[name].cast(pl.Float64) - before[name].cast(pl.Float64)).drop_nulls()
        figures |= {name: mean(moved, seed=seed)} if len(moved) else {}
    return figures
