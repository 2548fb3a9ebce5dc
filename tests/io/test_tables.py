"""Laws of tables: batches hold every row once and in order, and files are written whole or not at all."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mipo.errors import InputError
from mipo.io import checksum, sources, tables
from mipo.io.streams import open_stream


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


def test_any_flipped_byte_of_a_table_is_found_by_every_reader(tmp_path: Path) -> None:
    """But for the mark itself, without which the table is read as anybody's, with what it holds."""
    frame, path = frame_of([(i, str(i)) for i in range(10)]), tmp_path / "table.parquet"
    tables.write([frame], path)
    whole = path.read_bytes()
    readers = [
        lambda: sources.load(path),
        lambda: sources.scan(path).lazy().collect(),
        lambda: pl.concat(open_stream(path).batches(4)),
        lambda: tables.scan(path).collect(),
    ]
    unseen = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert not tables.is_own(path) or checksum.MARK not in path.read_bytes()
        try:
            read = readers[place % len(readers)]()
        except InputError:
            continue
        unseen.append(place)
        assert read.equals(frame)
    assert len(unseen) <= len(checksum.MARK)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            readers[length % len(readers)]()
    path.write_bytes(whole)
    assert all(read().equals(frame) for read in readers)


def test_digests_are_the_same_wherever_they_are_made() -> None:
    """Not those of polars, whose hashes differ from version to version."""
    texts = pl.Series("text", ["prompt", None, "", "prompt"])
    assert tables.digests(texts).to_list() == [
        "12119011279377256771 15357574304987744943",
        None,
        "11072670137173121240 6918025063187695999",
        "12119011279377256771 15357574304987744943",
    ]
