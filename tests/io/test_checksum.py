"""Laws of checksums: equal for what is equal, another for another byte, name or value."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mipo.io import checksum

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=300), st.data())
def test_a_file_has_the_checksum_of_its_bytes_and_another_byte_another(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("file") / "file"
    path.write_bytes(content)
    assert checksum.of_file(path) == checksum.of_bytes(content)
    if content:
        place = data.draw(st.integers(0, len(content) - 1))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert checksum.of_file(path) != checksum.of_bytes(content)


@given(values, values)
def test_values_have_equal_checksums_exactly_where_they_are_equal(one: object, other: object) -> None:
    equal = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (checksum.of_value(one) == checksum.of_value(other)) == equal
    assert checksum.of_value({"a": one, "b": other}) == checksum.of_value({"b": other, "a": one})
    assert checksum.of_value([one]) != checksum.of_value(one)


def test_a_folder_is_its_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    seen = {checksum.of_folder(tmp_path)}
    assert checksum.of_folder(tmp_path) in seen
    for change in (
        lambda: (tmp_path / "b").write_text("3"),
        lambda: (tmp_path / "b").rename(tmp_path / "c"),
        lambda: (tmp_path / "inner" / "a").rename(tmp_path / "a"),
        lambda: (tmp_path / "d").write_text(""),
    ):
        change()
        assert checksum.of_folder(tmp_path) not in seen
        seen.add(checksum.of_folder(tmp_path))


def test_a_file_that_is_not_there_is_the_system_s_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checksum.of_file(tmp_path / "absent")
