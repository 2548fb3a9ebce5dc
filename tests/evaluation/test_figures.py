"""Figures: intervals that cover, and the paired change of two tables of the same prompts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mipo.evaluation.figures import BOOTSTRAP, NEWCOMBE, Figure, change, mean, share, share_change

law = settings(deadline=None, max_examples=60)
# Sums of a few hundred float64 terms.
EXACT = 1e-9


# One side


def test_bootstrap_intervals_cover() -> None:
    random = np.random.default_rng(0)
    figures = [mean(random.exponential(1.0, 100)) for _ in range(60)]
    inside = sum(figure.low <= 1.0 <= figure.high for figure in figures)
    # 95 % of 60 is 57; binomial draws of less than 50 occur once in 10,000.
    assert 50 <= inside <= 60
    width = np.mean([figure.high - figure.low for figure in figures])
    assert width == pytest.approx(2 * 1.96 / 10, rel=0.1)


def test_a_bootstrap_repeats_and_has_no_width_without_spread() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert mean(values) == mean(values)
    assert mean(values) != mean(values, seed=1)
    flat = mean([2, 2, 2])
    assert (flat.value, flat.low, flat.high, flat.rows) == (2, 2, 2, 3)


@given(st.integers(0, 40), st.integers(1, 40))
@law
def test_wilson_solves_its_equation(hits: int, misses: int) -> None:
    n = hits + misses
    figure = share([True] * hits + [False] * misses)
    assert 0 <= figure.low <= figure.value <= figure.high <= 1
    for bound in {figure.low, figure.high} - {0.0, 1.0}:
        # The bounds are where the observed share lies 1.96 standard errors away.
        assert abs(figure.value - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), abs=EXACT)


def test_wilson_by_hand() -> None:
    ten = share([True] * 8 + [False] * 2)
    assert (ten.low, ten.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert share([False] * 10).high == pytest.approx(0.2775, abs=1e-4)


@pytest.mark.parametrize("measure", [mean, share, lambda rows: share_change(rows, rows)])
def test_no_row_has_no_interval(measure: Any) -> None:
    with pytest.raises(ValueError, match="at least one row, got none"):
        measure([])


# The change of a share


def flags(both: int, worse: int, better: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Before and after, by how many rows were true on both sides, before alone, after alone, and on neither."""
    before = [True] * (both + worse) + [False] * (better + neither)
    return before, [True] * both + [False] * worse + [True] * better + [False] * neither


counts = st.tuples(*[st.integers(0, 30)] * 4).filter(any)


@given(counts)
@law
def test_swapping_the_sides_negates_the_change_of_a_share(rows: tuple[int, int, int, int]) -> None:
    before, after = flags(*rows)
    there, back = share_change(before, after), share_change(after, before)
    assert (back.value, back.low, back.high) == (-there.value, -there.high, -there.low)
    assert -1 <= there.low <= there.value <= there.high <= 1
    assert there.value == pytest.approx(share(after).value - share(before).value, abs=EXACT)
    assert (there.interval, there.rows) == (NEWCOMBE, sum(rows))


@pytest.mark.parametrize(
    ("rows", "low", "high"),
    # Examples of Newcombe (1998, Statistics in Medicine 17:2635), method 10, in which the change is before less after.
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((0, 30, 0, 0), 0.8395, 1.0),
    ],
)
def test_newcombe_s_own_examples(rows: tuple[int, int, int, int], low: float, high: float) -> None:
    before, after = flags(*rows)
    figure = share_change(after, before)
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=5e-4)


def test_a_share_that_did_not_change_has_an_interval_and_four_rows_are_no_change() -> None:
    still = share_change(*flags(0, 0, 0, 512))
    assert (still.value, still.high) == (0, pytest.approx(share([False] * 512).high))
    assert share_change(*flags(0, 0, 4, 508)).low < 0 < mean([0] * 508 + [1] * 4).low
    assert share_change(*flags(0, 0, 6, 506)).low > 0


