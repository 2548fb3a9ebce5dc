"""Arrow: IPC files that are written batch by batch and carry their own checksum. Opening refuses a broken one.

Knows columns of numbers and of lists of numbers, without nulls. Knows nothing of what they mean.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError, NotThereError
from mipo.io import checksum
from mipo.io.checksum import DIGITS, MARK
from mipo.io.lazy import np, pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The mark and its digits are metadata of the schema, which a file has in its head and again in its footer. The digits
# in the head become the checksum of all bytes of the file, with these digits read as NUL. So no byte of a broken file
# reaches Arrow's reader, which checks little of its input.
HEAD = 4096  # bytes at the start of a file that contain the mark


class Writer:
    """Writes an Arrow IPC file, a batch at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema.with_metadata({b"checksum": MARK + b"0" * DIGITS})
        self._writer = pa.ipc.new_file(str(path), self._schema)

    def put(self, *columns: Any) -> None:
        """Adds a batch: one Arrow array per column."""
        assert not any(column.null_count for column in columns)
        self._writer.write_batch(pa.record_batch(list(columns), schema=self._schema))

    def flush(self) -> None:
        """Waits until the batches so far are on disk, so that `close` has little left to wait for."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def close(self) -> str:
        """Ends the file and returns its checksum."""
        self._writer.close()
        place, _ = _stored_checksum(self._path)
        return checksum.stamp(self._path, place)


def read(path: Path, schema: pa.Schema, *, trusted: bool = False) -> tuple[list[pa.RecordBatch], str]:
    """The batches of a file that `Writer` wrote, memory-mapped, and its checksum.

    First reads every byte of the file, on all threads, unless the file is `trusted`: checked before. NotThereError for
    a missing file, InputError for one that was cut off or changed, or has other columns.
    """
    if not path.is_file():
        raise NotThereError(f"{path}: no such file; it was not written, or not to its end")
    place, digits = _stored_checksum(path)
    if not trusted and not checksum.is_stamped(path, place, digits):
        raise InputError(f"{path}: is not as it was written, or was cut off; make it again")
    # The mapping outlives the file descriptor: it stays as long as a batch is in use.
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    if not reader.schema.equals(schema):
        expected, got = (", ".join(f"{field.name}: {field.type}" for field in each) for each in (schema, reader.schema))
        raise InputError(f"{path}: expected the columns {expected}; got {got}; name another file")
    return [reader.get_batch(number) for number in range(reader.num_record_batches)], digits


def lists(offsets: NDArray[np.int64], values: NDArray[Any]) -> pa.LargeListArray:
    """The lists `values[offsets[i]:offsets[i + 1]]`, without a copy."""
    return pa.LargeListArray.from_arrays(numbers(offsets), numbers(values))


def numbers(values: NDArray[Any]) -> pa.Array:
    """A contiguous NumPy array as an Arrow array, without a copy; `pyarrow.array` would import pandas first."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def parts(column: pa.LargeListArray) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The offsets and values of lists, without a copy."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def _stored_checksum(path: Path) -> tuple[int, str]:
    """The position of the checksum in a file, and the checksum."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    place = head.find(MARK) + len(MARK)
    digits = head[place : place + DIGITS]
    if MARK not in head or len(digits) < DIGITS:
        raise InputError(f"{path}: not an Arrow file that mipo wrote, or its head is broken; make it again")
    return place, digits.decode("latin-1")
