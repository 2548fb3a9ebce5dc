"""Laws of Arrow files: what is read is what was written, and a file with any other byte is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mipo.io import arrow
from mipo.tokenizer.table import TokenTable

SCHEMA = pa.schema(
    [
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("ids", pa.large_list(pa.uint32()), nullable=False),
    ]
)


def batch(rows: list[list[int]]) -> tuple[pa.Array, pa.Array]:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    ids = arrow.lists(offsets, np.array([i for row in rows for i in row], np.uint32))
    return pa.array(np.arange(len(rows), dtype=np.uint64)), ids


def write(path: Path, batches: list[list[list[int]]]) -> str:
    writer = arrow.Writer(path, SCHEMA)
    for rows in batches:
        writer.put(*batch(rows))
    return writer.close()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write(tmp_path / "small.arrow", [[[1, 2], []], [[2**32 - 1]]])
    return tmp_path / "small.arrow"


@given(st.lists(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=4), max_size=4), max_size=4))
@settings(max_examples=40, deadline=None)
def test_what_is_read_is_what_was_written(tmp_path_factory: Any, batches: Any) -> None:
    path = tmp_path_factory.mktemp("arrow") / "file.arrow"
    checksum = write(path, batches)
    stored, stored_checksum = arrow.read(path, SCHEMA)
    assert stored_checksum == checksum
    assert [batch.column("ids").to_pylist() for batch in stored] == batches
    assert [batch.column("row").to_pylist() for batch in stored] == [list(range(len(rows))) for rows in batches]
    assert pa.ipc.open_file(str(path)).read_all().num_rows == sum(map(len, batches)), "any reader of Arrow reads it"


def test_equal_files_have_equal_checksums_and_others_other_ones(tmp_path: Path) -> None:
    contents = [[], [[]], [[[]]], [[[1]]], [[[1], []]], [[[], [1]]], [[[1]], [[]]], [[[1, 2]]], [[[1], [2]]]]
    checksums = [write(tmp_path / f"{i}.arrow", content) for i, content in enumerate(contents)]
    assert len({*checksums}) == len(contents)
    assert checksums == [write(tmp_path / "again.arrow", content) for content in contents]


def test_every_flipped_byte_is_found(small: Path) -> None:
    whole = small.read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        small.write_bytes(broken)
        with pytest.raises(ValueError, match=r"small\.arrow: (is not as it was written|not an Arrow file that mipo)"):
            arrow.read(small, SCHEMA)


def test_any_cut_and_whatever_is_added_is_found(small: Path) -> None:
    whole = small.read_bytes()
    for other in [*(whole[:length] for length in range(0, len(whole), 3)), whole + b"\0", b"\0" + whole, whole + whole]:
        small.write_bytes(other)
        with pytest.raises(ValueError, match=r"small\.arrow: "):
            arrow.read(small, SCHEMA)


def test_a_file_of_many_blocks_is_checked_to_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "large.arrow"
    write(path, [[list(range(400_000))], [list(range(400_000))]])
    whole = path.read_bytes()
    assert len(whole) > 3 << 20
    for place in (0, (1 << 20) - 1, 1 << 20, len(whole) // 2, (3 << 20) - 1, 3 << 20, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 128]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"large\.arrow: "):
            arrow.read(path, SCHEMA)
    path.write_bytes(whole)
    arrow.read(path, SCHEMA)


def test_what_is_no_file_of_ours_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.arrow: no such file; it was not written, or not to its end"):
        arrow.read(tmp_path / "none.arrow", SCHEMA)
    (tmp_path / "text.arrow").write_bytes(b"no arrow at all")
    with pa.ipc.new_file(str(tmp_path / "theirs.arrow"), SCHEMA) as theirs:
        theirs.write_batch(pa.record_batch(list(batch([[1]])), schema=SCHEMA))
    for name in ("text.arrow", "theirs.arrow"):
        with pytest.raises(ValueError, match=rf"{name}: not an Arrow file that mipo wrote, or its head is broken"):
            arrow.read(tmp_path / name, SCHEMA)
    with pytest.raises(ValueError, match=r"small\.arrow: expected the columns ids: .*; got row: uint64, ids: "):
        TokenTable.open(small)


def test_a_file_that_was_not_closed_is_refused(tmp_path: Path) -> None:
    writer = arrow.Writer(tmp_path / "open.arrow", SCHEMA)
    writer.put(*batch([[1, 2, 3]]))
    with pytest.raises(ValueError, match=r"open\.arrow: "):
        arrow.read(tmp_path / "open.arrow", SCHEMA)


def test_batches_lie_in_the_file(tmp_path: Path) -> None:
    write(tmp_path / "ids.arrow", [[list(range(1_000_000))]])
    before = pa.total_allocated_bytes()
    (stored,), _ = arrow.read(tmp_path / "ids.arrow", SCHEMA)
    _, ids = arrow.parts(stored.column("ids"))
    assert pa.total_allocated_bytes() - before < ids.nbytes / 10
    assert not ids.flags.writeable
