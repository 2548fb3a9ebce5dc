"""Laws of keys: rows are found by them as by their values, in any order."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mipo.io.keys import NOWHERE, Ids, Index, keys_of

texts = st.lists(st.sampled_from(["", "a", "b", "ab", "c"]), max_size=30)
ids = st.lists(st.integers(0, 2**64 - 2), unique=True, max_size=20)


def repeated(values: list[object]) -> list[int]:
    return [row for row, value in enumerate(values) if values.count(value) > 1]


@given(texts, texts)
def test_rows_are_found_as_a_list_finds_them(values: list[str], wanted: list[str]) -> None:
    index = Index(keys_of(pl.Series(values, dtype=pl.String)))
    places = index.find(keys_of(pl.Series(wanted, dtype=pl.String)))
    assert places.tolist() == [values.index(value) if value in values else NOWHERE for value in wanted]
    assert index.repeated().tolist() == repeated(values)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_keys_that_share_a_half_are_told_apart(pairs: list[tuple[int, int]]) -> None:
    every = [(low, high) for low in range(4) for high in range(4)]
    index = Index(np.array(pairs, dtype=np.uint64).reshape(-1, 2))
    places = index.find(np.array(every, dtype=np.uint64))
    assert places.tolist() == [pairs.index(pair) if pair in pairs else NOWHERE for pair in every]
    assert index.repeated().tolist() == repeated(pairs)


def test_different_texts_have_different_keys() -> None:
    keys = keys_of(pl.Series(range(200_000)).cast(pl.String))
    assert len(Index(keys).repeated()) == 0
    assert all(np.unique(keys[:, half]).size == 200_000 for half in (0, 1))


@given(ids, st.lists(st.integers(0, 2**64 - 2) | st.none(), max_size=20))
def test_ids_find_rows_and_rows_their_ids(values: list[int], others: list[int | None]) -> None:
    known = Ids.of(pl.DataFrame({"id": pl.Series(values, dtype=pl.UInt64)}), "id")
    wanted = [*values, *others]
    rows = known.find(pl.Series(wanted, dtype=pl.UInt64))
    assert rows.tolist() == [values.index(one) if one in values else NOWHERE for one in wanted]
    assert known.of_rows(rows).to_list() == [one if one in values else None for one in wanted]


def test_without_ids_a_row_is_its_number() -> None:
    known = Ids.of(pl.LazyFrame({"other": [7, 8, 9]}), "id")
    assert known.find(pl.Series([2, 3, None], dtype=pl.UInt64)).tolist() == [2, NOWHERE, NOWHERE]
    assert known.values is None


@pytest.mark.parametrize("values", [[1, 1], [-1, 2], ["a"], [None, 1], [0.5]])
def test_what_is_no_id_is_refused(values: list[object]) -> None:
    with pytest.raises(ValueError, match=r"id: expected \d distinct whole numbers from 0, got"):
        Ids.of(pl.DataFrame({"id": values}), "id")
