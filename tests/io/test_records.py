"""Records: plain values become frozen, typed settings, or every wrong one is refused in words."""

from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from mipo.errors import InputError
from mipo.io import records
from mipo.io.records import Count, Record, Share, Text


class Inner(Record, frozen=True, kw_only=True):
    column: Text
    limits: dict[str, Share] | None = None

    def __post_init__(self) -> None:
        if self.column == "both" and self.limits:
            raise InputError("limits: expected none for both")


class Outer(Record, frozen=True, kw_only=True):
    inner: Inner
    other: Inner | None = None
    rows: Annotated[Count, Meta(description="how many")] = 3
    rate: float = 0.5


def test_a_record_is_read_from_plain_values_and_written_as_such() -> None:
    values = {"inner": {"column": "a", "limits": {"x": 1}}, "other": None, "rows": 2, "rate": 1}
    record = records.read(Outer, values)
    assert record == Outer(inner=Inner(column="a", limits={"x": 1.0}), rows=2, rate=1.0)
    assert records.read(Outer, records.settings(record)) == record


@pytest.mark.parametrize("number", [np.float64(0.25), np.float32(0.25), 0.25])
def test_numpy_s_numbers_are_numbers(number: Any) -> None:
    record = records.read(Outer, {"inner": {"column": "a"}, "rate": number, "rows": np.int64(4)})
    assert (record.rate, type(record.rate), record.rows, type(record.rows)) == (0.25, float, 4, int)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "at.inner.column: is missing; expected text"),
        ({"inner": None}, "at.inner.column: is missing; expected text"),
        ({"inner": {"column": "a"}, "other": {}}, "at.other.column: is missing; expected text"),
        ({"inner": {"column": "both", "limits": {"x": 0.1}}}, "at.inner.limits: expected none for both"),
        ({"inner": {"column": "a", "limits": {"x": 2}}}, "at.inner.limits.x: expected a number from 0 to 1, got 2"),
        ({"inner": {"column": "a", "limits": {5: 1}}}, "at.inner.limits: expected settings as {name: a number from"),
        ({"inner": {"column": "a"}, "rate": float("nan")}, "at.rate: expected a number, got nan"),
        ({"inner": {"column": "a"}, "rows": "x" * 200}, f"got '{'x' * 78}…"),
        (5, "at: expected settings as `name: value`, got 5"),
    ],
)
def test_what_is_wrong_has_its_full_name(values: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        records.read(Outer, values, at="at")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (Annotated[int, Meta(ge=1, le=9)], "a whole number from 1 to 9"),
        (Annotated[float, Meta(gt=0, lt=1)] | None, "a number above 0 and below 1 or null"),
        (bool, "true or false"),
        (Literal["b", "a", "c"] | None, "a, b, c or null"),
        (Literal["a"], "a"),
        (list[str], "a list of texts"),
        (tuple[int, ...], "a list of whole numbers"),
        (tuple[str, float], "[text, a number]"),
        (list[list[int]], "a list"),
        (dict[str, int] | str | None, "settings as {name: a whole number}, text or null"),
        (dict[str, Any], "settings"),
        (Any, "a value"),
    ],
)
def test_a_type_in_words(kind: Any, words: str) -> None:
    assert records.allowed(kind) == words


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional={"inner": JSON, "other": JSON, "rows": JSON, "rate": JSON, "more": JSON}))
def test_any_values_are_a_record_or_refused_by_name(values: dict[str, Any]) -> None:
    record, problems = records.examine(Outer, values)
    assert (record is None) == bool(problems)
    if record is None:
        assert all(problem.startswith(("inner", "other", "rows", "rate", "more")) for problem in problems)
        with pytest.raises(InputError):
            records.read(Outer, values)
    else:
        assert records.read(Outer, records.settings(record)) == record
