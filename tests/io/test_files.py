"""Laws of files: whole or not at all, whatever happens on the way."""

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mipo.errors import WriteError
from mipo.io import files

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=8,
)


@given(values)
def test_json_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert path.read_text(encoding="utf-8") == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write_and_fail(path: Path, error: BaseException) -> None:
    with files.whole(path) as temporary:
        temporary.write_text("half of the n")
        raise error


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "file.txt"
    files.write_text(path, "old")
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            _write_and_fail(path, error)
    assert path.read_text() == "old"
    assert [child.name for child in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [MemoryError("a gibibyte"), ZeroDivisionError(), ValueError("a wrong row")])
def test_what_is_not_the_disk_s_error_stays_what_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, files.whole(tmp_path / "file.txt"):
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_the_disk_s_error_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError, match=r"file\.txt: could not be written \(No space left"),
        files.whole(tmp_path / "file.txt"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def _write_and_die(path: Path) -> None:
    with files.whole(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_leaves_the_old_file_and_a_hidden_temporary(tmp_path: Path) -> None:
    files.write_text(tmp_path / "file.txt", "old")
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tmp_path / "file.txt",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "file.txt").read_text() == "old"
    left = [child.name for child in tmp_path.iterdir() if child.name != "file.txt"]
    assert len(left) == 1
    assert left[0].startswith(".file.txt.")
    assert left[0].endswith(".tmp")


def test_what_was_there_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    with files.whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_json_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"value\.json: no such file"):
        files.read_json(tmp_path / "value.json")
    for broken in (b'{"a": ', b"\xff", b""):
        (tmp_path / "value.json").write_bytes(broken)
        with pytest.raises(ValueError, match=r"value\.json: not valid JSON .*delete it and run again"):
            files.read_json(tmp_path / "value.json")
