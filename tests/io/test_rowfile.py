"""Laws of row files: a row by its number is that row, whether the table is in memory or in a file."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mipo.errors import WriteError
from mipo.io.rowfile import open_rows

FRAME = pl.DataFrame(
    {"text": [f"row {i}" * (i % 5) for i in range(23)], "turns": [[{"role": str(i)}] for i in range(23)]}
)


@given(st.lists(st.integers(-1, 22), max_size=40), st.sampled_from([1, 4, 7, 23, 100]))
@settings(max_examples=60, deadline=None)
def test_rows_come_in_the_order_asked_for_and_nulls_for_no_row(numbers: list[int], batch_rows: int) -> None:
    rows = np.array(numbers, dtype=np.int64)
    expected = [FRAME.row(number) if number >= 0 else (None, None) for number in numbers]
    for table in (FRAME, FRAME.lazy()):
        with open_rows(table, batch_rows) as opened:
            assert opened.take(rows).rows() == expected
            assert opened.take(rows).schema == FRAME.schema


def test_an_empty_table_has_no_row_but_the_null() -> None:
    with open_rows(FRAME.clear().lazy(), 3) as opened:
        assert opened.take(np.array([-1, -1])).rows() == [(None, None)] * 2


def test_the_file_has_no_name_so_that_no_end_of_the_process_leaves_one(tmp_path: Path) -> None:
    with open_rows(FRAME.lazy(), 4, folder=tmp_path / "new") as opened:
        assert list((tmp_path / "new").iterdir()) == []
        assert opened.take(np.array([3]))["text"].item() == FRAME["text"][3]


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(WriteError, match=r"file/new: a temporary file could not be written \(Not a directory\)")
    with refused, open_rows(FRAME.lazy(), 4, folder=tmp_path / "file" / "new"):
        pass