def test_intervals_of_changes_of_shares_cover() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        before = random.random(60) < 0.1
        after = np.where(random.random(60) < 0.8, before, random.random(60) < 0.4)
        figure = share_change(before, after)
        # A fifth of the rows is drawn again, at 0.4 instead of 0.1.
        inside += figure.low <= 0.2 * (0.4 - 0.1) <= figure.high
    # 95 % of 400 is 380; binomial draws of less than 362 occur once in 10,000.
    assert inside >= 362


# The change of two tables


def table(values: list[float | None], correct: list[bool | None], upper: list[float | None]) -> pl.DataFrame:
    rows = {"infonce": values, "accuracy": correct, "leave_one_out": upper}
    kinds = {"infonce": pl.Float64, "accuracy": pl.Boolean, "leave_one_out": pl.Float64}
    prompts = [f"prompt {row}" for row in range(len(values))]
    return pl.DataFrame({"prompt": prompts, "response": prompts}).hstack(pl.DataFrame(rows, schema=kinds))


nats = st.one_of(st.none(), st.floats(-5, 5))
row = st.tuples(nats, nats, st.one_of(st.none(), st.booleans()), st.booleans(), nats, nats)
sides = st.lists(row, min_size=1, max_size=12).map(
    lambda rows: [table(*map(list, zip(*((r[i], r[2 + i], r[4 + i]) for r in rows), strict=True))) for i in (0, 1)]
)


def word(figure: Figure) -> str:
    return "up" if figure.low > 0 else "down" if figure.high < 0 else "not distinguishable"


@given(sides)
@settings(deadline=None, max_examples=30)
def test_swapping_before_and_after_negates_every_change(sides: list[pl.DataFrame]) -> None:
    there, back = change(*sides), change(*reversed(sides))
    mirror = {"information_at_least": "information_at_most", "information_at_most": "information_at_least"}
    assert back.keys() == {mirror.get(name, name) for name in there}
    for name, figure in there.items():
        other = back[mirror.get(name, name)]
        assert (other.value, other.low, other.high) == pytest.approx(
            (-figure.value, -figure.high, -figure.low), abs=EXACT
        )
        near_zero = min(abs(figure.low), abs(figure.high)) < EXACT
        assert near_zero or word(other) == {"up": "down", "down": "up"}.get(word(figure), word(figure))


def test_a_change_is_of_the_rows_that_both_sides_have() -> None:
    before = table([1.0, 2.0, None, 4.0], [True, None, False, False], [1.5, 2.5, None, 4.5])
    after = table([1.5, None, 3.0, 4.5], [True, True, True, True], [2.0, None, 3.5, 5.0])
    figures = change(before, after)
    assert list(figures) == ["infonce", "accuracy", "leave_one_out", "information_at_least", "information_at_most"]
    assert {name: figure.rows for name, figure in figures.items() if name != "accuracy"} == {
        "infonce": 2, "leave_one_out": 2, "information_at_least": 2, "information_at_most": 2,
    }  # fmt: skip
    assert (figures["accuracy"].value, figures["accuracy"].rows) == (pytest.approx(2 / 3), 3)
    assert (figures["accuracy"].interval, figures["infonce"].interval) == (NEWCOMBE, BOOTSTRAP)
    assert (figures["infonce"].low, figures["infonce"].high) == (0.5, 0.5)
    assert figures["information_at_least"].value == 0.0
    assert figures["information_at_most"].value == 1.0


def test_a_figure_that_one_side_lacks_has_no_change() -> None:
    full = table([1.0], [True], [1.5])
    assert list(change(full.drop("leave_one_out"), full)) == ["infonce", "accuracy", "information_at_most"]
    assert list(change(full, full.drop("leave_one_out", "accuracy"))) == ["infonce", "information_at_least"]
    assert "infonce" not in change(full, table([None], [True], [1.5]))


def test_other_prompts_are_refused() -> None:
    side = table([1.0, 2.0], [True, False], [1.0, 2.0])
    with pytest.raises(ValueError, match="different prompts"):
        change(side, side.reverse())
