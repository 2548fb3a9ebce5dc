"""Figures: numbers with their 95 % intervals, and how much they changed row by row. Knows statistics alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mipo.errors import InputError
from mipo.io.lazy import np, pl
from mipo.tokenizer.messages import key

RESAMPLES = 2000
BOOTSTRAP = f"95 %, percentile bootstrap over rows, {RESAMPLES} resamples"
WILSON = "95 %, Wilson score interval over rows"
NEWCOMBE = "95 %, Newcombe score interval over paired rows"
_Z = 1.959964  # the 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval [low, high], how the interval was computed, and the rows it rests on."""

    value: float
    low: float
    high: float
    interval: str
    rows: int


def mean(values: Any, *, seed: int = 0) -> Figure:
    """The mean of `values` [n] with its percentile bootstrap interval."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise InputError("mean: expected at least one row, got none")
    random = np.random.default_rng(seed)
    means = [values[random.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high), BOOTSTRAP, len(values))


def share(flags: Any) -> Figure:
    """The share of true `flags` [n] with its Wilson interval, which holds at 0 and 1 too."""
    if not len(flags):
        raise InputError("share: expected at least one row, got none")
    n, p, z = len(flags), float(np.mean(np.asarray(flags, dtype=bool))), _Z
    middle, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Figure(p, float(max(0, (middle - spread) / scale)), float(min(1, (middle + spread) / scale)), WILSON, n)


def share_change(before: Any, after: Any) -> Figure:
    """The change in the share of true flags; `before` and `after` [n] are flags of the same rows.

    The interval is Newcombe's (1998, method 10): the Wilson intervals of both shares, joined with the correlation of
    the flags. Unlike a bootstrap it keeps a width where no row changed, and does not call four rows of 512 a change.
    """
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    old, new, n = share(before), share(after), len(before)
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    worse, better = int((before & ~after).sum()), int((~before & after).sum())
    covariance: float = both * neither - worse * better
    covariance = max(covariance - n / 2, 0) if covariance > 0 else covariance
    spread = math.sqrt((both + worse) * (better + neither) * (both + better) * (worse + neither))
    correlation = covariance / spread if spread else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one * one + other * other - 2 * correlation * (one * other), 0))

    value = float(np.mean(after.astype(np.float64) - before.astype(np.float64)))
    low, high = reach(new.value - new.low, old.high - old.value), reach(new.high - new.value, old.value - old.low)
    return Figure(value, value - low, value + high, NEWCOMBE, n)


def change(before: pl.DataFrame, after: pl.DataFrame, *, seed: int = 0) -> dict[str, Figure]:
    """How much each figure changed that both tables of `evaluate` hold: after − before, row by row.

    Row i of both is the same prompt, so the interval is that of the rows' differences. It is narrower than the two
    sides' own intervals allow, if rows that are hard for one model are hard for the other. A row without the figure on
    one side is left out. If both sides have bounds on the information, `information_at_least` is the lower bound after
    minus the upper bound before, and `information_at_most` the upper bound after minus the lower bound before.

    Raises InputError for tables of different prompts.
    """
    if not key(before["prompt"]).equals(key(after["prompt"])):
        raise InputError("before and after: expected responses to the same prompts, got different prompts")
    compared = {name: (name, name) for name, kind in before.schema.items() if kind.is_numeric() or kind == pl.Boolean}
    compared["information_at_least"] = ("leave_one_out", "infonce")
    compared["information_at_most"] = ("infonce", "leave_one_out")
    figures: dict[str, Figure] = {}
    for name, (old, new) in compared.items():
        if old not in before.columns or new not in after.columns:
            continue
        rows = pl.DataFrame([before[old].alias("before"), after[new].alias("after")]).drop_nulls()
        if rows.height and rows.dtypes == [pl.Boolean, pl.Boolean]:
            figures[name] = share_change(rows["before"], rows["after"])
        elif rows.height:
            figures[name] = mean(rows["after"].cast(pl.Float64) - rows["before"].cast(pl.Float64), seed=seed)
    return figures
