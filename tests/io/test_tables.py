"""Laws of tables: batches hold every row once and in order, and files are written whole or not at all."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mipo.io import tables


def broken(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    yield frame
    raise ValueError("row 11 is wrong")


columns = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.none() | st.text(max_size=5)), max_size=30)


def frame_of(rows: list[tuple[int, str | None]]) -> pl.DataFrame:
    return pl.DataFrame(rows, {"hash": pl.UInt64, "text": pl.String}, orient="row")


@given(columns, st.integers(1, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_batches_are_the_table_in_full_lots(rows: list[tuple[int, str | None]], size: int, lazy: bool) -> None:
    frame = frame_of(rows)
    batches = list(tables.batches(frame.lazy() if lazy else frame, size))
    assert pl.concat(batches).equals(frame)
    assert [batch.height for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert batches[-1].height in range(1 if rows else 0, size + 1)
    assert tables.height(frame.lazy()) == tables.height(frame) == len(rows)


def test_digests_are_equal_for_equal_values_alone() -> None:
    values = pl.Series("v", ["a", "b", None, "a", "", None])
    digests = tables.digests(values)
    assert digests.name == "v"
    assert digests.is_null().to_list() == values.is_null().to_list()
    assert digests[0] == digests[3]
    assert digests.drop_nulls().n_unique() == 3
    assert tables.digests(pl.Series(range(100_000))).n_unique() == 100_000


@given(st.lists(st.integers(), max_size=9))
def test_what_is_made_ahead_is_the_same_in_order(batches: list[int]) -> None:
    assert list(tables.ahead(iter(batches))) == batches


def test_what_is_made_ahead_is_made_while_the_one_before_is_in_use_and_errors_come_in_their_turn() -> None:
    second = Event()

    def make() -> Iterator[int]:
        yield 1
        second.set()
        yield 2
        raise ValueError("row 3 is wrong")

    batches = tables.ahead(make())
    assert next(batches) == 1
    assert second.wait(30), "the next one waits until this one is done with"
    assert next(batches) == 2
    with pytest.raises(ValueError, match="row 3 is wrong"):
        next(batches)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_frames_are_written_one_after_another_or_not_at_all(tmp_path: Path, suffix: str) -> None:
    frame = frame_of([(i, str(i)) for i in range(10)])
    path = tmp_path / f"table{suffix}"
    tables.write(tables.batches(frame, 3), path)
    read = pl.read_parquet(path) if suffix == ".parquet" else pl.read_ndjson(path, schema=frame.schema)
    assert read.equals(frame)
    path.unlink()
    with pytest.raises(ValueError, match="row 11 is wrong"):
        tables.write(broken(frame), path)
    assert list(tmp_path.iterdir()) == []
